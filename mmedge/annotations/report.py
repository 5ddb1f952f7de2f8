"""The report on a run's annotations as tables in the terminal, and as a page to look at."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from mmedge.annotations.bill import Bill
from mmedge.annotations.reading import AnnotatedExample
from mmedge.annotations.summary import KEEPS, AnnotationReport
from mmedge.reports.formats import NOTHING, number, share, share_of
from mmedge.reports.page import Page
from mmedge.reports.tables import Table
from mmedge.tasks.forms import AnswerForm

_KEEP_WORDS = {"all": "all (the paper)", "self_consistent": "self-consistent", "judged_correct": "judged correct"}
_BRACKETS = "brackets are 95 % intervals over questions"


def yield_rows(found: AnnotationReport) -> list[list[str]]:
    """Return what was sampled, and what could be read of what is stored."""
    rows: list[list[str]] = []
    for kind, name, counts in (
        ("cot", "chains of thought", found.cots),
        ("evaluation", "self-evaluations", found.evaluations),
    ):
        if found.bill is not None:
            outcomes, total = found.bill.texts[kind], sum(found.bill.texts[kind].values())
        else:
            outcomes, total = {"parsed": counts.parsed, **counts.unparsed}, counts.stored
        rows += [[f"{name}: {outcome}", str(count), _percent(count, total)] for outcome, count in outcomes.items()]
    return rows


def _worth(found: AnnotationReport) -> Table:
    rows = [
        ["agreement: share of a question's CoTs with its most frequent answer", share_of(found.agreement)],
        ["different answers per question", number(found.answers_per_question, 2)],
        ["diversity: mean distance of a question's rationales (0 same words, 1 none in common)", number(found.diversity, 2)],
    ]
    if found.pseudo_label_accuracy is not None:
        rows.append(["pseudo-labels that match the human label", share_of(found.pseudo_label_accuracy)])
        rows.append(["majority votes that match the human label", share_of(found.majority_vote_accuracy)])
    if found.verdict_confusion is not None:
        rows.append(["verdicts that are right", share_of(found.verdict_accuracy)])
        rows.append(["the same, balanced (0.5 is chance)", number(found.verdict_balanced_accuracy, 3)])
    return Table("Worth", ["", ""], rows)


def _confusion(found: AnnotationReport) -> Table:
    rows = [[verdict, str(row["right"]), str(row["wrong"])] for verdict, row in (found.verdict_confusion or {}).items()]
    return Table("Verdicts against human labels", ["the teacher says", "answer is right", "answer is wrong"], rows)


def _kept(found: AnnotationReport) -> Table:
    total = found.keep["all"].cots
    rows = [
        [_KEEP_WORDS[how], f"{kept.cots} ({_percent(kept.cots, total)})", str(kept.questions), share_of(kept.pseudo_label_accuracy)]
        for how, kept in found.keep.items()
    ]
    return Table("What method.keep would train on", ["keep", "CoTs", "questions", "right pseudo-labels"], rows)


def _bill(bill: Bill | None) -> Table:
    rows: list[list[str]] = []
    if bill is not None:
        estimated = " (partly estimated)" if bill.estimated else ""
        rows = [
            ["requests answered", f"{bill.answered:,}"],
            *([f"requests failed: {status}", f"{count:,}"] for status, count in bill.failed.items()),
            ["tokens read" + estimated, f"{bill.prompt_tokens:,}"],
            ["tokens written" + estimated, f"{bill.completion_tokens:,}"],
            ["seconds per answer", number(bill.seconds_per_answer, 2)],
        ]
        if bill.currency:
            rows.append(["cost", f"{bill.cost:.4f} {bill.currency}"])
            if bill.lost:
                rows.append(["of which for answers that did not arrive whole (at most)", f"{bill.lost:.4f} {bill.currency}"])
        if bill.unaccounted.requests:
            cost = f", {bill.unaccounted.cost:.4f} {bill.currency}" if bill.currency else ""
            name = "in flight when a collector was killed, not in the bill (at most)"
            rows.append([name, f"{bill.unaccounted.requests:,}{cost}"])
    return Table("Bill", ["", ""], rows)


def tables(found: AnnotationReport) -> RenderableType:
    """Return the report for a terminal."""
    yielded = Table("Yield", ["", "texts", "share"], yield_rows(found))
    shown = [table.rich() for table in (yielded, _worth(found), _confusion(found), _kept(found), _bill(found.bill)) if table.rows]
    return Group(Text(_title(found), style="bold"), *shown, Text(_BRACKETS, style="dim"))


def page(found: AnnotationReport, shown: Sequence[AnnotatedExample], form: AnswerForm) -> Page:
    """Return the report as a page, with some questions and everything that was written about them; `form` is the answers'."""
    made = Page(_title(found), f"teacher {found.teacher}; task {found.task}; {_BRACKETS}")

    def add(table: Table, note: str = "") -> None:
        if table.rows:
            made.heading(table.title, note)
            made.table(table)

    made.heading("Yield", "What came back, and how much of it could be read.")
    made.bars([(name, float(count), f"{count} ({part})") for name, count, part in yield_rows(found)])
    add(_worth(found))
    made.heading("Readable chains of thought per question")
    made.bars([(str(count), float(many), str(many)) for count, many in found.cots.questions_by_count.items()])
    add(_confusion(found), "A teacher that judges well calls right answers 'correct' and the others 'wrong'.")
    add(_kept(found), "Fewer but better chains of thought, or all of them.")
    accuracies = {how: found.keep[how].pseudo_label_accuracy for how in KEEPS}
    bars = [(_KEEP_WORDS[how], right.value, share_of(right)) for how, right in accuracies.items() if right and right.successes]
    if bars:
        made.bars(bars, largest=1.0)
    add(_bill(found.bill))
    made.heading("Examples", "Spread evenly over the questions, as parsed from the raw texts.")
    for annotated in shown:
        example = annotated.example
        texts = []
        for evaluated in annotated.cots:
            texts.append(
                (f"chain of thought {evaluated.sample} → {form.readable(evaluated.cot.pseudo_label)}", evaluated.cot.rationale)
            )
            for evaluation in evaluated.evaluations:
                texts.append((f"evaluation of {evaluated.sample}: {evaluation.verdict.value}", evaluation.rationale))
        label = f"  [label: {form.readable(example.label)}]" if example.label is not None else ""
        choices = "  " + " ".join(f"({chr(ord('a') + i)}) {choice}" for i, choice in enumerate(example.choices))
        before = "".join(f"{turn.role}: {form.readable(turn.text)}  " for turn in example.turns)
        made.details(f"{before}{example.question}{choices if example.choices else ''}{label}", texts)
    return made


def _title(found: AnnotationReport) -> str:
    texts = f"{found.cots.stored:,} chains of thought and {found.evaluations.stored:,} self-evaluations"
    return f"{found.recipe}: {texts} of {found.questions:,} questions"


def _percent(part: float, whole: float) -> str:
    return share(part / whole) if whole else NOTHING
