"""The student on the device.

    student = Student.load("runs/quickstart/bundle-int8")
    answer = student.answer("Ann has 3 apples and buys 4. How many does she have now?", explain=True)
    answer.text, answer.value, answer.confidence, answer.rationale

    student.answer([{"role": "user", "content": "lights on in the hall"}, …])      a dialogue, where it was trained with dialogues

Answering is one short `predict:`. Explanations, self-evaluation, sampling several chains of thought, abstaining and escalating are
optional. A student may be used from several threads at once: calls share no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

from mmedge.bundle import Bundle, open_bundle
from mmedge.engines.bundles import open_speaker
from mmedge.engines.speaker import Evidence, Judgement, OnToken, Sampling, Speaker, Thought, Wanted, Written
from mmedge.errors import MmedgeError, TooLong
from mmedge.machine import usable_cores
from mmedge.runtime.answers import Answer, Piece
from mmedge.runtime.confidence import OF_THE_ANSWER, Confidence, Signal, Threshold, fields_of
from mmedge.runtime.escalation import BiggerModel, escalated_all
from mmedge.runtime.options import AnswerOptions, OptionChanges, SettledOptions, strategy_of
from mmedge.runtime.strategies import Sample, Strategy, StrategyKind, vote
from mmedge.runtime.streaming import OnPartToken, streamed
from mmedge.tasks.base import ChainOfThought, Example
from mmedge.tasks.dialogue import WrongMessage, characters, read_messages
from mmedge.tasks.forms.form import AnswerForm

MAX_QUESTION_CHARACTERS = 1_000_000  # only the first few hundred tokens are read; anything this long is not a question
BATCH = 16  # questions answered together
DEFAULT = AnswerOptions()
Question = Example | str | Sequence[Mapping[str, Any]]  # messages, as OpenAI's API has them


class Student:
    """A bundle, opened.

    Args:
        bundle: A checked bundle.
        speaker: Asks its engine.
        threads: Threads within one operation; by default what the bundle asks for, or else all usable cores.
    """

    def __init__(self, bundle: Bundle, speaker: Speaker, threads: int | None = None) -> None:
        self.bundle, self.speaker = bundle, speaker
        cores = usable_cores()
        # a small student's linear layer is done before a second thread wakes up, but a second batch keeps a second core busy
        self.workers = max(1, cores // (threads or bundle.manifest.threads or cores))
        self.confidence = Confidence.from_manifest(bundle.manifest.confidence)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        threads: int | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        *,
        hold: bool = False,
    ) -> Student:
        """Open a bundle folder, checking every file against its hash.

        Args:
            folder: What `mmedge export` wrote.
            threads: See the class.
            device: Where it computes; `auto` takes a CUDA device where there is one and the bundle is meant for it (fp16).
            hold: Read the weights into memory of this process's own, rather than map a file that others may share: nothing that
                happens to the bundle's files matters any more.

        Raises:
            MmedgeError: It is not a bundle, a file is missing or damaged, or CUDA is asked for and cannot be had.
        """
        bundle = open_bundle(Path(folder), hold)
        speaker = open_speaker(bundle, threads, device)  # what it needs of the weights is its own now
        return cls(replace(bundle, held={}), speaker, threads)

    # ------------------------------------------------------------------------------------------------------- asking

    def answer(
        self,
        question: Question,
        options: AnswerOptions = DEFAULT,
        *,
        choices: Sequence[str] = (),
        **changes: Unpack[OptionChanges],
    ) -> Answer:
        """Answer one question.

        Args:
            question: Text, an example of the task, or the messages of a dialogue, whose last one is the question.
            options: What is asked for.
            choices: What to choose from, where the question is not an example and the task has choices.
            **changes: Fields of the options, as keywords.

        Raises:
            MmedgeError: The question is too long, it has earlier messages and the student reads none, or an option does not fit.
        """
        return self.answer_all([_as_example(question, self.bundle.form, choices)], options, **changes)[0]

    def answer_all(
        self,
        questions: Iterable[Question],
        options: AnswerOptions = DEFAULT,
        *,
        batch: int = BATCH,
        **changes: Unpack[OptionChanges],
    ) -> list[Answer]:
        """Answer several questions, `batch` of them together; each gets the answer that it would get alone.

        Returns:
            One answer for each question, in their order. See `answer` for the arguments.
        """
        settled = self.settled(options, **changes)
        examples = self._checked(questions)
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise MmedgeError(f"batch must be a whole number of at least 1, got {batch!r}")
        size = max(1, batch // settled.strategy.samples) if settled.strategy.kind == "samples" else batch
        workers = self.workers if size > 1 else 1
        if workers > 1 and len(examples) > 1:
            size = max(1, min(size, -(-len(examples) // workers)))
            with ThreadPoolExecutor(workers) as pool:
                starts = range(0, len(examples), size)
                batches = pool.map(lambda start: self.answered(examples[start : start + size], settled), starts)
                return [answer for answers in batches for answer in answers]
        return [
            answer for start in range(0, len(examples), size) for answer in self.answered(examples[start : start + size], settled)
        ]

    def stream(
        self,
        question: Question,
        options: AnswerOptions = DEFAULT,
        *,
        choices: Sequence[str] = (),
        **changes: Unpack[OptionChanges],
    ) -> Iterator[Piece | Answer]:
        """Answer one question and yield what is written while it is written; the whole answer comes last.

        Abandoning the iteration stops the student before its next token. Where the answer may yet be withheld, or is
        chosen among several, nothing is yielded before that is decided. See `answer` for the arguments.
        """
        settled = self.settled(options, **changes)
        examples = self._checked([_as_example(question, self.bundle.form, choices)])

        def answered(told: OnPartToken) -> Answer:
            return self.answered(examples, settled, None if settled.decides_afterwards else told)[0]

        return streamed(answered, self.speaker.encoder)

    @property
    def reads_dialogues(self) -> bool:
        """Whether it was trained with dialogues, and so reads earlier messages."""
        return bool(self.speaker.encoder.prompts.turn)

    @property
    def reads_system_messages(self) -> bool:
        """Whether a dialogue may begin with a system message."""
        return self.reads_dialogues and self.speaker.encoder.chat is not None

    def settled(self, options: AnswerOptions = DEFAULT, **changes: Unpack[OptionChanges]) -> SettledOptions:
        """Return options completed from the bundle's settings; see `AnswerOptions.settled`."""
        return options.changed(changes).settled(self.bundle, self.confidence)

    def strategy_with(self, kind: StrategyKind | None = None, **changes: Any) -> Strategy:
        """Return the bundle's strategy with some of its settings changed; those that are None stay.

        Raises:
            MmedgeError: A setting is not allowed, or would change nothing.
        """
        given = {name: value for name, value in {"kind": kind, **changes}.items() if value is not None}
        return strategy_of(self.bundle).changed(given)

    def threshold(self, *, target_accuracy: float | None = None, max_withheld: float | None = None) -> Threshold:
        """Return a threshold for `abstain_below`, chosen on validation questions; see `Confidence.threshold`.

        Raises:
            MmedgeError: The bundle's confidence was not calibrated, no threshold reaches the aim, or there is not one aim.
        """
        options = AnswerOptions(target_accuracy=target_accuracy, max_withheld=max_withheld)
        found = options.chosen_threshold(self.bundle, self.confidence)
        if found is None:
            raise MmedgeError("a threshold needs an aim", "give either target_accuracy or max_withheld")
        return found

    @property
    def judges(self) -> bool:
        """Whether what it says of its own answers means anything: it learned to judge them, or its confidence rests on that."""
        learned = self.bundle.manifest.student.learned
        rests = self.confidence is not None and self.confidence.chosen not in OF_THE_ANSWER
        return learned is None or "verdict" in learned or rests

    def examined(self, questions: Sequence[Example], constrained: bool | None = None) -> list[tuple[str, Evidence]]:
        """Answer questions in one batch, and return each answer with everything that the confidence is made of.

        What a student that did not learn to judge says of its answers is left out.

        Args:
            questions: The questions.
            constrained: Allow only answers of the task's form; None for the bundle's setting.
        """
        learned = bool(self.speaker.encoder.prompts.answer_verdict)
        constrained = self.bundle.manifest.answering.constrained if constrained is None else constrained
        wanted = Wanted(judgement=self.judges, answer_verdict=learned, constrained=constrained)
        thoughts = self.speaker.thoughts(questions, wanted)
        evidence = map(self.speaker.evidence, questions, thoughts)
        return [(thought.text, found) for thought, found in zip(thoughts, evidence, strict=True)]

    def sampled(self, questions: Sequence[Example], strategy: Strategy) -> list[list[Sample]]:
        """Sample chains of thought for questions in one batch, constrained where the bundle is, and let the student judge each."""
        constrained = self.bundle.manifest.answering.constrained
        return [_samples(thoughts) for thoughts in self._sampled(questions, strategy, constrained)]

    def judge(
        self, questions: Sequence[Example | str], cots: Sequence[ChainOfThought], *, explain: bool = False
    ) -> list[Judgement]:
        """Evaluate chains of thought, each on its question; P(correct) comes from the verdict tokens' logits.

        Raises:
            MmedgeError: There is not one chain of thought for each question.
        """
        if len(questions) != len(cots) or not all(isinstance(cot, ChainOfThought) for cot in cots):
            raise MmedgeError("judge takes one chain of thought (mmedge.tasks.ChainOfThought) for each question")
        return self.speaker.judge(questions, cots, explain=explain) if questions else []

    # ------------------------------------------------------------------------------------------------------ the work

    def answered(
        self,
        examples: Sequence[Example],
        settled: SettledOptions,
        told: OnPartToken | None = None,
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answer some questions together, in the caller's thread.

        Args:
            examples: The questions.
            settled: What is asked for, from `settled`.
            told: Called with part, row and token as they are written; what it raises ends the writing and is raised here.
            sampling: How each answer is sampled, and how many rows in a row are samples of one question; greedy where None.
        """
        if settled.strategy.kind == "samples":
            answers = self._voted(examples, self._sampled(examples, settled.strategy, settled.constrained), settled)
        else:
            answers = self._at_once(examples, settled, told, sampling)
        if not settled.may_withhold:
            return answers
        form = self.bundle.form

        def doubt(answer: Answer) -> str | None:
            valid = answer.value is not None or not form.takes_json
            return settled.doubt(answer.confidence, answer.fields, valid=valid)

        withheld = [one if (why := doubt(one)) is None else _withheld(one, form, why) for one in answers]
        return self._escalated(examples, withheld, settled.escalate_to)

    def _checked(self, questions: Iterable[Question]) -> list[Example]:
        """Return questions as examples.

        Raises:
            MmedgeError: They are not a list of questions, one is too long, or one has earlier messages and the student reads none.
        """
        if isinstance(questions, (str, Example)):
            raise MmedgeError("answer_all takes a list of questions", "ask one question with answer")
        if not isinstance(questions, Iterable):
            raise MmedgeError(f"answer_all takes a list of questions, got {type(questions).__name__}")
        examples = [_as_example(one, self.bundle.form, name=str(place)) for place, one in enumerate(questions)]
        for example in examples:
            self.check(example)
        return examples

    def check(self, example: Example) -> None:
        """Refuse what the student cannot read.

        Raises:
            MmedgeError: The question is too long, or has earlier messages and the student reads none.
        """
        if (length := characters(example)) > MAX_QUESTION_CHARACTERS:
            raise TooLong(
                f"a question of {length:,} characters is too long", f"shorten it to {MAX_QUESTION_CHARACTERS:,} characters at most"
            )
        self.speaker.reasoning_context(example)
        if example.turns and example.turns[0].role == "system" and not self.reads_system_messages:
            raise MmedgeError("there is a system message, and this student was trained without any", "leave it out")

    def limited(self, max_answer_tokens: int) -> Student:
        """Return the same student, whose answers have at most so many tokens."""
        found = copy(self)
        limit = min(max_answer_tokens, self.speaker.max_answer_tokens)
        found.speaker = replace(self.speaker, max_answer_tokens=limit)
        return found

    def _at_once(
        self, examples: Sequence[Example], settled: SettledOptions, told: OnPartToken | None, sampling: Sampling | None
    ) -> list[Answer]:
        """Answer, and where the strategy is `retry`, sample where the confidence is low."""
        strategy, signal = settled.strategy, self._signal(settled)
        bare = signal == "answer_verdict"
        judged = settled.evaluate or signal not in OF_THE_ANSWER or (strategy.kind in ("confidence", "retry") and not bare)
        wanted = Wanted(
            rationale=settled.explain,
            judgement=judged,
            answer_verdict=bare,
            evaluation=settled.evaluate and settled.explain,
            constrained=settled.constrained,
            sampling=sampling,
            on_token=_by_part(told),
        )
        thoughts = self.speaker.thoughts(examples, wanted)
        answers = self._answers(examples, thoughts, settled, signal)
        if strategy.kind == "retry":
            doubtful = [row for row, answer in enumerate(answers) if (answer.confidence or 0.0) < strategy.retry_below]
            if doubtful:
                again = [examples[row] for row in doubtful]
                sampled = self._sampled(again, strategy, settled.constrained)
                for place, row in enumerate(doubtful):
                    sampled[place].insert(0, thoughts[row])
                for row, answer in zip(doubtful, self._voted(again, sampled, settled), strict=True):
                    answers[row] = answer
        return answers

    def _best_signal(self) -> Signal:
        return self.confidence.chosen if self.confidence else "answer"

    def _signal(self, settled: SettledOptions) -> Signal:
        """Return what the confidence comes from: the best signal where it was asked for, otherwise the best cheap one."""
        if self.confidence is None:
            return "answer"
        wanted = settled.confidence or settled.evaluate or settled.strategy.kind in ("confidence", "retry")
        return self.confidence.chosen if wanted else self.confidence.default

    def _answers(
        self, examples: Sequence[Example], thoughts: Sequence[Thought], settled: SettledOptions, signal: Signal
    ) -> list[Answer]:
        evidence = list(map(self.speaker.evidence, examples, thoughts))
        if self.confidence is not None:
            confidences = self.confidence.of(evidence, signal)
        else:
            signal, confidences = "answer", [math.exp(min(0.0, thought.log_probability)) for thought in thoughts]
        found = []
        for example, thought, confidence, seen in zip(examples, thoughts, confidences, evidence, strict=True):
            shown = thought.judgement if settled.evaluate else None
            found.append(
                Answer(
                    text=thought.text,
                    value=self.bundle.form.value_of(thought.text),
                    confidence=confidence,
                    signal=signal,
                    calibrated=self.confidence is not None,
                    fields=fields_of(self.confidence, seen),
                    probabilities=self.speaker.probabilities(example) if settled.probabilities else None,
                    rationale=thought.rationale if settled.explain else None,
                    verdict=shown.verdict if shown else None,
                    probability_correct=shown.probability_correct if shown else None,
                    evaluation=shown.evaluation if shown else None,
                    written=thought.written,
                )
            )
        return found

    def _sampled(self, examples: Sequence[Example], strategy: Strategy, constrained: bool) -> list[list[Thought]]:
        """Sample chains of thought, and let the student judge each."""
        count = strategy.samples
        sampling = Sampling(strategy.temperature, strategy.seed, count)
        rows = [example for example in examples for _ in range(count)]
        bare = self._best_signal() == "answer_verdict"
        wanted = Wanted(judgement=True, answer_verdict=bare, constrained=constrained, sampling=sampling)
        thoughts = self.speaker.thoughts(rows, wanted)
        return [thoughts[row * count : (row + 1) * count] for row in range(len(examples))]

    def _voted(self, examples: Sequence[Example], sampled: Sequence[list[Thought]], settled: SettledOptions) -> list[Answer]:
        """Let the chains of thought of each question vote."""
        answers = []
        for example, thoughts in zip(examples, sampled, strict=True):
            samples = _samples(thoughts)
            place, share = vote(samples, self.bundle.form, example.choices, settled.strategy.choose_by)
            answer = self._answers([example], [thoughts[place]], settled, self._best_signal())[0]
            written = _with_others(answer.written, thoughts[:place] + thoughts[place + 1 :])
            readable = tuple(replace(sample, text=self.bundle.form.readable(sample.text)) for sample in samples)
            found = replace(answer, confidence=share, signal="samples", calibrated=False, samples=readable, written=written)
            answers.append(found)
        return answers

    def _escalated(self, examples: Sequence[Example], answers: list[Answer], bigger: BiggerModel | None) -> list[Answer]:
        """Let a bigger model answer what is withheld."""
        rows = [row for row, answer in enumerate(answers) if answer.withheld]
        if bigger is None or not rows:
            return answers
        replies = escalated_all(bigger, [examples[row] for row in rows], self.bundle.form)
        for row, reply in zip(rows, replies, strict=True):
            if isinstance(reply, str):
                answers[row] = replace(answers[row], problem=reply)
                continue
            answers[row] = Answer(
                text=reply.text,
                value=self.bundle.form.value_of(reply.text),
                rationale=reply.rationale if answers[row].rationale is not None else None,
                guess=answers[row].guess,
                source=bigger.name,
                escalation=reply,
                samples=answers[row].samples,
                written=answers[row].written,
            )
        return answers


def _with_others(written: Written | None, others: Sequence[Thought]) -> Written | None:
    """Return what was written of an answer, with how many tokens the samples took that it was chosen among."""
    if written is None:
        return None
    rest = [one.written for one in others if one.written is not None]
    return replace(written, sampled_tokens=sum(len(one.tokens) + one.reasoning_tokens for one in rest))


def _withheld(answer: Answer, form: AnswerForm, why: str) -> Answer:
    return replace(answer, text="", value=None, withheld=True, doubt=why, guess=form.readable(answer.text))


def _as_example(question: Question, form: AnswerForm, choices: Sequence[str] = (), name: str = "question") -> Example:
    """Return a question as an example.

    Raises:
        MmedgeError: It is not a question.
    """
    if isinstance(question, Example):
        return question
    if choices and not form.takes_choices:
        raise MmedgeError("questions of this task have no choices to choose from", "leave choices out")
    if isinstance(question, str):
        return Example(name, question, None, tuple(choices))
    if not isinstance(question, (list, tuple)):
        raise MmedgeError(f"a question must be text, an Example or a list of messages, got {type(question).__name__}")
    try:
        turns, last = read_messages(question, form)
    except WrongMessage as error:
        raise MmedgeError(str(error), 'a message is such as {"role": "user", "content": "…"}') from None
    return Example(name, last, None, tuple(choices), turns)


def _samples(thoughts: Sequence[Thought]) -> list[Sample]:
    return [
        Sample(thought.text, thought.rationale or "", thought.judgement.probability_correct if thought.judgement else 0.0)
        for thought in thoughts
    ]


def _by_part(told: OnPartToken | None) -> Callable[[str], OnToken | None]:
    """Return the callback for the tokens of each part."""

    def of_part(part: str) -> OnToken | None:
        if told is None:
            return None
        return lambda row, token: told(part, row, token)

    return of_part
