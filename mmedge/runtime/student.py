"""The student on the device: `EdgeStudent.open("bundle-int8").answer("Ann has 3 apples and buys 4. How many has she now?")`.

Answering is one short `predict:`. Explaining and self-evaluating are there when they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from mmedge.errors import MmedgeError
from mmedge.runtime.bundle import Bundle, open_bundle
from mmedge.runtime.decoding import Engine, open_engine
from mmedge.tasks.base import ChainOfThought, Example
from mmedge.tasks.encoding import Kind, PromptEncoder
from mmedge.tasks.expressions import ExpressionError, number_text, parse
from mmedge.tasks.prompts import VERDICTS, Context, render_question


@dataclass(frozen=True)
class Answer:
    """What the student says to one question.

    Attributes:
        text: The answer as written.
        value: What an arithmetic answer comes to, as text; None for other tasks, or where it has no value.
        rationale: The chain of thought, where it was asked for.
        judgement: The student's own judgement of rationale and answer, where it was asked for.
    """

    text: str
    value: str | None = None
    rationale: str | None = None
    judgement: Judgement | None = None

    def to_json(self) -> dict[str, object]:
        """Return it for a JSON-lines file; what was not asked for is left out."""
        found: dict[str, object] = {"answer": self.text}
        if self.value is not None:
            found["value"] = self.value
        if self.rationale is not None:
            found["rationale"] = self.rationale
        if self.judgement is not None:
            found |= self.judgement.to_json()
        return found


@dataclass(frozen=True)
class Judgement:
    """A self-evaluation.

    Attributes:
        verdict: `correct`, `wrong` or `uncertain`, the most probable of the three.
        probability_correct: P(correct) among the three, from the logits; not calibrated.
        evaluation: The rationale of the verdict, where it was asked for.
    """

    verdict: str
    probability_correct: float
    evaluation: str | None = None

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {"verdict": self.verdict, "probability_correct": round(self.probability_correct, 4)}
        if self.evaluation is not None:
            found["evaluation"] = self.evaluation
        return found


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Open a `tokenizer.json`, truncation and padding off."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise MmedgeError(f"cannot read {path}: {str(error)[:200]}", "export the student again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class EdgeStudent:
    """A bundle, opened.

    Args:
        bundle: A checked bundle.
        threads: Threads within one operation; by default what the bundle asks for, or else all of the process's cores.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.bundle = bundle
        self.engine: Engine = open_engine(bundle, threads)
        tokenizer = load_tokenizer(bundle.folder / "tokenizer.json")
        self.encoder = PromptEncoder(tokenizer, bundle.family, bundle.prompts, bundle.special, bundle.max_input_tokens)

    @classmethod
    def open(cls, folder: str | Path, threads: int | None = None) -> EdgeStudent:
        """Open a bundle folder, checking every file against its hash.

        Raises:
            MmedgeError: It is no bundle, or a file is missing or damaged.
        """
        return cls(open_bundle(Path(folder)), threads)

    def answer(
        self,
        questions: Example | str | Sequence[Example | str],
        *,
        explain: bool = False,
        evaluate: bool = False,
    ) -> list[Answer]:
        """Answer questions, all in one batch.

        Args:
            questions: One or several, as text or as examples with choices.
            explain: Also write a rationale.
            evaluate: Also judge rationale and answer, which writes a rationale too.

        Returns:
            One answer for each question, in their order.
        """
        listed = [questions] if isinstance(questions, (str, Example)) else list(questions)
        examples = [Example(str(index), item) if isinstance(item, str) else item for index, item in enumerate(listed)]
        if not examples:
            return []
        rendered = [render_question(example) for example in examples]
        contexts = [self.bundle.prompts.reasoning_context(question) for question in rendered]
        texts = self.write("predict", contexts, self.bundle.max_answer_tokens)
        rationales: list[str | None] = [None] * len(texts)
        judgements: list[Judgement | None] = [None] * len(texts)
        if explain or evaluate:
            written = self.write("explain", contexts, self.bundle.max_rationale_tokens)
            rationales = list(written)
            if evaluate:
                cots = [ChainOfThought(rationale, text) for rationale, text in zip(written, texts, strict=True)]
                judgements = list(self.judge(rendered, cots, explain=explain))
        return [
            Answer(text, self._value(text), rationale, judgement)
            for text, rationale, judgement in zip(texts, rationales, judgements, strict=True)
        ]

    def judge(self, questions: Sequence[str], cots: Sequence[ChainOfThought], *, explain: bool = False) -> list[Judgement]:
        """Evaluate chains of thought, each on its rendered question; P(correct) comes from the verdict tokens' logits."""
        contexts = [self.bundle.prompts.evaluation_context(question, cot) for question, cot in zip(questions, cots, strict=True)]
        begun, tokens = self.encoder.verdict_tokens()
        prompts = [self.encoder.prompt("predict", context) for context in contexts]
        logits = self.engine.next_logits(prompts, begun)[:, tokens].astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        evaluations: list[str | None] = [None] * len(contexts)
        if explain:
            evaluations = list(self.write("explain", contexts, self.bundle.max_rationale_tokens))
        return [
            Judgement(VERDICTS[int(row.argmax())], float(row[0]), evaluation)
            for row, evaluation in zip(shares, evaluations, strict=True)
        ]

    def write(self, kind: Kind, contexts: Sequence[Context], max_new_tokens: int) -> list[str]:
        """Write greedily behind each prompt, in one batch."""
        prompts = [self.encoder.prompt(kind, context) for context in contexts]
        generation = self.engine.generate(prompts, max_new_tokens)
        return [self.encoder.text(tokens) for tokens in generation.tokens]

    def _value(self, text: str) -> str | None:
        if self.bundle.judge.name != "expression":
            return None
        try:
            value = parse(text).value
        except ExpressionError:
            return None
        return None if value is None else number_text(value)
