"""What a store of annotations is worth: yield, agreement, diversity, correctness, verdicts, the bill, and what each choice keeps.

Every text is read once; what it says is kept question by question in the store, so that the summary of a million annotations is
added up in about a second. A summary is made anew where annotations were added, and everywhere when the way of reading or the
questions have changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmedge.annotations.reading import AnnotatedExample, ReadingReport, read_annotations
from mmedge.annotations.selection import Selection, select
from mmedge.annotations.store import AnnotationStore
from mmedge.progress import Progress
from mmedge.recipe import OpenAITeacherSection, Recipe
from mmedge.statistics import ClusteredShare, Proportion
from mmedge.storage import sha256_file, sha256_json
from mmedge.tasks import Task, Verdict
from mmedge.tasks.reading import plain
from mmedge.teachers.collect import most_read

READER_VERSION = 1  # goes up when texts are read or summed up in another way
KEEPS: tuple[Selection, ...] = ("all", "self_consistent", "judged_correct")
CHUNK = 1000  # questions read at a time


def reading_key(recipe: Recipe) -> str:
    """Return the hash of everything that decides what the texts of a store say: the questions, their labels, the reader."""
    values = recipe.task.model_dump(mode="json")
    paths = [values[name] for name in ("train_file",) if name in values]
    paths += [str(Path(values["data"]) / "train.jsonl")] if "data" in values else []
    return sha256_json([READER_VERSION, values, [sha256_file(Path(path)) for path in paths], most_read(recipe)])


def refresh(recipe: Recipe, task: Task, store: AnnotationStore, progress: Progress) -> int:
    """Read the questions whose summary is missing, and store it; return how many there were."""
    stale = store.stale(reading_key(recipe))
    if not stale:
        return 0
    by_id = {example.id: example for example in task.load().train}
    foreign = [id_ for id_ in stale if id_ not in by_id]
    store.put_summaries((id_, "") for id_ in foreign)
    known = [id_ for id_ in stale if id_ in by_id]
    most = most_read(recipe)
    with progress.task("reading annotations", total=len(known)) as step:
        for start in range(0, len(known), CHUNK):
            ids = known[start : start + CHUNK]
            summaries = []
            reports: dict[str, ReadingReport] = {}
            read, _ = read_annotations(store, task, [by_id[id_] for id_ in ids], most, some=True, each=reports)
            for annotated in read:
                id_ = annotated.example.id
                summaries.append((id_, summed_up(annotated, reports.get(id_, ReadingReport()), task)))
            store.put_summaries(summaries)
            step.advance(len(ids))
    return len(stale)


_NUMBERS = (
    *("cots", "parsed", "distinct", "largest", "groups", "labelled", "right", "majority_right"),
    *(
        "evaluations",
        "read",
        "correct_right",
        "correct_wrong",
        "wrong_right",
        "wrong_wrong",
        "uncertain_right",
        "uncertain_wrong",
    ),
    *("correct", "wrong", "uncertain", "diversity", "pairs"),
    *(f"{how}_{what}" for how in KEEPS for what in ("kept", "right", "questions")),
)
_AT = {name: index for index, name in enumerate(_NUMBERS)}


def summed_up(annotated: AnnotatedExample, report: ReadingReport, task: Task) -> str:
    """Return what the texts about one question say, as JSON: numbers in the order of `_NUMBERS`, and what could not be read."""
    judge, example, cots = task.form, annotated.example, annotated.cots
    values = dict.fromkeys(_NUMBERS, 0)
    values["cots"], values["parsed"] = sum(report.cots.values()), len(cots)
    values["evaluations"], values["read"] = sum(report.evaluations.values()), report.evaluations["parsed"]
    right: dict[int, bool] = {}
    if example.label is not None:
        values["labelled"] = 1
        right = {each.sample: judge.agrees(each.cot.pseudo_label, example.label, example.choices) for each in cots}
        values["right"] = sum(right.values())
    words = [frozenset(_bigrams(each.cot.rationale)) for each in cots]
    values["distinct"] = len({plain(each.cot.rationale) for each in cots})
    distances = [_distance(a, b) for index, a in enumerate(words[:8]) for b in words[index + 1 : 8]]
    values["diversity"], values["pairs"] = round(1000 * sum(distances)), len(distances)
    groups: list[list[int]] = []
    for each in cots:
        for group in groups:
            if judge.agrees(each.cot.pseudo_label, cots[group[0]].cot.pseudo_label, example.choices):
                group.append(cots.index(each))
                break
        else:
            groups.append([cots.index(each)])
    values["groups"] = len(groups)
    if groups:
        largest = max(groups, key=len)  # the first of several: a vote that is split is decided by order
        values["largest"] = len(largest)
        values["majority_right"] = int(right.get(cots[largest[0]].sample, False))
    for each in cots:
        for evaluation in each.evaluations:
            verdict = evaluation.verdict.value
            values[verdict] += 1
            if right:
                values[f"{verdict}_{'right' if right[each.sample] else 'wrong'}"] += 1
    for how in KEEPS:
        kept = select([annotated], how, judge)[0].cots
        values[f"{how}_kept"], values[f"{how}_questions"] = len(kept), int(bool(kept))
        values[f"{how}_right"] = sum(right.get(each.sample, False) for each in kept)
    unread = [dict(report.cots - Counter(parsed=report.cots["parsed"])), dict(report.evaluations)]
    unread[1].pop("parsed", None)
    numbers = [values[name] for name in _NUMBERS]
    return json.dumps([numbers, *unread] if any(unread) else [numbers], separators=(",", ":"))


def _bigrams(text: str) -> list[tuple[str, str]]:
    words = plain(text).split()
    return list(pairwise(words)) or [(text, "")]


def _distance(left: frozenset[tuple[str, str]], right: frozenset[tuple[str, str]]) -> float:
    """Return the Jaccard distance of two texts' pairs of neighbouring words: 0 for the same ones, 1 for none in common."""
    return 1 - len(left & right) / len(left | right)


@dataclass
class Worth:
    """Everything that is known of a run's annotations.

    Attributes:
        questions: How many questions have annotations.
        planned: How many questions the task has, where that is known without reading it; else None.
        foreign: Questions with annotations that the task does not have.
        sums: Sums over all questions, by the names of `_NUMBERS`.
        unread: By kind, why texts could not be read, and how many.
        per_question: How many questions have so many readable chains of thought.
        agreement: The share of a question's chains of thought with its most frequent answer, over questions with several.
        pseudo_labels: Chains of thought whose answer is the human label's.
        majority: Questions whose most frequent answer is.
        keeps: By choice: how many chains of thought and questions are kept, and how many of them are right.
    """

    questions: int = 0
    foreign: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    unread: dict[str, Counter[str]] = field(default_factory=lambda: {"cots": Counter(), "evaluations": Counter()})
    per_question: Counter[int] = field(default_factory=Counter)
    agreement: ClusteredShare = field(default_factory=ClusteredShare)
    pseudo_labels: ClusteredShare = field(default_factory=ClusteredShare)
    majority: tuple[int, int] = (0, 0)
    keeps: dict[str, ClusteredShare] = field(default_factory=lambda: {how: ClusteredShare() for how in KEEPS})

    def add(self, content: str) -> None:
        """Add the summary of one question."""
        if not content:
            self.foreign += 1
            return
        numbers, *unread = json.loads(content)
        self.questions += 1
        self._columns.append(numbers)
        if len(self._columns) >= 5000:
            self._add_columns()
        for kind, counts in zip(("cots", "evaluations"), unread, strict=False):
            self.unread[kind].update(counts)

    def __post_init__(self) -> None:
        self._columns: list[list[int]] = []

    def _add_columns(self) -> None:
        rows, self._columns = self._columns, []
        if not rows:
            return
        for name, column in zip(_NUMBERS, zip(*rows, strict=True), strict=True):
            self.sums[name] += sum(column)
        parsed, largest, labelled, right = (_AT[name] for name in ("parsed", "largest", "labelled", "right"))
        kept = [(self.keeps[how], _AT[f"{how}_kept"], _AT[f"{how}_right"]) for how in KEEPS]
        for row in rows:
            self.per_question[row[parsed]] += 1
            if row[parsed] > 1:
                self.agreement.add(row[largest], row[parsed])
            if row[labelled]:
                self.pseudo_labels.add(row[right], row[parsed])
                for share, at, right_at in kept:
                    share.add(row[right_at], row[at])
        votes = sum(1 for row in rows if row[labelled] and row[parsed])
        self.majority = (self.majority[0] + sum(row[_AT["majority_right"]] for row in rows), self.majority[1] + votes)

    def finish(self) -> Worth:
        """Add what was not added yet."""
        self._add_columns()
        return self


def worth(store: AnnotationStore) -> Worth:
    """Add up the summaries of a store; `refresh` it before."""
    found = Worth()
    for _, content in store.summaries():
        found.add(content)
    return found.finish()


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def report(recipe: Recipe, store: AnnotationStore) -> dict[str, Any]:
    """Return everything that is known of a run's annotations as JSON-able values; `refresh` it before."""
    found = worth(store)
    sums = found.sums
    verdicts = {verdict.value: sums[verdict.value] for verdict in Verdict}
    confusion = {
        verdict.value: {"right": sums[f"{verdict.value}_right"], "wrong": sums[f"{verdict.value}_wrong"]} for verdict in Verdict
    }
    judged = sum(sum(row.values()) for row in confusion.values())
    sound = confusion["correct"]["right"] + confusion["wrong"]["wrong"]
    right = sum(row["right"] for row in confusion.values())
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "task": recipe.task.kind,
        "teacher": _teacher(recipe),
        "questions": found.questions,
        "questions_that_the_task_does_not_have": found.foreign,
        "cots": {
            "stored": sums["cots"],
            "parsed": sums["parsed"],
            "unparsed": dict(found.unread["cots"].most_common()),
            "distinct": sums["distinct"],
            "questions_by_count": {str(count): number for count, number in sorted(found.per_question.items())},
        },
        "evaluations": {
            "stored": sums["evaluations"],
            "parsed": sums["read"],
            "unparsed": dict(found.unread["evaluations"].most_common()),
            "verdicts": verdicts,
        },
        "agreement": found.agreement.to_json(),
        "answers_per_question": _share(sums["groups"], found.questions - found.per_question[0]),
        "diversity": _share(sums["diversity"] / 1000, sums["pairs"]),
        "pseudo_label_accuracy": found.pseudo_labels.to_json() if sums["labelled"] else None,
        "majority_vote_accuracy": Proportion(*found.majority).to_json() if sums["labelled"] else None,
        "verdict_confusion": confusion if judged else None,
        "verdict_accuracy": Proportion(sound, judged).to_json() if judged else None,
        "verdict_balanced_accuracy": _balanced(confusion, right, judged - right),
        "keep": {
            how: {
                "cots": sums[f"{how}_kept"],
                "questions": sums[f"{how}_questions"],
                "pseudo_label_accuracy": found.keeps[how].to_json() if sums["labelled"] else None,
            }
            for how in KEEPS
        },
        "bill": bill(recipe, store),
    }
    return result


def _balanced(confusion: dict[str, dict[str, int]], right: int, wrong: int) -> float | None:
    if not right or not wrong:
        return None
    return (confusion["correct"]["right"] / right + confusion["wrong"]["wrong"] / wrong) / 2


def _teacher(recipe: Recipe) -> str:
    section = recipe.teacher
    name = getattr(section, "model", None) or getattr(section, "source", None) or getattr(section, "cots", "")
    return f"{section.kind}: {name}" if isinstance(name, str) and name else section.kind


def bill(recipe: Recipe, store: AnnotationStore) -> dict[str, Any] | None:
    """Return what was sent, what came back and what it cost, or None where nobody was asked."""
    rows = store.query(
        "SELECT kind, status, requests, prompt_tokens, completion_tokens, tokens_estimated, cost, seconds FROM totals"
    )
    if not rows:
        return None
    unsettled = store.unsettled()
    failed: Counter[str] = Counter()
    for row in rows:
        if row[1] != "ok":
            failed[row[1]] += row[2]
    outcomes: dict[str, dict[str, int]] = {"cot": {}, "evaluation": {}}
    for kind, outcome, count in store.query("SELECT kind, outcome, count FROM outcomes WHERE count > 0 ORDER BY count DESC"):
        outcomes[kind][outcome] = count
    prices = recipe.teacher.prices if isinstance(recipe.teacher, OpenAITeacherSection) else None
    answered = [row for row in rows if row[1] == "ok"]
    requests = sum(row[2] for row in answered)
    return {
        "requests": sum(row[2] for row in rows),
        "answered": requests,
        "failed": dict(failed.most_common()),
        "texts": outcomes,
        "prompt_tokens": int(sum(row[3] for row in rows)),
        "completion_tokens": int(sum(row[4] for row in rows)),
        "requests_with_estimated_tokens": int(sum(row[5] for row in rows)),
        "cost": sum(row[6] for row in rows),
        "of_which_for_answers_that_did_not_arrive_at_most": sum(row[6] for row in rows if row[1] != "ok"),
        "currency": prices.currency if prices is not None and (prices.input or prices.output) else None,
        "seconds_per_answer": _share(sum(row[7] for row in answered), requests),
        "in_flight_when_killed": {"requests_at_most": unsettled.requests, "cost_at_most": unsettled.cost},
    }


def examples_to_show(
    store: AnnotationStore, task: Task, count: int, most: tuple[int | None, int | None]
) -> Sequence[AnnotatedExample]:
    """Return some questions with everything about them, spread evenly over the store."""
    by_id = {example.id: example for example in task.load().train}
    ids = [
        id_ for (id_,) in store.query("SELECT example_id FROM summaries WHERE content <> '' ORDER BY example_id") if id_ in by_id
    ]
    step = max(1, len(ids) // count)
    chosen = [by_id[id_] for id_ in ids[::step][:count]]
    return read_annotations(store, task, chosen, most, some=True)[0]
