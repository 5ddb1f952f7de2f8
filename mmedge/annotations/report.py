"""The summary of a run's annotations as tables in the terminal, and as a page to look at; the JSON is the summary itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from mmedge.annotations.reading import AnnotatedExample
from mmedge.annotations.summary import KEEPS
from mmedge.reports.formats import NOTHING, in_json, number, share
from mmedge.reports.page import Page
from mmedge.reports.tables import Table

_KEEP_WORDS = {"all": "all (the paper)", "self_consistent": "self-consistent", "judged_correct": "judged correct"}

Rows = list[list[str]]


def yield_rows(found: dict[str, Any]) -> Rows:
    """Return what was drawn, and what could be read of what is stored."""
    rows: Rows = []
    bill = found["bill"]
    for kind, name, stored in (
        ("cot", "chains of thought", found["cots"]),
        ("evaluation", "self-evaluations", found["evaluations"]),
    ):
        if bill:
            drawn = sum(bill["texts"][kind].values())
            for outcome, count in bill["texts"][kind].items():
                rows.append([f"{name}: {outcome}", str(count), _percent(count, drawn)])
        else:
            rows.append([f"{name}: parsed", str(stored["parsed"]), _percent(stored["parsed"], stored["stored"])])
            for reason, count in stored["unparsed"].items():
                rows.append([f"{name}: {reason}", str(count), _percent(count, stored["stored"])])
    return rows


def quality_rows(found: dict[str, Any]) -> Rows:
    """Return what the texts are worth."""
    rows = [
        ["agreement: share of a question's CoTs with its most frequent answer", share(*in_json(found["agreement"]))],
        ["different answers per question", number(found["answers_per_question"], 2)],
        [
            "diversity: mean distance of a question's rationales (0 same words, 1 none in common)",
            number(found["diversity"], 2),
        ],
    ]
    if found["pseudo_label_accuracy"]:
        rows.append(["pseudo-labels that are the human label", share(*in_json(found["pseudo_label_accuracy"]))])
        rows.append(["majority votes that are the human label", share(*in_json(found["majority_vote_accuracy"]))])
    if found["verdict_confusion"]:
        rows.append(["verdicts that are right", share(*in_json(found["verdict_accuracy"]))])
        rows.append(["the same, balanced (0.5 says nothing)", number(found["verdict_balanced_accuracy"], 3)])
    return rows


def confusion_rows(found: dict[str, Any]) -> Rows:
    """Return the verdicts against what the human labels say."""
    confusion = found["verdict_confusion"] or {}
    return [[verdict, str(row["right"]), str(row["wrong"])] for verdict, row in confusion.items()]


def keep_rows(found: dict[str, Any]) -> Rows:
    """Return what each choice of `method.keep` would train on."""
    total = found["keep"]["all"]["cots"]
    return [
        [
            _KEEP_WORDS[how],
            f"{kept['cots']} ({_percent(kept['cots'], total)})",
            str(kept["questions"]),
            share(*in_json(kept["pseudo_label_accuracy"])),
        ]
        for how, kept in found["keep"].items()
    ]


def bill_rows(found: dict[str, Any]) -> Rows:
    """Return what was sent, and what it cost."""
    bill = found["bill"]
    if not bill:
        return []
    rows = [["requests answered", f"{bill['answered']:,}"]]
    rows += [[f"requests failed: {status}", f"{count:,}"] for status, count in bill["failed"].items()]
    estimated = " (partly estimated)" if bill["requests_with_estimated_tokens"] else ""
    rows += [
        ["tokens read" + estimated, f"{bill['prompt_tokens']:,}"],
        ["tokens written" + estimated, f"{bill['completion_tokens']:,}"],
        ["seconds per answer", number(bill["seconds_per_answer"], 2)],
    ]
    if bill["currency"]:
        rows.append(["cost", f"{bill['cost']:.4f} {bill['currency']}"])
        lost = bill["of_which_for_answers_that_did_not_arrive_at_most"]
        if lost:
            rows.append(["of which for answers that did not arrive whole (at most)", f"{lost:.4f} {bill['currency']}"])
    killed = bill["in_flight_when_killed"]
    if killed["requests_at_most"]:
        cost = f", {killed['cost_at_most']:.4f} {bill['currency']}" if bill["currency"] else ""
        rows.append(["in flight when a collector was killed, not in the bill (at most)", f"{killed['requests_at_most']:,}{cost}"])
    return rows


_SECTIONS = (
    ("Yield", ["", "texts", "share"], yield_rows),
    ("Worth", ["", ""], quality_rows),
    ("Verdicts against human labels", ["the teacher says", "answer is right", "answer is wrong"], confusion_rows),
    ("What method.keep would train on", ["keep", "CoTs", "questions", "right pseudo-labels"], keep_rows),
    ("Bill", ["", ""], bill_rows),
)


def tables(found: dict[str, Any]) -> RenderableType:
    """Return the summary for a terminal."""
    parts: list[RenderableType] = [Text(_title(found), style="bold")]
    for title, headings, rows_of in _SECTIONS:
        rows = rows_of(found)
        if not rows:
            continue
        parts.append(Table(title, headings, rows).rich())
    parts.append(Text("brackets are 95 % intervals over questions", style="dim"))
    return Group(*parts)


def page(found: dict[str, Any], shown: Sequence[AnnotatedExample]) -> Page:
    """Return the summary as a page, with some questions and everything that was written about them."""
    made = Page(_title(found), f"teacher {found['teacher']}; task {found['task']}; brackets are 95 % intervals over questions")
    rows = yield_rows(found)
    made.heading("Yield", "What came back, and what could be read of it.")
    made.bars([(name, float(count), f"{count} ({share})") for name, count, share in rows])
    made.heading("Worth")
    made.table(Table("", ["", ""], quality_rows(found)))
    counts = found["cots"]["questions_by_count"]
    made.heading("Readable chains of thought per question")
    made.bars([(count, float(number), str(number)) for count, number in counts.items()])
    if found["verdict_confusion"]:
        made.heading(
            "Verdicts against human labels",
            "A teacher that judges well says 'correct' of right answers and 'wrong' of the others.",
        )
        made.table(Table("", ["the teacher says", "answer is right", "answer is wrong"], confusion_rows(found)))
    made.heading("What method.keep would train on", "Fewer but better chains of thought, or all of them.")
    made.table(Table("", ["keep", "CoTs", "questions", "right pseudo-labels"], keep_rows(found)))
    accuracies = {how: found["keep"][how]["pseudo_label_accuracy"] for how in KEEPS}
    shares = {how: in_json(value) for how, value in accuracies.items()}
    bars = [(_KEEP_WORDS[how], value, share(value, interval)) for how, (value, interval) in shares.items() if value]
    if bars:
        made.bars(bars, largest=1.0)
    if found["bill"]:
        made.heading("Bill")
        made.table(Table("", ["", ""], bill_rows(found)))
    made.heading("A look at some of them", "Spread evenly over the questions; what is shown is what was read of the raw texts.")
    for annotated in shown:
        example = annotated.example
        texts = []
        for evaluated in annotated.cots:
            texts.append((f"chain of thought {evaluated.sample} → {evaluated.cot.pseudo_label}", evaluated.cot.rationale))
            for evaluation in evaluated.evaluations:
                texts.append((f"evaluation of {evaluated.sample}: {evaluation.verdict.value}", evaluation.rationale))
        label = f"  [label: {example.label}]" if example.label is not None else ""
        choices = "  " + " ".join(f"({chr(ord('a') + i)}) {choice}" for i, choice in enumerate(example.choices))
        made.details(f"{example.question}{choices if example.choices else ''}{label}", texts)
    return made


def _title(found: dict[str, Any]) -> str:
    cots, evaluations = found["cots"]["stored"], found["evaluations"]["stored"]
    return f"{found['recipe']}: {cots:,} chains of thought and {evaluations:,} self-evaluations of {found['questions']:,} questions"


def _percent(part: float, whole: float) -> str:
    return share(part / whole) if whole else NOTHING
