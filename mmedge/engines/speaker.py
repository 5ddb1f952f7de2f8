"""The speaker: answer, rationale, verdict and evaluation of any engine, as text. The only place that prompts a student.

    speaker = Speaker(engine, encoder, form, max_answer_tokens=16, max_rationale_tokens=64)
    speaker.thoughts([example], judged=True)[0].text, .rationale, .judgement.probability_correct

Everything is written from one reading of the question: the engine's conversation keeps what its prompts have in common. Knows
how a student is asked, and nothing about calibration, thresholds or bigger models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmedge.engines.engine import Engine
from mmedge.engines.generation import Decoding, Logits
from mmedge.tasks.base import ChainOfThought, Example, Turn
from mmedge.tasks.encoding import CHARACTERS, Prompt, PromptEncoder
from mmedge.tasks.forms.constraints import Constrainer
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.prompts import VERDICTS, Context, Kind


@dataclass(frozen=True)
class Judgement:
    """A self-evaluation.

    Attributes:
        verdict: `correct`, `wrong` or `uncertain`, the most probable of the three.
        probability_correct: P(correct) among the three, from the logits; not calibrated.
        evaluation: The rationale of the verdict, where it was asked for.
        log_odds: Of `correct` against the other two.
        evaluation_tokens: How many were written before the verdict.
    """

    verdict: str
    probability_correct: float
    evaluation: str | None = None
    log_odds: float = 0.0
    evaluation_tokens: int = 0


@dataclass(frozen=True)
class Evidence:
    """What is known about one answer, from how the student wrote it.

    Attributes:
        answer: Log-probability of the whole answer, its end included, in nats.
        evaluation: Log-odds of `correct` against the other verdicts; None where it was not asked.
        agreement: 1 where the rationale reaches the same answer, -1 where it reaches another, 0 where it reaches none or none
            was written.
        rationale: Mean log-probability of the rationale's tokens, in nats; 0 where none was written.
        answer_verdict: Log-odds of `correct` after the bare answer; None where it was not asked.
        fields: Log-probability of each field of a structured answer, by path, in nats; empty for other answers.
    """

    answer: float
    evaluation: float | None = None
    agreement: float = 0.0
    rationale: float = 0.0
    answer_verdict: float | None = None
    fields: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """The tokens of one answer.

    Attributes:
        prompt_tokens: How many were read.
        tokens: Those of the answer, without the end token.
        log_probabilities: Of each, in nats, the end token's last where it ended by itself; empty where the engine gives none.
        ended: Whether it ended by itself, not at the limit.
        rationale_tokens: How many the rationale has.
        evaluation_tokens: How many the rationale of the verdict has.
        sampled_tokens: How many the other samples have, with their rationales, where the answer was chosen among several.
        left_out: How many of the oldest messages before the question were not read, since there was no room.
        cut_short: Whether a constraint ended it at the limit, where something else was likelier.
        question_cut: Whether the end of the question was not read, since there was no room.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    ended: bool
    rationale_tokens: int = 0
    evaluation_tokens: int = 0
    sampled_tokens: int = 0
    left_out: int = 0
    cut_short: bool = False
    question_cut: bool = False

    @property
    def reasoning_tokens(self) -> int:
        """How many were written besides the answer's."""
        return self.rationale_tokens + self.evaluation_tokens + self.sampled_tokens


@dataclass
class Thought:
    """What a student wrote for one question.

    Attributes:
        text: The answer.
        log_probability: Of the whole answer, in nats.
        rationale: The chain of thought, where it was written.
        rationale_log_probability: Mean over its tokens, in nats.
        conclusion: The answer that the chain of thought comes to; None where it states none. A judgement is about it.
        judgement: The student's own, where it was asked for.
        answer_verdict: Log-odds of `correct` after the bare answer, where they were asked for.
        written: The answer's tokens.
    """

    text: str
    log_probability: float
    rationale: str | None = None
    conclusion: str | None = None
    rationale_log_probability: float = 0.0
    judgement: Judgement | None = None
    answer_verdict: float | None = None
    written: Written | None = None


@dataclass(frozen=True)
class Sampling:
    """How texts are sampled: each of a question's samples has a seed of its own for answer and for rationale.

    Attributes:
        temperature: Above 0.
        seed: The same seed gives the same texts, whatever else is asked in the batch.
        samples: How many rows in a row belong to one question.
    """

    temperature: float
    seed: int
    samples: int

    def decoding(self, part: int, rows: int) -> Decoding:
        """Return how a part (0: answers, 1: rationales) of some rows is written."""
        seeds = np.random.SeedSequence((abs(self.seed), part)).generate_state(self.samples)
        return Decoding(temperature=self.temperature, seeds=tuple(int(seeds[row % self.samples]) for row in range(rows)))


OnToken = Callable[[int, int], None]  # row, token


def _told_nothing(part: str) -> OnToken | None:
    return None


@dataclass(frozen=True)
class Wanted:
    """What is asked for besides answers.

    Attributes:
        rationale: Write rationales.
        judgement: Write rationales and look at the verdicts.
        evaluation: Write the verdicts' rationales too.
        answer_verdict: Look at the verdict after the bare answer; only of a student that has learned it.
        constrained: Only answers of the task's form.
        sampling: How to sample; greedy where None.
        scored: Keep the log-probabilities of what is written; an engine with a loop of its own may not have them.
        on_token: Returns the callback for each token of a part (`answer`, `rationale`, `evaluation`).
    """

    rationale: bool = False
    judgement: bool = False
    evaluation: bool = False
    answer_verdict: bool = False
    constrained: bool = False
    sampling: Sampling | None = None
    scored: bool = True
    on_token: Callable[[str], OnToken | None] = _told_nothing


ANSWER = Wanted()
UNLIKELY = 1e-4  # P of a beginning below which the texts that begin so are not told apart


@dataclass(frozen=True)
class Speaker:
    """Asks one engine.

    Attributes:
        engine: Continues token sequences.
        encoder: Makes prompts and reads what is written.
        form: What answers look like; None where that is not known, and anything may be written.
        max_answer_tokens: The longest answer.
        max_rationale_tokens: The longest rationale or evaluation.
    """

    engine: Engine
    encoder: PromptEncoder
    form: AnswerForm | None
    max_answer_tokens: int
    max_rationale_tokens: int

    @cached_property
    def constrainer(self) -> Constrainer:
        """What answers and rationales may be."""
        return self.form.constrainer(self.encoder) if self.form is not None else Constrainer()

    def on(self, engine: Engine) -> Speaker:
        """Return the same for another engine, such as one that watches this one."""
        found = replace(self, engine=engine)
        if "constrainer" in self.__dict__:
            found.__dict__["constrainer"] = self.constrainer  # computed once
        return found

    # -------------------------------------------------------------------------------------------------- contexts

    def reasoning_context(self, example: Example) -> Context:
        """Return what comes before an answer's and a rationale's task word."""
        return self.encoder.prompts.reasoning_context(example)

    def evaluation_context(self, question: Example | str, cot: ChainOfThought) -> Context:
        """Return what comes before a verdict's and an evaluation's task word."""
        return self.encoder.prompts.evaluation_context(question, cot)

    def prompt(self, kind: Kind, context: Context) -> Prompt:
        """Return a whole prompt."""
        return self.encoder.prompt(kind, context)

    # ---------------------------------------------------------------------------------------------------- asking

    def write(self, kind: Kind, contexts: Sequence[Context], max_new_tokens: int) -> list[str]:
        """Continue each prompt greedily, in one batch."""
        return self.write_prompts([self.prompt(kind, context) for context in contexts], max_new_tokens)

    def write_prompts(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding | None = None) -> list[str]:
        """Continue encoded prompts, in one batch."""
        return [self.encoder.text(tokens) for tokens in self.engine.generate(prompts, max_new_tokens, how or Decoding()).tokens]

    def write_all(
        self, kind: Kind, contexts: Sequence[Context], max_new_tokens: int, rows: int, advance: Callable[[int], None] | None = None
    ) -> list[str]:
        """Continue any number of prompts greedily, those of similar length together; texts come back in the prompts' order.

        Args:
            kind: Which task word to use.
            contexts: One for each prompt.
            max_new_tokens: The longest text.
            rows: Prompts in one batch.
            advance: Called with how many more are written.
        """
        texts = [""] * len(contexts)
        for places, prompts in self.batches(kind, contexts, rows):
            for place, text in zip(places, self.write_prompts(prompts, max_new_tokens), strict=True):
                texts[place] = text
            if advance is not None:
                advance(len(places))
        return texts

    def batches(self, kind: Kind, contexts: Sequence[Context], rows: int) -> Iterator[tuple[list[int], list[Prompt]]]:
        """Yield prompts of similar length together, with their places in `contexts`."""
        prompts = [self.prompt(kind, context) for context in contexts]
        order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place].context) + len(prompts[place].begun), place))
        for first in range(0, len(order), rows):
            places = order[first : first + rows]
            yield places, [prompts[place] for place in places]

    def thoughts(self, examples: Sequence[Example], wanted: Wanted = ANSWER) -> list[Thought]:
        """Answer questions in one batch, and write what else is wanted, all from one reading of each.

        Args:
            examples: One for each row; the same one several times for several samples.
            wanted: What to write.
        """
        asked = _Asked(self, [self.reasoning_context(example) for example in examples])
        thoughts = asked.answers(examples, wanted)
        if wanted.answer_verdict:
            asked.answer_verdicts(examples, thoughts)
        if wanted.rationale or wanted.judgement:
            asked.rationales(thoughts, wanted)
        if wanted.judgement:
            if self.form is not None:
                for thought, example in zip(thoughts, examples, strict=True):
                    thought.conclusion = thought.conclusion or self.form.conclusion(thought.rationale or "", example)
            cots = [ChainOfThought(thought.rationale or "", thought.conclusion or thought.text) for thought in thoughts]
            found = asked.judgements(examples, cots, wanted.evaluation, wanted.on_token("evaluation"))
            for thought, judgement in zip(thoughts, found, strict=True):
                thought.judgement = judgement
                if thought.written is not None:
                    thought.written = replace(thought.written, evaluation_tokens=judgement.evaluation_tokens)
        return thoughts

    def judge(
        self, questions: Sequence[Example | str], cots: Sequence[ChainOfThought], *, explain: bool = False
    ) -> list[Judgement]:
        """Evaluate chains of thought in one batch, each on its question."""
        return _Asked(self, []).judgements(questions, cots, explain, None)

    def evidence(self, example: Example, thought: Thought) -> Evidence:
        """Return what a thought shows of its answer, what its rationale comes to included."""
        fields = self.field_log_probabilities(thought)
        if thought.judgement is None:
            return Evidence(thought.log_probability, answer_verdict=thought.answer_verdict, fields=fields)
        agreement = 0.0
        if self.form is not None and thought.conclusion is not None:
            agreement = 1.0 if self.form.agrees(thought.text, thought.conclusion, example.choices) else -1.0
        judged, rationale = thought.judgement.log_odds, thought.rationale_log_probability
        return Evidence(thought.log_probability, judged, agreement, rationale, thought.answer_verdict, fields)

    def field_log_probabilities(self, thought: Thought) -> dict[str, float]:
        """Return the log-probability of each field of an answer, by path: of its tokens and of the one that ends it, in nats."""
        written = thought.written
        spans = self.form.field_spans(thought.text) if self.form is not None else {}
        if not spans or written is None or len(written.log_probabilities) < len(written.tokens):
            return {}
        ends = [len(self.encoder.text(written.tokens[: count + 1])) for count in range(len(written.tokens))]
        ends += [len(thought.text) + 1] * (len(written.log_probabilities) - len(ends))  # the end token's
        starts = [0, *ends[:-1]]
        tokens = list(zip(starts, ends, written.log_probabilities, strict=True))
        return {path: sum(score for a, b, score in tokens if a <= end and b > start) for path, (start, end) in spans.items()}

    def probabilities(self, example: Example) -> dict[str, float]:
        """Return how likely each of the texts is that an answer may be, the likeliest first; empty where answers are open.

        They are the student's own, of the tokens that may follow alone, and sum to 1. Of texts with an unlikely beginning
        (`UNLIKELY`) only that is computed; they share its probability equally.
        """
        if self.form is None or not (texts := self.form.labels or example.choices):
            return {}
        limit = self.max_answer_tokens
        spelled = {text: self.form.canonical(text, example.choices) or text for text in texts}
        written = {text: tuple(self.encoder.target(said[: CHARACTERS * limit], limit)) for text, said in spelled.items()}
        prompt, conversation = self.prompt("predict", self.reasoning_context(example)), self.engine.conversation()
        found = dict.fromkeys(written, 0.0)
        open_: list[tuple[int, float, list[str]]] = [(0, 1.0, list(written))]  # tokens in common, probability, texts
        while open_:
            count, p, alike = open_.pop()
            first, by_token = written[alike[0]], dict[int, list[str]]()
            for text in alike:
                if len(written[text]) > count:
                    by_token.setdefault(written[text][count], []).append(text)
            if not by_token or p < UNLIKELY:
                found |= dict.fromkeys(alike, p / len(alike))
            elif len(by_token) == 1:
                open_.append((count + 1, p, alike))
            else:
                logits = conversation.next_logits([prompt], first[:count])[0, list(by_token)].astype(np.float64)
                open_ += [
                    (count + 1, p * float(share), some)
                    for some, share in zip(by_token.values(), _shares(logits[None])[0], strict=True)
                ]
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    def judging_contexts(self, questions: Sequence[Example | str], cots: Sequence[ChainOfThought], rows: int) -> list[Context]:
        """Return what comes before verdicts; a student that evaluates first writes its evaluations for them, `rows` together."""
        contexts = [self.evaluation_context(question, cot) for question, cot in zip(questions, cots, strict=True)]
        prompts = self.encoder.prompts
        if not prompts.reasoned:
            return contexts
        texts = self.write_all("explain", contexts, self.max_rationale_tokens, rows)
        return [prompts.reasoned_context(one, prompts.evaluation_of(text)) for one, text in zip(contexts, texts, strict=True)]

    def verdict_probabilities(self, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
        """Return P(correct), P(wrong), P(uncertain) after prompts of evaluation contexts, (prompts, 3); each row sums to 1."""
        begun, tokens = self.encoder.verdict_tokens()
        return _shares(self.engine.next_logits(prompts, begun)[:, tokens].astype(np.float64))


def _shares(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of each row."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    found: NDArray[np.float64] = shares / shares.sum(1, keepdims=True)
    return found


def _log_odds(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-odds of the first of each row's classes against the others."""
    found: NDArray[np.float64] = logits[:, 0] - np.logaddexp.reduce(logits[:, 1:], axis=1)
    return found


_Read = tuple[str, tuple[Turn, ...]]


def _read(context: Context) -> _Read:
    return context.read, context.turns


@dataclass
class _Asked:
    """One batch of questions being asked: the engine's conversation, and the tokens of contexts, each encoded once."""

    speaker: Speaker
    contexts: Sequence[Context]
    read: dict[_Read, tuple[tuple[int, ...], int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.conversation = self.speaker.engine.conversation()

    def prompts(self, kind: Kind, contexts: Sequence[Context]) -> list[Prompt]:
        """Return prompts, what they read encoded once."""
        encoder = self.speaker.encoder
        new = {_read(context): context for context in contexts if _read(context) not in self.read}
        alone = {read: context for read, context in new.items() if not context.turns}
        if len(alone) > 1:
            self.read |= {read: (ids, 0) for read, ids in zip(alone, encoder.contexts(list(alone.values())), strict=True)}
        self.read |= {read: encoder.fitted(context) for read, context in new.items() if read not in self.read}
        return [Prompt(self.read[_read(context)][0], encoder.begun(kind, context)) for context in contexts]

    def answers(self, examples: Sequence[Example], wanted: Wanted) -> list[Thought]:
        speaker, limit = self.speaker, self.speaker.max_answer_tokens
        allowed = tuple(speaker.constrainer.answer(example, limit) for example in examples) if wanted.constrained else ()
        how = wanted.sampling.decoding(0, len(examples)) if wanted.sampling else Decoding()
        constraints = allowed if any(allowed) else ()
        how = replace(how, scored=wanted.scored, constraints=constraints, on_token=wanted.on_token("answer"))
        prompts = self.prompts("predict", self.contexts)
        written = self.conversation.generate(prompts, limit, how)
        scores = written.log_probabilities or [[]] * len(written.tokens)
        ends = written.ended or [len(row) < limit for row in written.tokens]
        left_out = [self.read[_read(context)][1] for context in self.contexts]
        full = [len(prompt.context) >= speaker.encoder.max_input_tokens for prompt in prompts]
        cut = [one and speaker.encoder.surplus(context) > 0 for one, context in zip(full, self.contexts, strict=True)]
        thoughts = [
            Thought(
                speaker.encoder.text(row),
                sum(scored),
                written=Written(
                    len(prompt.context) + len(prompt.begun),
                    tuple(row),
                    tuple(scored),
                    ended,
                    left_out=out,
                    question_cut=unread,
                ),
            )
            for prompt, row, scored, ended, out, unread in zip(prompts, written.tokens, scores, ends, left_out, cut, strict=True)
        ]
        for thought, constraint in zip(thoughts, allowed, strict=False):
            if thought.written is not None and getattr(constraint, "cut_short", False):
                thought.written = replace(thought.written, cut_short=True)
        return thoughts

    def answer_verdicts(self, questions: Sequence[Example], thoughts: Sequence[Thought]) -> None:
        """Add the verdict after the bare answer to thoughts: a few tokens after what was just written."""
        prompts = self.speaker.encoder.prompts
        contexts = [prompts.answer_context(question, one.text) for question, one in zip(questions, thoughts, strict=True)]
        begun, tokens = self.speaker.encoder.verdict_tokens()
        logits = self.conversation.next_logits(self.prompts("predict", contexts), begun)[:, tokens].astype(np.float64)
        for thought, odds in zip(thoughts, _log_odds(logits), strict=True):
            thought.answer_verdict = float(odds)

    def rationales(self, thoughts: Sequence[Thought], wanted: Wanted) -> None:
        """Add rationales to thoughts."""
        speaker = self.speaker
        how = wanted.sampling.decoding(1, len(thoughts)) if wanted.sampling else Decoding()
        prompts = self.prompts("explain", self.contexts)
        allowed = tuple(speaker.constrainer.rationale() for _ in thoughts)
        on_token = wanted.on_token("rationale")
        constraints = allowed if any(allowed) else ()
        how = replace(how, scored=wanted.scored, constraints=constraints, on_token=on_token, draft=True)
        written = self.conversation.generate(prompts, speaker.max_rationale_tokens, how)
        scores = written.log_probabilities or [[]] * len(written.tokens)
        for thought, tokens, scored in zip(thoughts, written.tokens, scores, strict=True):
            thought.rationale, thought.conclusion = speaker.encoder.prompts.split(speaker.encoder.text(tokens))
            thought.rationale_log_probability = sum(scored) / max(1, len(scored))
            if thought.written is not None:
                thought.written = replace(thought.written, rationale_tokens=len(tokens))

    def judgements(
        self, questions: Sequence[Example | str], cots: Sequence[ChainOfThought], explain: bool, on_token: OnToken | None
    ) -> list[Judgement]:
        speaker = self.speaker
        contexts = [speaker.evaluation_context(question, cot) for question, cot in zip(questions, cots, strict=True)]
        begun, tokens = speaker.encoder.verdict_tokens()
        reasoned = speaker.encoder.prompts.reasoned
        evaluations: list[str | None] = [None] * len(contexts)
        lengths = [0] * len(contexts)
        if explain or reasoned:
            how = Decoding(on_token=on_token if explain else None, draft=True)
            written = self.conversation.generate(self.prompts("explain", contexts), speaker.max_rationale_tokens, how)
            evaluations = [speaker.encoder.prompts.evaluation_of(speaker.encoder.text(ids)) for ids in written.tokens]
            lengths = [len(ids) for ids in written.tokens]
        asked = contexts
        if reasoned:
            pairs = zip(contexts, evaluations, strict=True)
            asked = [speaker.encoder.prompts.reasoned_context(context, text or "") for context, text in pairs]
        found: Logits = self.conversation.next_logits(self.prompts("predict", asked), begun)
        logits = found[:, tokens].astype(np.float64)
        shares = _shares(logits)
        log_odds = _log_odds(logits)
        return [
            Judgement(VERDICTS[int(row.argmax())], float(row[0]), evaluation if explain else None, float(odds), length)
            for row, odds, evaluation, length in zip(shares, log_odds, evaluations, lengths, strict=True)
        ]
