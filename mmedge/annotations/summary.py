"""What a store of annotations is worth: yield, agreement, diversity, correctness, verdicts, the bill, and what each filter keeps.

Every text is parsed once, and a summary of each question is kept in the store, so that the report over a million annotations is
added up in about a second. A question's summary is made again when annotations are added, and all of them when the way of reading
or the questions have changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmedge.annotations.bill import Bill, bill
from mmedge.annotations.questions import RunTask
from mmedge.annotations.reading import AnnotatedExample, ReadingReport, read_annotations, reading_limits
from mmedge.annotations.selection import Selection, groups_of, select
from mmedge.annotations.store import AnnotationStore
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.statistics import ClusteredShare, Proportion
from mmedge.storage import require_file, sha256_file, sha256_json
from mmedge.tasks import Task, Verdict
from mmedge.tasks.reading import plain

READER_VERSION = 2  # goes up when texts are read or summarized in another way
KEEPS: tuple[Selection, ...] = ("all", "self_consistent", "judged_correct")
CHUNK = 1000  # questions read at a time


def reading_key(recipe: Recipe, task: Task) -> str:
    """Return the hash of everything that decides what the texts of a store say: the questions, their labels, the reader."""
    values = recipe.task.model_dump(mode="json")
    paths = [require_file(Path(values["train_file"]), "task.train_file")] if "train_file" in values else []
    paths += [require_file(Path(values["data"]) / "train.jsonl", "task.data")] if "data" in values else []
    paths += [task.new_questions] if isinstance(task, RunTask) and task.new_questions else []
    return sha256_json([READER_VERSION, values, [sha256_file(path) for path in paths], reading_limits(recipe)])


def refresh(recipe: Recipe, task: Task, store: AnnotationStore, progress: Progress) -> int:
    """Read the questions whose summary is missing, and store it; return how many there were."""
    stale = store.stale(reading_key(recipe, task))
    if not stale:
        return 0
    by_id = {example.id: example for example in task.load().train}
    store.put_summaries((id_, "") for id_ in stale if id_ not in by_id)
    known = [id_ for id_ in stale if id_ in by_id]
    limits = reading_limits(recipe)
    with progress.task("reading annotations", total=len(known)) as step:
        for start in range(0, len(known), CHUNK):
            ids = known[start : start + CHUNK]
            reports: dict[str, ReadingReport] = {}
            read, _ = read_annotations(store, task, [by_id[id_] for id_ in ids], limits, some=True, each=reports)
            store.put_summaries(
                (each.example.id, _summarize(each, reports.get(each.example.id, ReadingReport()), task)) for each in read
            )
            step.advance(len(ids))
    return len(stale)


# --------------------------------------------------------------------------------------------- one question's summary

_COUNTS = (
    *("cots", "parsed", "distinct", "largest", "groups", "labelled", "right", "majority_right"),
    *("evaluations", "read"),
    *(f"{verdict}_{answer}" for verdict in ("correct", "wrong", "uncertain") for answer in ("right", "wrong")),
    *("correct", "wrong", "uncertain", "diversity", "pairs"),
    *(f"{how}_{what}" for how in KEEPS for what in ("kept", "right", "questions")),
)
_AT = {name: index for index, name in enumerate(_COUNTS)}


def _summarize(annotated: AnnotatedExample, report: ReadingReport, task: Task) -> str:
    """Return what the texts about one question say, as JSON: counts in the order of `_COUNTS`, and what could not be read."""
    form, example, cots = task.form, annotated.example, annotated.cots
    values = dict.fromkeys(_COUNTS, 0)
    values["cots"], values["parsed"] = sum(report.cots.values()), len(cots)
    values["evaluations"], values["read"] = sum(report.evaluations.values()), report.evaluations["parsed"]
    right: dict[int, bool] = {}
    if example.label is not None:
        values["labelled"] = 1
        right = {each.sample: form.agrees(each.cot.pseudo_label, example.label, example.choices) for each in cots}
        values["right"] = sum(right.values())
    words = [frozenset(_bigrams(each.cot.rationale)) for each in cots]
    values["distinct"] = len({plain(each.cot.rationale) for each in cots})
    distances = [_distance(a, b) for index, a in enumerate(words[:8]) for b in words[index + 1 : 8]]
    values["diversity"], values["pairs"] = round(1000 * sum(distances)), len(distances)
    groups = groups_of(cots, example, form)
    values["groups"] = len(groups)
    if groups:
        largest = max(groups, key=len)  # the first of several: a vote that is split is decided by order
        values["largest"] = len(largest)
        values["majority_right"] = int(right.get(largest[0].sample, False))
    for each in cots:
        for evaluation in each.evaluations:
            verdict = evaluation.verdict.value
            values[verdict] += 1
            if right:
                values[f"{verdict}_{'right' if right[each.sample] else 'wrong'}"] += 1
    for how in KEEPS:
        kept = select([annotated], how, form)[0].cots
        values[f"{how}_kept"], values[f"{how}_questions"] = len(kept), int(bool(kept))
        values[f"{how}_right"] = sum(right.get(each.sample, False) for each in kept)
    unread = [{reason: count for reason, count in each.items() if reason != "parsed"} for each in (report.cots, report.evaluations)]
    counts = [values[name] for name in _COUNTS]
    return json.dumps([counts, *unread] if any(unread) else [counts], separators=(",", ":"))


def _bigrams(text: str) -> list[tuple[str, str]]:
    words = plain(text).split()
    return list(pairwise(words)) or [(text, "")]


def _distance(left: frozenset[tuple[str, str]], right: frozenset[tuple[str, str]]) -> float:
    """Return the Jaccard distance of two texts' pairs of neighbouring words: 0 for the same ones, 1 for none in common."""
    return 1 - len(left & right) / len(left | right)


# ------------------------------------------------------------------------------------------- sums over all questions


@dataclass
class _StoreTotals:
    """Sums over the summaries of all questions.

    Attributes:
        questions: How many questions have annotations.
        foreign: Questions with annotations that the task does not have.
        sums: By the names of `_COUNTS`.
        unread: By kind, why texts could not be read, and how many.
        per_question: How many questions have so many readable chains of thought.
        agreement: The share of a question's chains of thought with its most frequent answer, over questions with several.
        pseudo_labels: Chains of thought whose answer is the human label's.
        majority_right: Questions with a label whose most frequent answer it is.
        majority_of: Questions with a label and an answer.
        keeps: By choice, how many of the chains of thought that are kept are right.
    """

    questions: int = 0
    foreign: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    unread: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    per_question: Counter[int] = field(default_factory=Counter)
    agreement: ClusteredShare = field(default_factory=ClusteredShare)
    pseudo_labels: ClusteredShare = field(default_factory=ClusteredShare)
    majority_right: int = 0
    majority_of: int = 0
    keeps: dict[str, ClusteredShare] = field(default_factory=lambda: {how: ClusteredShare() for how in KEEPS})

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        """Add the counts of some questions; many at a time, since a million are added up while somebody waits."""
        for name, column in zip(_COUNTS, zip(*rows, strict=True), strict=True):
            self.sums[name] += sum(column)
        parsed, largest, labelled, right = (_AT[name] for name in ("parsed", "largest", "labelled", "right"))
        kept = [(self.keeps[how], _AT[f"{how}_kept"], _AT[f"{how}_right"]) for how in KEEPS]
        for row in rows:
            self.per_question[row[parsed]] += 1
            if row[parsed] > 1:
                self.agreement.add(row[largest], row[parsed])
            if row[labelled]:
                self.majority_right += row[_AT["majority_right"]]
                self.majority_of += row[parsed] > 0
                self.pseudo_labels.add(row[right], row[parsed])
                for share, at, right_at in kept:
                    share.add(row[right_at], row[at])


def _totals(store: AnnotationStore) -> _StoreTotals:
    found = _StoreTotals()
    rows: list[list[int]] = []
    for _, content in store.summaries():
        if not content:
            found.foreign += 1
            continue
        counts, *unread = json.loads(content)
        found.questions += 1
        rows.append(counts)
        if len(rows) == 5000:
            found.add(rows)
            rows = []
        for summed, reasons in zip(found.unread, unread, strict=False):
            summed.update(reasons)
    if rows:
        found.add(rows)
    return found


# ------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class CotCounts:
    """The chains of thought of a store.

    Attributes:
        stored: How many there are.
        parsed: How many could be read.
        unparsed: Why the others could not, and how many, the most frequent first.
        distinct: How many different rationales there are, question by question.
        questions_by_count: How many questions have so many readable ones, by that count.
    """

    stored: int
    parsed: int
    unparsed: dict[str, int]
    distinct: int
    questions_by_count: dict[int, int]


@dataclass(frozen=True)
class EvaluationCounts:
    """The self-evaluations of a store; see `CotCounts`. `verdicts` says how many have each verdict."""

    stored: int
    parsed: int
    unparsed: dict[str, int]
    verdicts: dict[str, int]


@dataclass(frozen=True)
class KeptCots:
    """What one choice of `method.keep` would train on; the accuracy of the pseudo-labels is None without human labels."""

    cots: int
    questions: int
    pseudo_label_accuracy: ClusteredShare | None


@dataclass(frozen=True)
class AnnotationReport:
    """Everything that is known of a run's annotations.

    Attributes:
        recipe: Its name.
        task: Its kind.
        teacher: Who wrote the annotations.
        questions: How many questions have annotations.
        foreign: How many questions with annotations the task does not have.
        cots: The chains of thought.
        evaluations: The self-evaluations.
        agreement: The share of a question's chains of thought with its most frequent answer.
        answers_per_question: The mean number of different answers.
        diversity: The mean distance of a question's rationales, from 0 (the same words) to 1 (none in common).
        pseudo_label_accuracy: Pseudo-labels that are the human label; None without human labels.
        majority_vote_accuracy: Questions whose most frequent answer is the human label; None without human labels.
        verdict_confusion: By verdict, how many answers it was about are `right` and `wrong`; None without human labels.
        verdict_accuracy: Verdicts that are right; None without human labels.
        verdict_balanced_accuracy: Their balanced accuracy; None where no answer is right, or none wrong.
        keep: By choice of `method.keep`, what it would train on.
        bill: What it cost; None where nobody was asked.
    """

    recipe: str
    task: str
    teacher: str
    questions: int
    foreign: int
    cots: CotCounts
    evaluations: EvaluationCounts
    agreement: ClusteredShare
    answers_per_question: float | None
    diversity: float | None
    pseudo_label_accuracy: ClusteredShare | None
    majority_vote_accuracy: Proportion | None
    verdict_confusion: dict[str, dict[str, int]] | None
    verdict_accuracy: Proportion | None
    verdict_balanced_accuracy: float | None
    keep: dict[Selection, KeptCots]
    bill: Bill | None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = _as_json({each.name: getattr(self, each.name) for each in fields(self)})
        return found | {"questions_that_the_task_does_not_have": found.pop("foreign")}


def _as_json(value: Any) -> Any:
    """Return a part of the report as JSON."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    return {str(name): _as_json(one) for name, one in value.items()} if isinstance(value, dict) else value


def report(recipe: Recipe, store: AnnotationStore) -> AnnotationReport:
    """Return everything that is known of a run's annotations; `refresh` the store before."""
    found = _totals(store)
    sums, labelled = found.sums, found.sums["labelled"] > 0
    verdicts = [verdict.value for verdict in Verdict]
    confusion = {verdict: {answer: sums[f"{verdict}_{answer}"] for answer in ("right", "wrong")} for verdict in verdicts}
    right, wrong = (sum(row[answer] for row in confusion.values()) for answer in ("right", "wrong"))
    sound = confusion["correct"]["right"], confusion["wrong"]["wrong"]
    return AnnotationReport(
        recipe=recipe.name,
        task=recipe.task.kind,
        teacher=_teacher(recipe),
        questions=found.questions,
        foreign=found.foreign,
        cots=CotCounts(
            sums["cots"],
            sums["parsed"],
            dict(found.unread[0].most_common()),
            sums["distinct"],
            dict(sorted(found.per_question.items())),
        ),
        evaluations=EvaluationCounts(
            sums["evaluations"], sums["read"], dict(found.unread[1].most_common()), {verdict: sums[verdict] for verdict in verdicts}
        ),
        agreement=found.agreement,
        answers_per_question=_ratio(sums["groups"], found.questions - found.per_question[0]),
        diversity=_ratio(sums["diversity"] / 1000, sums["pairs"]),
        pseudo_label_accuracy=found.pseudo_labels if labelled else None,
        majority_vote_accuracy=Proportion(found.majority_right, found.majority_of) if labelled else None,
        verdict_confusion=confusion if right + wrong else None,
        verdict_accuracy=Proportion(sum(sound), right + wrong) if right + wrong else None,
        verdict_balanced_accuracy=(sound[0] / right + sound[1] / wrong) / 2 if right and wrong else None,
        keep={
            how: KeptCots(sums[f"{how}_kept"], sums[f"{how}_questions"], found.keeps[how] if labelled else None) for how in KEEPS
        },
        bill=bill(recipe, store),
    )


def refreshed_report(recipe: Recipe, task: Task, store: AnnotationStore, progress: Progress) -> AnnotationReport:
    """Sum up what was not summed up yet, and return everything that is known of a run's annotations."""
    refresh(recipe, task, store, progress)
    return report(recipe, store)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _teacher(recipe: Recipe) -> str:
    section = recipe.teacher
    if section is None:
        return "none"
    name = getattr(section, "model", None) or getattr(section, "source", None) or getattr(section, "cots", "")
    return f"{section.kind}: {name}" if isinstance(name, str) and name else section.kind


def examples_to_show(recipe: Recipe, store: AnnotationStore, task: Task, count: int) -> Sequence[AnnotatedExample]:
    """Return some questions with everything about them, spread evenly over the store; `refresh` it before."""
    by_id = {example.id: example for example in task.load().train}
    ids = [id_ for id_, content in store.summaries() if content and id_ in by_id]
    step = max(1, len(ids) // count)
    chosen = [by_id[id_] for id_ in ids[::step][:count]]
    return read_annotations(store, task, chosen, reading_limits(recipe), some=True)[0]
