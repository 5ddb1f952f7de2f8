"""What `mmedge evaluate` found, as tables for the terminal, as Markdown, and as a page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmedge.bench.evaluation import ALL
from mmedge.bench.evaluation_figures import NAME
from mmedge.bench.evaluation_results import (
    Abstaining,
    Auroc,
    EscalationCurve,
    EvaluationReport,
    FieldQuality,
    OutOfScope,
    PairedDifference,
    Price,
    SplitResult,
)
from mmedge.reports.charts import IntervalRow, Series, interval_chart, line_chart
from mmedge.reports.formats import NOTHING, estimate, number, points, share, share_of
from mmedge.reports.page import Page
from mmedge.reports.tables import Cell, Table
from mmedge.storage import write_json, write_text

SIGNAL_NAMES = {
    "answer": "the answer's own probability",
    "answer_verdict": "that and the verdict on the answer",
    "evaluation": "self-evaluation",
    "combined": "both, and agreement with the rationale",
    "samples": "agreement of the samples",
    "name": "the function's name alone",
}


def write_report(report: EvaluationReport, folder: Path) -> str:
    """Write a report as `evaluate-PRECISION.json`, `.md` and `.html`; return the files' name without its ending."""
    name = f"evaluate-{report.precision}"
    write_json(folder / f"{name}.json", report.to_json())
    write_text(folder / f"{name}.md", markdown(report))
    page(report).write(folder / f"{name}.html")
    return name


# ------------------------------------------------------------------------------------------------------- tables


def _points(found: PairedDifference | None) -> str:
    return points(found.value, found.interval_95, found.p) if found else NOTHING


def _auroc(found: Auroc | None) -> str:
    if found is None:
        return NOTHING
    return estimate(found.value, found.interval_95, 3) + (f" (by {found.fewer})" if found.interval_95 is None else "")


def _signals(report: EvaluationReport, split: str, result: SplitResult) -> Table:
    headings = ["signal", "AUROC", "calibration error (by chance)", "risk-coverage area"]
    headings += ["at 70 %", "at 80 %", "gain at 70 %, points"]
    rows = []
    for name, signal in result.signals.items():
        error, area = signal.calibration_error, signal.risk_coverage_area
        rows.append(
            [
                _named(name, report.confidence.chosen),
                _auroc(signal.auroc),
                f"{number(error.value, 3)} ({number(error.by_chance, 3)})",
                estimate(area.value, area.interval_95, 3) if area else NOTHING,
                share_of(signal.accuracy_at["0.7"]),
                share_of(signal.accuracy_at["0.8"]),
                _points(signal.gain_at["0.7"]),
            ]
        )
    return Table(f"{split}: {result.questions} questions, accuracy {share_of(result.accuracy)}", headings, rows)


def _strategies(split: str, result: SplitResult, prices: Mapping[str, Price]) -> Table:
    def price_of(name: str) -> str:
        price = prices.get(name)
        return f"{price.mean_times_answer:.2f} ×" if price else NOTHING

    rows = [
        [name, share_of(found.accuracy), _points(found.difference), price_of(name.split(",")[0] if "samples" in name else name)]
        for name, found in result.strategies.items()
    ]
    more = [name for name in ("answer, rationale", "answer, rationale, confidence") if name in prices]
    rows += [[name, "as answer", NOTHING, price_of(name)] for name in more]
    return Table(f"strategies, {split}", ["strategy", "accuracy", "against answering at once, points", "time"], rows)


def _wanted(target_accuracy: float | None, max_withheld: float | None) -> str:
    return f"{100 * (target_accuracy or max_withheld or 0):g} % {'right' if target_accuracy else 'withheld'}"


def _named(signal: str, chosen: str | None) -> Cell | str:
    return Cell(f"{SIGNAL_NAMES[signal]} (chosen)", "strong") if signal == chosen else SIGNAL_NAMES[signal]


def _abstaining(split: str, result: SplitResult) -> Table:
    rows = []
    for aim in result.abstaining:
        wanted = _wanted(aim.target_accuracy, aim.max_withheld)
        given = [aim.problem or number(aim.threshold, 3), share_of(aim.accuracy_of_given), share_of(aim.withheld)]
        rows.append([wanted, *given])
    headings = ["aim on validation questions", "threshold", "accuracy of the answers given", "withheld"]
    return Table(f"abstaining, {split}", headings, rows)


def _cascade(found: EscalationCurve) -> Table:
    rows = [["student alone", "0", share_of(found.student), NOTHING, "0"]]
    for point in found.points:
        characters = number(point.teacher_characters_per_question, 0)
        wanted = f"at most {100 * point.max_escalated:g} % escalated"
        rows.append([wanted, share_of(point.escalated), share_of(point.accuracy), _points(point.gain_over_student), characters])
    characters = number(found.teacher_characters_per_question, 0)
    rows.append(["teacher alone", "100 %", share_of(found.teacher), NOTHING, characters])
    headings = ["cascade", "escalated", "accuracy", "gain over the student, points", "teacher's characters a question"]
    return Table(f"escalating to the recorded teacher, {found.questions} held-out questions", headings, rows)


def _of_fields(split: str, found: FieldQuality) -> Table:
    cells = [f"{found.fields:,}", share(found.right), NOTHING, number(found.calibration_error, 3)]
    if found.auroc is not None:
        cells[2] = estimate(found.auroc.value, found.auroc.interval_95, 3)
    return Table(f"fields of the answers, {split}", ["fields", "right", "AUROC of their confidence", "calibration error"], [cells])


def _of_outside(found: OutOfScope, chosen: str | None) -> list[Table]:
    """Return how well confidences tell questions out of scope from others, and what thresholds withhold of both."""
    rows = [[_named(name, chosen), _auroc(area)] for name, area in found.auroc.items()]
    about = f"{found.questions} questions out of scope, {found.in_scope} in scope"
    tables = [Table(about, ["signal", "AUROC, in scope against out of it"], rows)]
    heads = ["aim on validation questions", "threshold", "withheld out of scope", "withheld in scope", "right of those given"]
    if found.abstaining:
        rows = [[_wanted(aim.target_accuracy, aim.max_withheld), *_of_both(aim)] for aim in found.abstaining]
        tables.append(Table("abstaining out of scope", heads, rows))
    if found.by_name:
        rows = [[NOTHING if aim.max_withheld is None else _wanted(None, aim.max_withheld), *_of_both(aim)] for aim in found.by_name]
        options = "--max-withheld-by-field name=SHARE, --abstain-field-below name=P"
        tables.append(Table(f"abstaining by the confidence of the function's name: {options}", heads, rows))
    return tables


def _of_both(aim: Abstaining) -> list[Cell | str]:
    """Return a threshold, and what it withholds out of scope and in it."""
    shares = [share_of(one) for one in (aim.withheld_out_of_scope, aim.withheld, aim.accuracy_of_given)]
    return [aim.problem or number(aim.threshold, 3), *shares]


def _decisions(report: EvaluationReport) -> list[Table]:
    """Return the tables of strategies and thresholds, split by split."""
    found = []
    for split, result in report.splits.items():
        if result.fields is not None:
            found.append(_of_fields(split, result.fields))
        found.append(_strategies(split, result, report.prices))
        if result.abstaining:
            found.append(_abstaining(split, result))
    if report.out_of_scope is not None:
        found += _of_outside(report.out_of_scope, report.confidence.chosen)
    return found


def _sections(report: EvaluationReport) -> list[Table]:
    signals = [_signals(report, split, result) for split, result in report.splits.items()]
    return [*signals, *_decisions(report), *([_cascade(report.cascade)] if report.cascade else [])]


def conditions(report: EvaluationReport) -> str:
    """Return one paragraph that says what was measured, where and how."""
    where, settings, calibration = report.machine, report.settings, report.confidence
    how = (
        f"calibrated on {calibration.questions} validation questions"
        if calibration.signals
        else f"not calibrated: {calibration.why or 'the bundle has no confidence'}"
    )
    versions = " ".join(f"{name} {version}" for name, version in where["packages"].items())
    sampled = f"{settings['samples']} samples at temperature {settings['temperature']:g}, seed {settings['seed']}"
    return (
        f"{report.recipe}, {report.bundle}; confidence {how}; {sampled}. In parentheses after a calibration error: what honest "
        "confidences stay below 19 times out of 20; after an AUROC without an interval: how few answers of one kind it rests on. "
        "Brackets are 95 % intervals (Wilson's for shares of "
        f"questions, otherwise bootstrap over questions). {where['processor']}, {where['cores']} cores, Python {where['python']}, "
        f"{versions}."
    )


def decision(report: EvaluationReport) -> str:
    """Return in a few sentences whether confidence is worth using, with what threshold, and what detects questions out of scope."""
    return " ".join(filter(None, [_of_answers(report), _of_strangers(report.out_of_scope)]))


def _of_strangers(found: OutOfScope | None) -> str:
    """Return which signal detects questions out of scope best; empty where that is not known."""
    areas = {name: area for name, area in (found.auroc if found is not None else {}).items() if area is not None}
    if found is None or not areas:
        return ""
    best = max(areas, key=lambda name: areas[name].value)
    interval = areas[best].interval_95
    if interval is None or interval[0] <= 0.5:
        return f"No signal detects the {found.questions} questions out of scope with certainty (AUROC {_auroc(areas[best])})."
    chosen = any(aim.max_withheld is not None for aim in found.by_name)
    option = f"--max-withheld-by-field {best}=0.05" if chosen else f"--abstain-field-below {best}=P"
    said = f"The {found.questions} questions out of scope are detected best by {SIGNAL_NAMES[best]} (AUROC {_auroc(areas[best])})"
    return f"{said}: withhold them with {option}." if best == NAME else f"{said}."


def _of_answers(report: EvaluationReport) -> str:
    result = report.splits.get(ALL) or next(iter(report.splits.values()))
    chosen = report.confidence.chosen or "answer"
    signal = result.signals[chosen]
    found = f"AUROC {_auroc(signal.auroc)} on {result.questions} test questions"
    if signal.auroc is None:
        return f"Nothing to decide: all {result.questions} answers are of one kind ({share_of(result.accuracy)} right)."
    if signal.auroc.interval_95 is None or signal.auroc.interval_95[0] <= 0.5:
        few = signal.auroc.interval_95 is None
        advice = "evaluate it on more questions" if few else "do not withhold or escalate by it"
        return f"Its confidence does not tell right from wrong answers with certainty ({found}): {advice}."
    said = f"It knows when it is wrong ({found}, {SIGNAL_NAMES[chosen]})"
    if at := signal.accuracy_at["0.7"]:
        said += f": the most confident 70 % of answers are {share_of(at)} right, all of them {share_of(result.accuracy)}"
    return f"{said}. {_advice(result)}"


def _advice(result: SplitResult) -> str:
    """Return the threshold of the highest aim that was reached on validation questions, and what it does on these."""
    reached = [aim for aim in result.abstaining if aim.target_accuracy and aim.problem is None]
    if not reached:
        return "No threshold reached an aim on validation questions: withhold a share of the answers with --max-withheld instead."
    aim = max(reached, key=lambda one: one.target_accuracy or 0)
    return (
        f"Use --target-accuracy {aim.target_accuracy:g}: on these questions it withheld {share_of(aim.withheld)} and "
        f"{share_of(aim.accuracy_of_given)} of the answers given were right."
    )


def tables(report: EvaluationReport) -> list[Table]:
    """Return the report as tables for the terminal: the last one says what was measured, where and how."""
    *found, last = _sections(report)
    return [*found, replace(last, caption=conditions(report))]


def markdown(report: EvaluationReport) -> str:
    """Return the report as Markdown."""
    lines = [f"# Does {report.recipe} know when it is wrong?", "", decision(report), ""]
    for table in _sections(report):
        lines += [f"## {table.title}", "", table.markdown(), ""]
    return "\n".join([*lines, conditions(report), ""])


# ------------------------------------------------------------------------------------------------------- page


def page(report: EvaluationReport) -> Page:
    """Return the report as a page with figures."""
    found = Page(f"Does {report.recipe} know when it is wrong?")
    found.lead(decision(report))

    def add(table: Table) -> None:
        found.heading(table.title)
        found.table(table)

    for split, result in report.splits.items():
        add(_signals(report, split, result))
        found.figure(risk_chart(result), "Wrong answers among those given, the most confident first. Lower is better.")
        caption = "Right answers among those of about the same confidence. Honest confidences are on the diagonal."
        found.figure(reliability_chart(result), caption)
        if any(signal.auroc and signal.auroc.interval_95 for signal in result.signals.values()):
            caption = "How often a signal ranks a right answer above a wrong one; 0.5 is chance."
            found.figure(auroc_chart(result), caption)
    for table in _decisions(report):
        add(table)
    if report.cascade:
        add(_cascade(report.cascade))
        caption = "The least confident questions are escalated; at random, accuracy is on the dashed line."
        found.figure(cascade_chart(report.cascade), caption)
    found.heading("How it was measured", conditions(report))
    return found


def auroc_chart(result: SplitResult) -> str:
    """Return the AUROC of all signals that have an interval, as SVG."""
    rows = [
        IntervalRow(SIGNAL_NAMES[name], area.value, *area.interval_95, words=_auroc(area))
        for name, signal in result.signals.items()
        if (area := signal.auroc) and area.interval_95
    ]
    return interval_chart(rows, x_label="AUROC")


def risk_chart(result: SplitResult) -> str:
    """Return the risk-coverage curves of all signals, as SVG."""
    series = [
        Series(SIGNAL_NAMES[name], [(100 * coverage, risk) for coverage, risk in signal.risk_coverage])
        for name, signal in result.signals.items()
    ]
    return line_chart(series, x_label="questions answered, %", y_label="wrong among the answers given", percent=True, zero=True)


def reliability_chart(result: SplitResult) -> str:
    """Return right answers against stated confidence, as SVG."""
    series = [
        Series(SIGNAL_NAMES[name], [(100 * part.confidence, part.right.value or 0.0) for part in signal.reliability])
        for name, signal in result.signals.items()
    ]
    series.append(Series("honest", [(0.0, 0.0), (100.0, 1.0)], dashed=True))
    return line_chart(series, x_label="confidence, %", y_label="right answers", percent=True, zero=True, markers=True)


def cascade_chart(cascade: EscalationCurve) -> str:
    """Return accuracy against the share escalated, as SVG."""
    curve: Sequence[tuple[float, float]] = [(100 * escalated, accuracy) for escalated, accuracy in cascade.curve]
    series = [
        Series("the least confident first", curve),
        Series("at random", [(0.0, cascade.student.value), (100.0, cascade.teacher.value)], dashed=True),
    ]
    if cascade.points:
        at = [(100 * (point.escalated.value or 0.0), point.accuracy.value) for point in cascade.points]
        low, high = ([point.accuracy.interval_95[end] for point in cascade.points] for end in (0, 1))
        series.append(Series("thresholds chosen on validation questions", at, low, high))
    return line_chart(series, x_label="questions escalated, %", y_label="right answers", percent=True)
