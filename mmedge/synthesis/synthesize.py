"""`mmedge synthesize`: the teacher writes new questions from the training questions, until there are as many as wanted.

    round 1   as many as are missing of each kind ─► collector ─► read, compare, take
    round 2   what is still missing, and as many more as were refused before …

A teacher that is sampled is asked through the same collector, store and limits as for annotations. What it wrote stays in
`synthesis.sqlite`; the questions that were taken are `synthesized.jsonl`, which joins the training questions of the run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from mmedge.annotations.bill import bill
from mmedge.annotations.collection import Collection
from mmedge.annotations.schema import ACCEPTED, WHOLE
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError
from mmedge.folders import Run, work_on
from mmedge.progress import Progress
from mmedge.recipe import EmbeddedTeacherSection, Recipe, RecordedTeacherSection, SampledTeacherSection
from mmedge.recipe.synthesis import MOST
from mmedge.storage import iterate_jsonl, require_file
from mmedge.synthesis.asking import QuestionPrompts, QuestionReader, load_template
from mmedge.synthesis.briefs import Brief, Briefs
from mmedge.synthesis.report import SynthesisReport, nearest_similarity
from mmedge.synthesis.sieve import Sieve, check_seeds, unlike_tests
from mmedge.tasks import Splits, Task, Unparsed, build_task
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.tasks.synthesized import PREFIX, NewQuestion, is_synthesized, read_questions, write_questions
from mmedge.teachers.collect import ask_teacher, checked_limits, prompts_of
from mmedge.teachers.collector import CollectionResult
from mmedge.teachers.embedded import NAME as EMBEDDED
from mmedge.teachers.plan import NO_LIMITS, CollectionPlan, Limits, collection_plan

TEXTS_PER_QUESTION = 2.0  # how often a request is repeated whose text holds no question
HOPELESS = 20  # a round of so many texts that brings no new question is the last
SHOWN = 5
# what a text is called that holds no question
_UNREAD: dict[str, str] = {
    Unparsed.NO_ANSWER.value: "no question found",
    Unparsed.INVALID.value: "a placeholder, a name of the schema, or broken characters",
}


@dataclass(frozen=True)
class Synthesis:
    """What a recipe's synthesis starts from.

    Attributes:
        recipe: The recipe, with the number of questions that is wanted.
        task: Its task, without new questions.
        splits: The task's questions.
        briefs: What is asked for.
    """

    recipe: Recipe
    task: Task
    splits: Splits
    briefs: Briefs

    @property
    def dialogues(self) -> int:
        """Training questions that end a dialogue: the teacher is not shown these."""
        return sum(bool(example.turns) for example in self.splits.train)

    @property
    def shares(self) -> dict[str, int]:
        return self.briefs.shares(self.recipe.synthesis.count)

    def prompts(self) -> QuestionPrompts:
        """Return how the teacher is asked; it knows no briefs yet."""
        path = self.recipe.synthesis.prompt
        return QuestionPrompts(load_template(Path(path) if path else None), {}, self.task.form)

    def reader(self) -> QuestionReader:
        """Return what reads the questions out of the teacher's texts."""
        said = [seed.question for seed in self.splits.train]
        unspoken = [name for name in self.task.form.unspoken() if not any(name in question for question in said)]
        return QuestionReader(self.task.form.takes_choices, tuple(unspoken))

    def plan(self, limits: Limits = NO_LIMITS) -> CollectionPlan:
        """Return what a request asks for: one text."""
        section = self.sampled()
        plan = replace(collection_plan(section, limits), cots=1, evaluations=0, attempts=TEXTS_PER_QUESTION)
        return replace(plan, cot_tokens=self.recipe.synthesis.max_tokens)

    def sampled(self) -> SampledTeacherSection:
        """Return the teacher's section, with the temperature of a synthesis."""
        section = self.recipe.teacher
        assert isinstance(section, SampledTeacherSection)
        return section.model_copy(update={"temperature": self.recipe.synthesis.temperature})

    def next_round(self, store: AnnotationStore | None, taken: Sequence[NewQuestion]) -> list[Brief]:
        """Return the briefs that are asked next.

        Args:
            store: What the teacher wrote before, if there is any.
            taken: The questions that were taken of it.
        """
        return self._queue(store).next(self._missing(taken))

    def requests_at_most(self, store: AnnotationStore | None, taken: Sequence[NewQuestion]) -> int:
        """Return how many requests are still allowed: `synthesis.attempts` a question, each repeated where no text can be read."""
        return math.ceil(self._queue(store).left(self._missing(taken)) * TEXTS_PER_QUESTION)

    def _missing(self, taken: Sequence[NewQuestion]) -> dict[str, int]:
        there = Counter(question.kind for question in taken)
        return {kind: share - there[kind] for kind, share in self.shares.items() if share > there[kind]}

    def _queue(self, store: AnnotationStore | None) -> _Queue:
        return _Queue(self, Collection(store).planned() if store else {})


def prepare(recipe: Recipe, count: int | None) -> Synthesis:
    """Read a recipe's questions, and check that new ones can be written from them.

    Raises:
        MmedgeError: The recipe names no teacher that writes questions, a training question is a test question, or the prompts for
            annotations cannot be used.
    """
    if count is not None:
        if count > MOST:
            raise MmedgeError(f"--count {count:,} is more than a run may have", f"give at most {MOST:,}")
        recipe = recipe.model_copy(update={"synthesis": recipe.synthesis.model_copy(update={"count": count})})
    if recipe.teacher is None:
        raise MmedgeError("the recipe has no teacher to write questions", "add a teacher section")
    if isinstance(recipe.teacher, RecordedTeacherSection) and recipe.teacher.questions is None:
        raise MmedgeError("the recorded teacher has no questions", "name their file in teacher.questions, or use another teacher")
    if recipe.synthesis.file is not None:
        raise MmedgeError("synthesis.file names questions that were written before", "leave it out to write new ones into the run")
    task = build_task(recipe.task.model_dump())
    if isinstance(recipe.teacher, SampledTeacherSection):
        prompts_of(recipe.teacher, task)  # what annotate would refuse, before anything is paid for
    splits = task.load()
    if reserved := next((example for example in splits.train if is_synthesized(example.id)), None):
        raise MmedgeError(
            f"the training question {reserved.id!r:.60} has an id as new questions have", f"ids must not begin with {PREFIX!r}"
        )
    check_seeds(splits)
    alone = tuple(example for example in splits.train if not example.turns)  # a teacher writes single questions
    if not alone:
        raise MmedgeError(
            "every training question ends a dialogue (messages), and synthesize writes questions that stand alone, after others",
            "give some training questions with question in place of messages",
        )
    seeds = unlike_tests(alone, splits, recipe.synthesis.similarity)
    if not seeds:
        raise MmedgeError(
            "every training question is similar to a test question, so none can be shown to the teacher",
            "give other training questions, or raise synthesis.similarity",
        )
    return Synthesis(recipe, task, splits, Briefs(task.form, seeds, recipe.synthesis))


def synthesize(
    recipe: Recipe, folder: Path, progress: Progress, count: int | None = None, limits: Limits = NO_LIMITS
) -> SynthesisReport:
    """Let the recipe's teacher write new questions into a run; what is there is kept.

    Args:
        recipe: The recipe.
        folder: The run.
        progress: Where progress is shown.
        count: How many questions the run is to have, in place of the recipe's number.
        limits: The most that may be sent and spent for the run, annotations included.

    Raises:
        MmedgeError: See `prepare` and `work_on`; the teacher fails, or nothing that it writes is a new question.
    """
    given = prepare(recipe, count)
    if given.dialogues:
        progress.line(
            f"{given.dialogues} of {len(given.splits.train)} training questions end a dialogue; the teacher is not shown these, "
            "and writes questions that stand alone"
        )
    with work_on(folder, recipe, shared=True) as run:
        taken = _taken(run)
        sieve = Sieve(given.splits, recipe.synthesis.similarity, given.shares, taken)
        if isinstance(recipe.teacher, SampledTeacherSection):
            return _sampled(given, run, sieve, progress, limits)
        written, shares = _written(given)
        if shares is not None:
            sieve = Sieve(given.splits, recipe.synthesis.similarity, shares, taken)
        with progress.task("new questions", total=given.recipe.synthesis.count, done=len(taken)) as step:
            before = {question.id for question in taken}
            for question in written:
                if not sieve.missing():
                    break
                if isinstance(question, str):
                    sieve.refused[_UNREAD.get(question, question)] += 1
                elif question.id not in before and sieve.offer(question):
                    step.advance()
        _keep(run, sieve)
        return _report(given, sieve, None, None)


def _taken(run: Run) -> tuple[NewQuestion, ...]:
    """Return the questions that were taken before.

    Raises:
        MmedgeError: Their file is damaged.
    """
    if not run.synthesized.is_file():
        return ()
    try:
        return read_questions(run.synthesized)
    except MmedgeError as error:
        kept = f"what the teacher wrote is in {run.synthesis.name}" if run.synthesis.is_file() else "it is written again"
        raise MmedgeError(error.what, f"mend it, or delete it: {kept}") from None


def _keep(run: Run, sieve: Sieve) -> None:
    """Write the questions that were taken."""
    if not sieve.taken:
        refused = ", ".join(f"{count} {reason}" for reason, count in sieve.refused.most_common())
        raise MmedgeError(
            f"the teacher wrote no new question ({refused or 'no text came back'})",
            "look at what it is asked: mmedge synthesize RECIPE --show-prompts; raise synthesis.temperature if it repeats itself",
        )
    write_questions(run.synthesized, sieve.taken)


def _report(given: Synthesis, sieve: Sieve, ended: CollectionResult | None, store: AnnotationStore | None) -> SynthesisReport:
    written_for = Counter(question.kind for question in sieve.taken)
    kinds = {kind: written_for[kind] for kind in given.briefs.kinds if kind}
    step = max(1, len(sieve.taken) // SHOWN)
    return SynthesisReport(
        recipe=given.recipe.name,
        wanted=given.recipe.synthesis.count,
        taken=len(sieve.taken),
        kinds=kinds,
        refused=dict(sieve.refused.most_common()),
        nearest=nearest_similarity(sieve.taken),
        complete=ended is None or ended.complete,
        stopped=ended.stopped if ended else "",
        postponed=ended.postponed if ended else 0,
        bill=bill(given.recipe, store) if store else None,
        examples=tuple(question.question for question in sieve.taken[::step][:SHOWN]),
    )


# -------------------------------------------------------------------------------------- teachers that write by themselves


def _written(given: Synthesis) -> tuple[Iterator[NewQuestion | str], dict[str, int] | None]:
    """Return what a teacher writes that is not sampled: questions, or why a text holds none; and other shares than usual."""
    section = given.recipe.teacher
    if isinstance(section, EmbeddedTeacherSection):
        assert isinstance(given.task, ArithmeticTask)  # the recipe's schema says so
        most = math.ceil(given.recipe.synthesis.count * max(10.0, given.recipe.synthesis.attempts))
        task = given.task
        return (NewQuestion(f"{PREFIX}{n}", task.synthesized(n).text, teacher=EMBEDDED) for n in range(most)), None
    assert isinstance(section, RecordedTeacherSection) and section.questions is not None
    file = require_file(Path(section.questions), "teacher.questions")
    questions = list(_recorded(file, given.reader()))
    kinds = set(given.briefs.kinds)
    questions = [one if isinstance(one, str) or one.kind in kinds else replace(one, kind="") for one in questions]
    if any(isinstance(question, NewQuestion) and not question.kind for question in questions):  # then nothing can be balanced
        return iter(questions), {"": given.recipe.synthesis.count}
    return iter(questions), None


def _recorded(path: Path, reader: QuestionReader) -> Iterator[NewQuestion | str]:
    """Yield the questions of a recording.

    Raises:
        MmedgeError: The file is missing, or a record is broken; the message names file and line.
    """
    for number, record in iterate_jsonl(path):
        text = record.get("text")
        if not isinstance(text, str):
            raise MmedgeError(f"{path}:{number}: field 'text' must be text")
        found = reader.read(text)
        if isinstance(found, Unparsed):
            yield found.value
            continue
        id_ = str(record.get("id") or number)
        name = id_ if is_synthesized(id_) else f"{PREFIX}{id_}"
        yield NewQuestion(name, *found, str(record.get("kind") or ""), str(record.get("teacher") or "unknown"))


# ---------------------------------------------------------------------------------------------- teachers that are sampled


class _Queue:
    """The briefs that are still to be asked.

    Args:
        given: What a synthesis starts from.
        planned: The briefs that were asked for before, by id, with the state of each.
    """

    def __init__(self, given: Synthesis, planned: dict[str, str]) -> None:
        briefs = self._briefs = given.briefs
        attempts = given.recipe.synthesis.attempts
        self._most = {kind: math.ceil(share * attempts) for kind, share in given.shares.items()}
        self._asked: dict[str, list[Brief]] = {kind: [] for kind in briefs.kinds}
        self._open: dict[str, list[Brief]] = {kind: [] for kind in briefs.kinds}
        for kind in briefs.kinds:
            while (brief := briefs.brief(kind, len(self._asked[kind]))).id in planned:
                self._asked[kind].append(brief)
                if planned[brief.id] == "open":
                    self._open[kind].append(brief)

    def asked(self) -> list[Brief]:
        """Return all briefs that were asked for, those of all kinds in turn."""
        return _in_turn(self._asked.values())

    def left_open(self) -> list[Brief]:
        """Return what a collection that ended early left to be asked; a round is judged when all of it is there."""
        found = _in_turn(self._open.values())
        self._open = {kind: [] for kind in self._open}
        return found

    def left(self, missing: dict[str, int]) -> int:
        """Return how many briefs may still be asked, those that were left open included."""
        return sum(max(0, self._most[kind] - len(self._asked[kind])) + len(self._open[kind]) for kind in missing)

    def next(self, missing: dict[str, int], yielded: float = 1.0) -> list[Brief]:
        """Return what is asked next, kinds in turn: what was left open, and new briefs.

        Args:
            missing: How many questions of each kind are wanted.
            yielded: The share of texts that are taken.
        """
        found: list[list[Brief]] = []
        for kind, count in missing.items():
            left, self._open[kind] = self._open[kind], []
            there = len(self._asked[kind])
            more = min(self._most[kind] - there, math.ceil(count / yielded) - len(left))
            new = [self._briefs.brief(kind, there + place) for place in range(max(0, more))]
            self._asked[kind] += new
            found.append([*left, *new])
        return _in_turn(found)


def _in_turn(by_kind: Iterable[Sequence[Brief]]) -> list[Brief]:
    """Return the briefs of all kinds: the first of each, then the second of each, and so on."""
    rows = zip_longest(*by_kind)
    return [brief for row in rows for brief in row if brief is not None]


def _sampled(given: Synthesis, run: Run, sieve: Sieve, progress: Progress, limits: Limits) -> SynthesisReport:
    """Ask in rounds until there are enough questions, or there is no sense in asking on."""
    section, plan, prompts = given.sampled(), given.plan(limits), given.prompts()
    reader = given.reader()
    with AnnotationStore(run.synthesis) as store:
        plan = checked_limits(plan, run.annotations)
        queue = _Queue(given, Collection(store).planned())
        looked: set[str] = {question.id for question in sieve.taken}
        left = queue.left_open()
        if not left:
            _look(queue.asked(), looked, sieve, reader, store)
        ended: CollectionResult | None = None
        while briefs := left or queue.next(sieve.missing(), _yield(len(sieve.taken), len(looked))):
            left = []
            prompts.briefs.update((brief.id, brief) for brief in briefs)
            subjects = [brief.subject() for brief in briefs]
            ended = ask_teacher(section, reader, subjects, prompts, plan, store, progress, "new questions")
            before = len(sieve.taken)
            offered = _look(queue.asked(), looked, sieve, reader, store)
            if sieve.taken:
                write_questions(run.synthesized, sieve.taken)
            if not ended.complete or (offered >= HOPELESS and len(sieve.taken) == before):
                break
        for outcome, number in Collection(store).outcomes()["cot"].items():
            if outcome not in (ACCEPTED, WHOLE):
                sieve.refused[_UNREAD.get(outcome, outcome)] += number
        if ended is None or ended.complete:
            _keep(run, sieve)
        return _report(given, sieve, ended, store)


def _yield(taken: int, offered: int) -> float:
    """Return the share of texts that were taken, as far as it is known; at least a quarter, so that no round is huge."""
    return max(0.25, taken / offered) if offered else 1.0


def _look(briefs: Sequence[Brief], looked: set[str], sieve: Sieve, reader: QuestionReader, store: AnnotationStore) -> int:
    """Offer the questions in the store that were not looked at yet, in the order of their briefs; return how many."""
    texts = {annotation.example_id: annotation for annotation in store.annotations("cot")}
    offered = 0
    for brief in briefs:
        annotation = texts.get(brief.id)
        if annotation is None or brief.id in looked:
            continue
        looked.add(brief.id)
        found = reader.read(annotation.text)
        if not isinstance(found, Unparsed):  # as it was read when it was stored, but for a reader that is newer
            sieve.offer(NewQuestion(brief.id, *found, brief.kind, annotation.teacher))
            offered += 1
    return offered
