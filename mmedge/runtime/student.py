"""The student on the device.

    student = Student.load("runs/quickstart/bundle-int8")
    answer = student.answer("Ann has 3 apples and buys 4. How many has she now?", explain=True)
    answer.text, answer.value, answer.confidence, answer.rationale

Answering is one short `predict:`. Explaining, judging itself, drawing several chains of thought, withholding an answer and
handing a question on are there when they are asked for. A student may be used from several threads at once: what belongs to
one call is that call's own.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import tokenizers

from mmedge.engines.generation import Decoding
from mmedge.engines.onnx.decoding import Engine, open_engine
from mmedge.engines.onnx.graphs import Device
from mmedge.errors import MmedgeError
from mmedge.machine import usable_cores
from mmedge.manifest import Bundle, open_bundle
from mmedge.runtime.confidence import Confidence, Evidence, Signal, Threshold
from mmedge.runtime.escalation import BiggerModel, Escalated, escalated_all
from mmedge.runtime.strategies import Sample, Strategy, StrategyKind, vote
from mmedge.tasks.base import ChainOfThought, Example, Unparsed
from mmedge.tasks.encoding import Kind, Prompt, PromptEncoder
from mmedge.tasks.prompts import VERDICTS, Context, render_question

MAX_QUESTION_CHARACTERS = 1_000_000  # only the first few hundred tokens are read; what is longer is no question
BATCH = 16  # questions answered together


_WHERE_KNOWN = ("value", "confidence", "signal", "rationale", "verdict", "probability_correct", "evaluation", "guess", "problem")


@dataclass(frozen=True)
class Answer:
    """What the student says to one question.

    Attributes:
        text: The answer as written; empty where it is withheld.
        value: What an arithmetic answer comes to, as text; None for other tasks, or where it has no value.
        confidence: P(right). By the answer's own probability where nothing more was asked for, or nothing could be calibrated;
            else by the signal that did best when the bundle was exported.
        signal: What the confidence comes from: `answer`, `evaluation`, `combined`, or `samples` (the share of the votes).
        calibrated: Whether the confidence was calibrated on validation questions.
        rationale: The chain of thought, where it was asked for.
        verdict: The student's own verdict on rationale and answer, where it was asked for: `correct`, `wrong` or `uncertain`.
        probability_correct: P(correct) among the three, from the verdict's logits; not calibrated.
        evaluation: The rationale of the verdict, where it was asked for.
        withheld: The confidence is below the threshold, and nobody else answered.
        guess: What the student would have said to a question that was withheld or handed on.
        source: `student`, or the name of the bigger model that answered.
        escalation: What the bigger model's answer cost.
        problem: Why a bigger model could not be asked.
        samples: The chains of thought that were drawn.
    """

    text: str
    value: str | None = None
    confidence: float | None = None
    signal: str | None = None
    calibrated: bool = False
    rationale: str | None = None
    verdict: str | None = None
    probability_correct: float | None = None
    evaluation: str | None = None
    withheld: bool = False
    guess: str | None = None
    source: str = "student"
    escalation: Escalated | None = None
    problem: str | None = None
    samples: tuple[Sample, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return it for a JSON-lines file; what was not asked for is left out."""
        found: dict[str, object] = {"answer": None if self.withheld else self.text}
        for name in _WHERE_KNOWN:
            value = getattr(self, name)
            if value is not None:
                found[name] = round(value, 4) if isinstance(value, float) else value
        if self.confidence is not None:
            found["calibrated"] = self.calibrated
        if self.withheld:
            found["withheld"] = True
        if self.source != "student":
            found["source"] = self.source
        if self.escalation is not None:
            found["escalation"] = self.escalation.to_json()
        if self.samples:
            found["samples"] = [sample.text for sample in self.samples]
        return found


@dataclass(frozen=True)
class Judgement:
    """A self-evaluation.

    Attributes:
        verdict: `correct`, `wrong` or `uncertain`, the most probable of the three.
        probability_correct: P(correct) among the three, from the logits; not calibrated.
        evaluation: The rationale of the verdict, where it was asked for.
        log_odds: Of `correct` against the other two.
    """

    verdict: str
    probability_correct: float
    evaluation: str | None = None
    log_odds: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Some more text of a stream.

    Attributes:
        part: `answer`, `rationale` or `evaluation`.
        text: What was written since the last piece of this part.
    """

    part: str
    text: str


@dataclass
class _Thought:
    """What a student wrote to one question, or one of the chains of thought that it drew."""

    text: str
    log_probability: float
    rationale: str | None = None
    rationale_log_probability: float = 0.0
    judgement: Judgement | None = None


_Read = dict[str, tuple[int, ...]]  # tokens of contexts by their text
Told = Callable[[str, int, int], None]  # part, row, token


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Open a `tokenizer.json`, truncation and padding off."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise MmedgeError(f"cannot read {path}: {str(error)[:200]}", "export the student again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Student:
    """A bundle, opened.

    Args:
        bundle: A checked bundle.
        threads: Threads within one operation; by default what the bundle asks for, or else all of the process's cores.
        device: Where it computes; `auto` takes a CUDA device where there is one and the bundle is meant for it (fp16).
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Device = "auto") -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if threads is not None and threads < 1:
            raise MmedgeError(f"threads: {threads} is not from 1 on")
        self.bundle, stated = bundle, bundle.manifest
        cores = usable_cores()
        # one product of a small student is done before a second thread is awake, but a second batch keeps a second core busy
        self._workers = max(1, cores // (threads or stated.threads or cores))
        self._tokenizer = load_tokenizer(bundle.folder / "tokenizer.json")  # first: what reading it leaves free, the engine takes
        self.engine: Engine = open_engine(bundle, threads, device)
        self.encoder = PromptEncoder(self._tokenizer, stated.family, stated.prompts, stated.special_tokens, stated.max_input_tokens)
        self.confidence = Confidence.from_manifest(stated.confidence)
        self._constrainer = bundle.form.constrainer(self.encoder)

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None, device: Device = "auto") -> Student:
        """Open a bundle folder, checking every file against its hash.

        Args:
            folder: What `mmedge export` wrote.
            threads: See the class.
            device: See the class.

        Raises:
            MmedgeError: It is no bundle, a file is missing or damaged, or CUDA is asked for and cannot be had.
        """
        return cls(open_bundle(Path(folder)), threads, device)

    # ------------------------------------------------------------------------------------------------------- asking

    def answer(
        self,
        question: Example | str,
        *,
        choices: Sequence[str] = (),
        explain: bool = False,
        evaluate: bool = False,
        confidence: bool = False,
        strategy: Strategy | None = None,
        constrained: bool | None = None,
        abstain_below: float | None = None,
        escalate_to: BiggerModel | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            question: Text, or an example of the task.
            choices: What to choose from, where the question is text and the task has choices.
            explain: Also return a rationale.
            evaluate: Also return the student's verdict on rationale and answer, and with `explain` its reasons.
            confidence: Return the best confidence that there is, not the one that costs nothing.
            strategy: How to go about it; by default as the bundle says, or else at once.
            constrained: Only answers of the task's form: a choice, a label, an expression. By default as the bundle says.
            abstain_below: Withhold an answer whose confidence is lower; see `threshold`, which is for the strategies `answer` and
                `confidence`. By default as the bundle says, or never.
            escalate_to: Who answers what would be withheld.

        Raises:
            MmedgeError: The question is too long to be one, or an option does not fit.
        """
        example = Example("question", question, None, tuple(choices)) if isinstance(question, str) else question
        return self.answer_all(
            [example],
            explain=explain,
            evaluate=evaluate,
            confidence=confidence,
            strategy=strategy,
            constrained=constrained,
            abstain_below=abstain_below,
            escalate_to=escalate_to,
        )[0]

    def answer_all(
        self,
        questions: Sequence[Example | str],
        *,
        explain: bool = False,
        evaluate: bool = False,
        confidence: bool = False,
        strategy: Strategy | None = None,
        constrained: bool | None = None,
        abstain_below: float | None = None,
        escalate_to: BiggerModel | None = None,
        batch: int = BATCH,
    ) -> list[Answer]:
        """Answer several questions, `batch` of them together; each gets the answer that it would get alone.

        Returns:
            One answer for each question, in their order. See `answer` for the arguments.
        """
        return self._answered(
            questions,
            _Wish(
                explain,
                evaluate,
                confidence,
                strategy or self.strategy_with(),
                self._constrained(constrained),
                abstain_below,
                escalate_to,
            ),
            batch,
        )

    def stream(
        self,
        question: Example | str,
        *,
        choices: Sequence[str] = (),
        explain: bool = False,
        evaluate: bool = False,
        confidence: bool = False,
        constrained: bool | None = None,
    ) -> Iterator[Piece | Answer]:
        """Answer one question and yield what is written while it is written; the whole answer comes last.

        An iteration that is given up stops the student before its next token. Where the bundle may yet withhold the answer, or
        choose among several, nothing is shown before it has. See `answer` for the arguments.
        """
        example = Example("question", question, None, tuple(choices)) if isinstance(question, str) else question
        strategy, decides_later = self.strategy_with(), self.bundle.manifest.answering.threshold is not None
        decides_later = decides_later or strategy.kind in ("samples", "retry")
        wish = _Wish(explain, evaluate, confidence, strategy, self._constrained(constrained))
        queue: SimpleQueue[Piece | Answer | BaseException] = SimpleQueue()
        given_up = threading.Event()
        texts: dict[str, _Growing] = {}

        def tell(part: str, _: int, token: int) -> None:
            if given_up.is_set():
                raise _GivenUp
            new = texts.setdefault(part, _Growing(self.encoder)).with_token(token)
            if new:
                queue.put(Piece(part, new))

        def work() -> None:
            try:
                queue.put(self._answered([example], wish, 1, None if decides_later else tell)[0])
            except _GivenUp:
                pass
            except BaseException as error:  # it is the caller's to see
                queue.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while True:
                item = queue.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Answer):
                    for part, text in texts.items():
                        if rest := text.rest():
                            yield Piece(part, rest)
                yield item
                if isinstance(item, Answer):
                    return
        finally:
            given_up.set()
            thread.join()

    def threshold(self, *, target_accuracy: float | None = None, max_handed_on: float | None = None) -> Threshold:
        """Return a threshold for `abstain_below`, chosen on validation questions; see `Confidence.threshold`.

        Raises:
            MmedgeError: The bundle's confidence was not calibrated, or no threshold reaches the aim.
        """
        if self.confidence is None:
            why = self.bundle.manifest.confidence.get("why", "it was exported without")
            raise MmedgeError(
                f"no threshold can be chosen: this bundle's confidence is not calibrated ({why})",
                "give abstain_below yourself, or distil with more or harder validation questions (split.validation)",
            )
        return self.confidence.threshold(target_accuracy=target_accuracy, max_handed_on=max_handed_on)

    def examined(self, questions: Sequence[Example]) -> list[tuple[str, Evidence]]:
        """Answer questions in one batch, and return each answer with everything that the confidence is made of."""
        thoughts = self._thoughts(questions, self._contexts(questions), judged=True)
        return [(thought.text, self._evidence(example, thought)) for example, thought in zip(questions, thoughts, strict=True)]

    def sampled(self, questions: Sequence[Example], strategy: Strategy) -> list[list[Sample]]:
        """Draw chains of thought for questions, all in one batch, and let the student judge each."""
        wish = _Wish(False, False, False, strategy)
        return [_samples(thoughts) for thoughts in self._drawn(questions, self._contexts(questions), wish)]

    def judge(self, questions: Sequence[str], cots: Sequence[ChainOfThought], *, explain: bool = False) -> list[Judgement]:
        """Evaluate chains of thought, each on its rendered question; P(correct) comes from the verdict tokens' logits.

        Raises:
            MmedgeError: There is not one chain of thought for each question.
        """
        if len(questions) != len(cots) or not all(isinstance(cot, ChainOfThought) for cot in cots):
            raise MmedgeError("judge takes one chain of thought (mmedge.tasks.ChainOfThought) for each question")
        if not questions:
            return []
        return self._judged(self.engine.conversation(), questions, cots, explain, None)

    def write(self, kind: Kind, contexts: Sequence[Context], max_new_tokens: int) -> list[str]:
        """Write greedily behind each prompt, in one batch."""
        prompts = [self.encoder.prompt(kind, context) for context in contexts]
        generation = self.engine.generate(prompts, max_new_tokens)
        return [self.encoder.text(tokens) for tokens in generation.tokens]

    def strategy_with(self, kind: StrategyKind | None = None, **changes: Any) -> Strategy:
        """Return the bundle's own strategy with some of its settings changed; those that are None stay.

        Raises:
            MmedgeError: A setting is not allowed.
        """
        stated = self.bundle.manifest.answering.strategy
        given = {name: value for name, value in {"kind": kind, **changes}.items() if value is not None}
        return Strategy(**{**stated, **given})

    # ------------------------------------------------------------------------------------------------------ the work

    def _constrained(self, given: bool | None) -> bool:
        return self.bundle.manifest.answering.constrained if given is None else given

    def _contexts(self, examples: Sequence[Example]) -> list[Context]:
        for example in examples:
            if len(example.question) + sum(map(len, example.choices)) > MAX_QUESTION_CHARACTERS:
                raise MmedgeError(
                    f"a question of {len(example.question):,} characters is too long",
                    f"at most {MAX_QUESTION_CHARACTERS:,} are read",
                )
        return [self.bundle.manifest.prompts.reasoning_context(render_question(example)) for example in examples]

    def _answered(self, questions: Sequence[Example | str], wish: _Wish, batch: int, tell: Told | None = None) -> list[Answer]:
        if not isinstance(wish.strategy, Strategy):
            raise MmedgeError(f"strategy is a Strategy, such as Strategy('samples'), not {wish.strategy!r}")
        if wish.abstain_below is None:
            stated = self.bundle.manifest.answering.threshold
            if stated and wish.strategy.kind in ("samples", "retry"):
                raise MmedgeError(
                    f"the bundle's threshold was chosen for answering at once, not for {wish.strategy.kind}", "give abstain_below"
                )
            wish = replace(wish, abstain_below=stated.value if stated else None)
        if wish.escalate_to is not None and wish.abstain_below is None:
            raise MmedgeError("a bigger model is asked below a confidence only", "give abstain_below too; see Student.threshold")
        if wish.abstain_below is not None:
            if not isinstance(wish.abstain_below, (int, float)) or not 0 <= wish.abstain_below <= 1:
                raise MmedgeError(f"abstain_below is a confidence from 0 to 1, not {wish.abstain_below}")
            wish = replace(wish, confidence=True)
        if isinstance(questions, (str, Example)):
            raise MmedgeError("answer_all takes a list of questions", "ask one with answer")
        if not isinstance(questions, Iterable):
            raise MmedgeError(f"answer_all takes a list of questions, not {type(questions).__name__}")
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise MmedgeError(f"batch must be a whole number from 1 on, not {batch!r}")
        questions = list(questions)
        if wrong := [item for item in questions if not isinstance(item, (str, Example))]:
            raise MmedgeError(f"a question is text or an Example, not {type(wrong[0]).__name__}")
        examples = [Example(str(index), item) if isinstance(item, str) else item for index, item in enumerate(questions)]
        size = max(1, batch // wish.strategy.samples) if wish.strategy.kind == "samples" else max(1, batch)

        def answered(start: int) -> list[Answer]:
            some = examples[start : start + size]
            answers = self._answered_together(some, wish, tell)
            if wish.abstain_below is not None:
                answers = self._withheld(some, answers, wish.abstain_below, wish.escalate_to)
            return answers

        workers = self._workers if size > 1 else 1
        if workers > 1 and len(examples) > 1:
            size = max(1, min(size, -(-len(examples) // workers)))
            with ThreadPoolExecutor(workers) as pool:
                return [answer for answers in pool.map(answered, range(0, len(examples), size)) for answer in answers]
        return [answer for start in range(0, len(examples), size) for answer in answered(start)]

    def _answered_together(self, examples: Sequence[Example], wish: _Wish, tell: Told | None) -> list[Answer]:
        contexts, strategy = self._contexts(examples), wish.strategy
        if strategy.kind == "samples":
            return self._chosen(examples, self._drawn(examples, contexts, wish), wish)
        judged = wish.evaluate or strategy.kind in ("confidence", "retry") or (wish.confidence and self._best_signal() != "answer")
        told = _part_teller(tell)
        thoughts = self._thoughts(
            examples,
            contexts,
            explained=wish.explain,
            judged=judged,
            evaluated=wish.evaluate and wish.explain,
            constrained=wish.constrained,
            told=told,
        )
        answers = self._answers(examples, thoughts, wish, judged)
        if strategy.kind == "retry":
            doubtful = [row for row, answer in enumerate(answers) if (answer.confidence or 0.0) < strategy.retry_below]
            if doubtful:
                again = [examples[row] for row in doubtful]
                drawn = self._drawn(again, [contexts[row] for row in doubtful], wish)
                for place, row in enumerate(doubtful):
                    drawn[place].insert(0, thoughts[row])
                for row, answer in zip(doubtful, self._chosen(again, drawn, wish), strict=True):
                    answers[row] = answer
        return answers

    def _best_signal(self) -> Signal:
        return self.confidence.chosen if self.confidence else "answer"

    def _thoughts(
        self,
        examples: Sequence[Example],
        contexts: Sequence[Context],
        *,
        explained: bool = False,
        judged: bool = False,
        evaluated: bool = False,
        constrained: bool = False,
        drawing: _Drawing | None = None,
        told: Callable[[str], Callable[[int, int], None] | None] = lambda _: None,
    ) -> list[_Thought]:
        """Write answers, and what else is wanted, all from one reading of the questions.

        Args:
            examples: One for each row.
            contexts: Theirs.
            explained: Write rationales.
            judged: Write rationales and look at the verdicts.
            evaluated: Write the verdicts' reasons.
            constrained: Only answers of the task's form.
            drawing: How to draw; greedily where None.
            told: Returns who is told of each token of a part.
        """
        bundle = self.bundle
        conversation = self.engine.conversation()
        limit = bundle.manifest.max_answer_tokens
        forms = tuple(self._constrainer.answer(example, limit) for example in examples) if constrained else ()
        how = drawing.how(0, len(examples)) if drawing else Decoding()
        how = replace(how, scored=True, constraints=forms if any(forms) else (), on_token=told("answer"))
        read: _Read = {}
        written = conversation.generate(self._prompts("predict", contexts, read), limit, how)
        thoughts = [
            _Thought(self.encoder.text(tokens), sum(scores))
            for tokens, scores in zip(written.tokens, written.log_probabilities, strict=True)
        ]
        if not (explained or judged):
            return thoughts
        how = drawing.how(1, len(examples)) if drawing else Decoding()
        prompts = self._prompts("explain", contexts, read)
        sums = tuple(self._constrainer.rationale() for _ in examples)
        how = replace(how, scored=True, constraints=sums if any(sums) else (), on_token=told("rationale"), draft=True)
        written = conversation.generate(prompts, bundle.manifest.max_rationale_tokens, how)
        for thought, tokens, scores in zip(thoughts, written.tokens, written.log_probabilities, strict=True):
            thought.rationale = self.encoder.text(tokens)
            thought.rationale_log_probability = sum(scores) / max(1, len(scores))
        if judged:
            cots = [ChainOfThought(thought.rationale or "", thought.text) for thought in thoughts]
            rendered = [render_question(example) for example in examples]
            judgements = self._judged(conversation, rendered, cots, evaluated, told("evaluation"), read)
            for thought, judgement in zip(thoughts, judgements, strict=True):
                thought.judgement = judgement
        return thoughts

    def _prompts(self, kind: Kind, contexts: Sequence[Context], read: _Read) -> list[Prompt]:
        """Return prompts, what they read encoded once; `read` keeps it."""
        new = {context.read: context for context in contexts if context.read not in read}
        if len(new) == 1:
            read |= {text: self.encoder.context(context) for text, context in new.items()}
        elif new:
            read |= zip(new, self.encoder.contexts(list(new.values())), strict=True)
        return [Prompt(read[context.read], self.encoder.begun(kind, context)) for context in contexts]

    def _judged(
        self,
        conversation: Engine,
        questions: Sequence[str],
        cots: Sequence[ChainOfThought],
        explain: bool,
        on_token: Callable[[int, int], None] | None,
        read: _Read | None = None,
    ) -> list[Judgement]:
        read = {} if read is None else read
        contexts = [
            self.bundle.manifest.prompts.evaluation_context(question, cot) for question, cot in zip(questions, cots, strict=True)
        ]
        begun, tokens = self.encoder.verdict_tokens()
        prompts = self._prompts("predict", contexts, read)
        logits = conversation.next_logits(prompts, begun)[:, tokens].astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        log_odds = logits[:, 0] - np.logaddexp.reduce(logits[:, 1:], axis=1)
        evaluations: list[str | None] = [None] * len(contexts)
        if explain:
            prompts = self._prompts("explain", contexts, read)
            written = conversation.generate(
                prompts, self.bundle.manifest.max_rationale_tokens, Decoding(on_token=on_token, draft=True)
            )
            evaluations = [self.encoder.text(ids) for ids in written.tokens]
        return [
            Judgement(VERDICTS[int(row.argmax())], float(row[0]), evaluation, float(odds))
            for row, odds, evaluation in zip(shares, log_odds, evaluations, strict=True)
        ]

    def _evidence(self, example: Example, thought: _Thought) -> Evidence:
        if thought.judgement is None:
            return Evidence(thought.log_probability)
        agreement = 0.0
        found = self.bundle.form.read(thought.rationale or "", example)
        if not isinstance(found, Unparsed):
            agreement = 1.0 if self.bundle.form.agrees(thought.text, found.pseudo_label, example.choices) else -1.0
        return Evidence(thought.log_probability, thought.judgement.log_odds, agreement, thought.rationale_log_probability)

    def _answers(self, examples: Sequence[Example], thoughts: Sequence[_Thought], wish: _Wish, judged: bool) -> list[Answer]:
        signal: Signal = self._best_signal() if judged else "answer"
        if signal == "combined":  # which alone looks at what the rationale comes to
            evidence = [self._evidence(example, thought) for example, thought in zip(examples, thoughts, strict=True)]
        else:
            evidence = [
                Evidence(thought.log_probability, thought.judgement.log_odds if thought.judgement else None) for thought in thoughts
            ]
        if self.confidence is not None:
            confidences = self.confidence.of(evidence, signal)
        else:
            signal, confidences = "answer", [math.exp(min(0.0, thought.log_probability)) for thought in thoughts]
        found = []
        for thought, confidence in zip(thoughts, confidences, strict=True):
            shown = thought.judgement if wish.evaluate else None
            found.append(
                Answer(
                    thought.text,
                    self.value_of(thought.text),
                    confidence,
                    signal,
                    self.confidence is not None,
                    thought.rationale if wish.explain else None,
                    shown.verdict if shown else None,
                    shown.probability_correct if shown else None,
                    shown.evaluation if shown else None,
                )
            )
        return found

    def _drawn(self, examples: Sequence[Example], contexts: Sequence[Context], wish: _Wish) -> list[list[_Thought]]:
        """Draw chains of thought, and let the student judge each."""
        count = wish.strategy.samples
        drawing = _Drawing(wish.strategy.temperature, wish.strategy.seed, count)
        thoughts = self._thoughts(
            [example for example in examples for _ in range(count)],
            [context for context in contexts for _ in range(count)],
            judged=True,
            constrained=wish.constrained,
            drawing=drawing,
        )
        return [thoughts[row * count : (row + 1) * count] for row in range(len(examples))]

    def _chosen(self, examples: Sequence[Example], drawn: Sequence[Sequence[_Thought]], wish: _Wish) -> list[Answer]:
        """Let the chains of thought of each question vote."""
        answers = []
        for example, thoughts in zip(examples, drawn, strict=True):
            samples = _samples(thoughts)
            place, share = vote(samples, self.bundle.form, example.choices, wish.strategy.choose_by)
            answer = self._answers([example], [thoughts[place]], wish, judged=True)[0]
            answers.append(replace(answer, confidence=share, signal="samples", calibrated=False, samples=tuple(samples)))
        return answers

    def _withheld(
        self, examples: Sequence[Example], answers: Sequence[Answer], threshold: float, bigger: BiggerModel | None
    ) -> list[Answer]:
        """Withhold answers below a confidence, or let a bigger model answer in their place."""
        found = [
            replace(answer, text="", value=None, withheld=True, guess=answer.text)
            if (answer.confidence or 0.0) < threshold
            else answer
            for answer in answers
        ]
        rows = [row for row, answer in enumerate(found) if answer.withheld]
        if bigger is None or not rows:
            return found
        replies = escalated_all(bigger, [examples[row] for row in rows], self.bundle.form)
        for row, reply in zip(rows, replies, strict=True):
            if isinstance(reply, str):
                found[row] = replace(found[row], problem=reply)
                continue
            found[row] = replace(
                found[row],
                text=reply.text,
                value=self.value_of(reply.text),
                withheld=False,
                source=bigger.name,
                escalation=reply,
                confidence=None,
                signal=None,
                calibrated=False,
                verdict=None,
                probability_correct=None,
                evaluation=None,
                rationale=reply.rationale if found[row].rationale is not None else None,
            )
        return found

    def value_of(self, text: str) -> str | None:
        """Return what an answer comes to; None where answers of the task have no values, or this one has none."""
        return self.bundle.form.value_of(text)


def _samples(thoughts: Sequence[_Thought]) -> list[Sample]:
    return [
        Sample(thought.text, thought.rationale or "", thought.judgement.probability_correct if thought.judgement else 0.0)
        for thought in thoughts
    ]


@dataclass(frozen=True)
class _Wish:
    """What a call asks for; see `Student.answer`."""

    explain: bool
    evaluate: bool
    confidence: bool
    strategy: Strategy = field(default_factory=Strategy)
    constrained: bool = False
    abstain_below: float | None = None
    escalate_to: BiggerModel | None = None


@dataclass(frozen=True)
class _Drawing:
    """How chains of thought are drawn: each of a question's samples has a seed of its own for answer and for rationale."""

    temperature: float
    seed: int
    samples: int

    def how(self, part: int, rows: int) -> Decoding:
        seeds = np.random.SeedSequence((abs(self.seed), part)).generate_state(self.samples)
        return Decoding(temperature=self.temperature, seeds=tuple(int(seeds[row % self.samples]) for row in range(rows)))


class _Growing:
    """Text that grows token by token; half a character is kept back until it is whole."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder, self._tokens, self._shown = encoder, [], ""  # type: ignore[var-annotated]

    def with_token(self, token: int) -> str:
        self._tokens.append(token)
        text = self._encoder.text(self._tokens)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new

    def rest(self) -> str:
        """Return what was kept back."""
        text = self._encoder.text(self._tokens)
        return text[len(self._shown) :] if text.startswith(self._shown) else ""


class _GivenUp(Exception):
    """Nobody reads the stream any more."""


def _part_teller(tell: Told | None) -> Callable[[str], Callable[[int, int], None] | None]:
    """Return for each part who is told of its tokens."""

    def of_part(part: str) -> Callable[[int, int], None] | None:
        if tell is None:
            return None
        return lambda row, token: tell(part, row, token)

    return of_part
