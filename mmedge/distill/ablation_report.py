"""A comparison of methods as a table, as JSON, as Markdown, and as a page with figures."""

from __future__ import annotations

from pathlib import Path

from mmedge.distill.ablation_summary import Comparison, JudgedCots
from mmedge.reports.charts import IntervalRow, Series, interval_chart, line_chart, standalone
from mmedge.reports.formats import NOTHING, duration, points, share
from mmedge.reports.page import Page
from mmedge.reports.tables import Table
from mmedge.statistics import POWER_80, Estimate
from mmedge.storage import write_json, write_text

EQUAL = {
    "lessons": "every row takes as many lessons (visits to a question or a chain of thought, both stages together)",
    "steps": "every row takes as many optimizer steps, both stages together",
    "stage2": "every row takes as many steps of stage 2; stage 1 comes on top",
    "none": "every row trains as long as the recipe says",
}


SIGNALS = {"answer": "AUROC", "answer_verdict": "with its verdict"}

BOOTSTRAP = "bootstrap; Wilson's where all outcomes are alike"


def table(results: Comparison, labels: str) -> Table:
    """Return the table of one kind of labels, a row for each method."""
    tests = [name for test in results.test_questions for name in (test, "against the row above")]
    headings = ["", *tests, "verdicts after stage 1", "verdicts at the end", "steps", "lessons", "tokens", "time"]
    rows = []
    for row in results.rows:
        if row.labels != labels:
            continue
        cells = [row.title]
        for test in results.test_questions:
            score = row.tests[test]
            gain = score.difference.estimate if score.difference else None
            areas = [f"{SIGNALS[name]} {area.value:.3f}" for name, area in score.signals.items()]
            cells += [
                ", ".join([_share(score.share), *areas]),
                points(gain.value, (gain.low, gain.high), gain.p) if gain else NOTHING,
            ]
        steps = " + ".join(str(count) for count in row.steps.values())
        cells += [
            _judged(row.after_stage1),
            _judged(row.verdicts),
            steps,
            f"{row.lessons:,}",
            f"{row.tokens / 1000:,.0f} k",
        ]
        rows.append([*cells, duration(row.seconds)])
    return Table(f"{results.recipe}, {labels} labels", headings, rows)


def oracle_table(results: Comparison) -> Table | None:
    """Return how often one of several sampled answers is right, by row and test; None where nothing was sampled."""
    rows = []
    for row in results.rows:
        found = [row.tests[test].oracle for test in results.test_questions]
        if any(found):
            cells = [
                (_share(one[0]), points(one[1].value, (one[1].low, one[1].high))) if one else (NOTHING, NOTHING) for one in found
            ]
            rows.append([f"{row.title}, {row.labels} labels", *(cell for pair in cells for cell in pair)])
    if not rows:
        return None
    headings = [
        "one of the sampled answers is right",
        *(name for test in results.test_questions for name in (test, "gain, points")),
    ]
    return Table("the most that choosing among samples could reach", headings, rows)


def _share(found: Estimate) -> str:
    return share(found.value, (found.low, found.high))


def _judged(found: JudgedCots | None) -> str:
    if found is None:
        return NOTHING
    balanced = "" if found.balanced_accuracy is None else f", balanced {100 * found.balanced_accuracy:.1f}"
    area = "" if found.auroc is None else f", AUROC {found.auroc.value:.3f}"
    return f"{_share(found.accuracy)}{balanced}{area}; at a chosen level {share(found.accuracy_at_level.value)}"


def caption(results: Comparison) -> str:
    """Return the notes on the table."""
    done, planned = results.done, results.planned
    questions = ", ".join(f"{name}: {count}" for name, count in results.test_questions.items())
    unfinished = f" {done} of {planned} trainings are done." if done < planned else ""
    seeds = results.seeds
    return (
        f"{'Seeds' if len(seeds) > 1 else 'Seed'} {', '.join(map(str, seeds))}; {EQUAL[results.equal]}. Test questions:"
        f" {questions}; verdicts on {results.verdict_cots} held-out chains of thought, also with the level of P(correct) between"
        " right and wrong chosen on the other half of their questions."
        f" {_uncertainty(len(seeds))}{detectable(results)} Rows that the recipe adds are compared with the last of the paper's."
        f" Of the checkpoints, the last one of each stage is taken.{unfinished}"
    )


def decisions(results: Comparison) -> list[str]:
    """Return which method to use and why, a sentence for each kind of labels, and what to keep in mind; empty with one row."""
    found = []
    rows = {(row.labels, row.title): row for row in results.rows}
    for one in results.decisions:
        chosen = rows[one.labels, one.use]
        words = f"Use {one.use} with {one.labels} labels: {_share(chosen.tests[one.test].share)} right on {one.test}, "
        if one.behind is None:
            words += f"the most of {one.of + 1} methods"
        else:
            gain = points(one.behind.value, (one.behind.low, one.behind.high))
            words += f"{gain} points against the best, {one.best}, which is not beyond chance"
        if len(one.equal) > 1:
            words += f", with the fewest training tokens of the {len(one.equal)} methods that cannot be told apart"
        found.append(f"{words}.")
    if found:
        seed = "; with one seed, another training may differ by more" if len(results.seeds) == 1 else ""
        found.append(
            "Methods are compared with the best by p < 0.05, corrected for their number (Holm 1979). Chosen on the test questions,"
            f" so confirm it on others{seed}."
        )
    return found


def detectable(results: Comparison) -> str:
    """Return what differences between a row and the one that it is compared with would have been found with 80 % power."""
    found = []
    for test in results.test_questions:
        gains = [score.difference.estimate for row in results.rows if (score := row.tests[test]).difference is not None]
        seen = sorted(POWER_80 * (gain.high - gain.low) / (2 * 1.96) for gain in gains)
        if seen:
            found.append(f"{100 * seen[0]:.1f} to {100 * seen[-1]:.1f} points on {test}")
    return f" Smallest differences that would have been found with 80 % power, by row: {', '.join(found)}." if found else ""


def _uncertainty(seeds: int) -> str:
    """Return what brackets and p mean, which depends on whether there is more than one training of a row."""
    if seeds == 1:
        return (
            f"Brackets are 95 % intervals over questions ({BOOTSTRAP}); with one seed they do not say how much another training"
            " would differ. Differences are in points, paired by question, p by McNemar's exact test."
        )
    return (
        f"Brackets are 95 % intervals over questions and seeds ({BOOTSTRAP}); differences are in points, paired by question and"
        " seed, p by bootstrap."
    )


def kinds_of_labels(results: Comparison) -> list[str]:
    """Return the kinds of labels that have rows, in order."""
    return list(dict.fromkeys(row.labels for row in results.rows))


def figure(results: Comparison, test: str) -> str:
    """Return a chart of every row's accuracy on a test."""
    rows = []
    for row in results.rows:
        found = row.tests[test].share
        group = f"{row.labels} labels"
        rows.append(IntervalRow(row.title, found.value, found.low, found.high, words=share(found.value), group=group))
    return interval_chart(rows, x_label=f"answers right: {test}", percent=True)


def _curves(results: Comparison, labels: str) -> str:
    """Return the validation accuracy over the steps of stage 2, mean over the seeds."""
    series = []
    for row in results.rows:
        if row.labels == labels:
            runs = row.validations
            points = [(run[0][0], sum(entry[1] for entry in run) / len(run)) for run in zip(*runs, strict=False)]
            series.append(Series(row.title, points))
    return line_chart(
        series, x_label="step of stage 2", y_label="answers right on validation questions", percent=True, markers=True
    )


def _verdict_figure(results: Comparison) -> str | None:
    rows = []
    for row in results.rows:
        for when, found in (("after stage 1", row.after_stage1), ("at the end", row.verdicts)):
            if found is not None and found.auroc is not None:
                area, name = found.auroc, f"{row.title}, {row.labels}"
                rows.append(IntervalRow(name, area.value, area.low, area.high, words=f"{area.value:.3f}", group=when))
    return interval_chart(rows, x_label="AUROC of P(correct) on held-out chains of thought") if rows else None


def markdown(results: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = [f"# Comparison of methods: {results.recipe}", *decisions(results)]
    for labels in kinds_of_labels(results):
        parts += [f"## {labels} labels", table(results, labels).markdown()]
    if (oracle := oracle_table(results)) is not None:
        parts += [f"## {oracle.title[0].upper()}{oracle.title[1:]}", oracle.markdown()]
    parts.append(caption(results))
    machine = results.machine
    packages = machine["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages)
    parts.append(
        f"{machine['processor']}, cores: {machine['cores']}, Python {machine['python']}, {versions}, mmedge {machine['mmedge']}."
    )
    return "\n\n".join(parts) + "\n"


def _page(results: Comparison) -> Page:
    page = Page(f"Comparison of methods: {results.recipe}")
    *found, note = decisions(results) or [""]
    for sentence in found:
        page.lead(sentence)
    if note:
        page.note(note)
    for test in results.test_questions:
        page.heading(f"Answers: {test}")
        page.figure(figure(results, test))
    for labels in kinds_of_labels(results):
        page.heading(f"Table, {labels} labels")
        page.table(table(results, labels))
    if (oracle := oracle_table(results)) is not None:
        page.heading(f"{oracle.title[0].upper()}{oracle.title[1:]}")
        page.table(oracle)
    verdicts = _verdict_figure(results)
    if verdicts is not None:
        page.heading("Telling right from wrong", "How often a right chain of thought gets a higher P(correct) than a wrong one.")
        page.figure(verdicts)
    for labels in kinds_of_labels(results):
        page.heading(f"While it learned, {labels} labels")
        page.figure(_curves(results, labels))
    page.heading("How it was measured", caption(results))
    return page


def write_reports(results: Comparison, folder: Path) -> None:
    """Write `ablation.json`, `ablation.md`, `ablation.html`, and a figure for each test as SVG."""
    write_json(folder / "ablation.json", results.to_json())
    write_text(folder / "ablation.md", markdown(results))
    _page(results).write(folder / "ablation.html")
    for number, test in enumerate(results.test_questions):
        name = "ablation.svg" if number == 0 else f"ablation-{number + 1}.svg"
        write_text(folder / name, standalone(figure(results, test)))
