"""What `mmedge evaluate` found, as tables for the terminal, as Markdown, and as a page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from mmedge.reports.charts import IntervalRow, Series, interval_chart, line_chart
from mmedge.reports.page import Page
from mmedge.statistics import Proportion

SIGNAL_NAMES = {
    "answer": "the answer's own probability",
    "evaluation": "self-evaluation",
    "combined": "both, and agreement with the rationale",
    "samples": "agreement of the samples",
}
Rows = tuple[str, list[str], list[list[str]]]  # title, headings, cells


def _share(found: Mapping[str, Any] | None) -> str:
    """Return a share or an estimate of one, in percent."""
    if found is None or found.get("value") is None:
        return "–"
    if "successes" in found:
        return str(Proportion(found["successes"], found["total"]))
    low, high = found["interval_95"]
    return f"{100 * found['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _points(found: Mapping[str, Any] | None) -> str:
    """Return a difference in points, with p where there is one."""
    if found is None:
        return "–"
    low, high = found["interval_95"]
    p = f", p = {found['p']:.3f}" if "p" in found else ""
    return f"{100 * found['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{p}"


def _value(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    if found["interval_95"] is None:
        return f"{found['value']:.3f} (by {found['fewer']})"
    low, high = found["interval_95"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def sections(report: Mapping[str, Any]) -> list[Rows]:
    """Return every table as title, headings and cells."""
    found: list[Rows] = []
    chosen = report["confidence"]["chosen"]
    for split, result in report["splits"].items():
        headings = [
            "signal",
            "AUROC",
            "calibration error (by chance)",
            "risk-coverage area",
            "at 70 %",
            "at 80 %",
            "gain at 70 %, points",
        ]
        rows = [
            [
                SIGNAL_NAMES[name] + (" (chosen)" if name == chosen else ""),
                _value(signal["auroc"]),
                f"{signal['calibration_error']['value']:.3f} ({signal['calibration_error']['by_chance']:.3f})",
                _value(signal["risk_coverage_area"]),
                _share(signal["accuracy_at"]["0.7"]),
                _share(signal["accuracy_at"]["0.8"]),
                _points(signal["gain_at"]["0.7"]),
            ]
            for name, signal in result["signals"].items()
        ]
        found.append((f"{split}: {result['questions']} questions, accuracy {_share(result['accuracy'])}", headings, rows))
    for split, result in report["splits"].items():
        found += _choices(split, result, report["prices"])
    cascade = report["cascade"]
    if cascade is not None:
        rows = [["student alone", "0", _share(cascade["student"]), "–", "0"]]
        for point in cascade["points"]:
            rows.append(
                [
                    f"at most {100 * point['max_handed_on']:g} % handed on",
                    _share(point["handed_on"]),
                    _share(point["accuracy"]),
                    _points(point["gain_over_student"]),
                    f"{point['teacher_characters_per_question']:.0f}",
                ]
            )
        rows.append(
            [
                "teacher alone",
                "100 %",
                _share(cascade["teacher"]),
                "–",
                f"{cascade['teacher_characters_per_question']:.0f}",
            ]
        )
        headings = ["cascade", "handed on", "accuracy", "gain over the student, points", "teacher's characters a question"]
        found.append((f"handing on to the recorded teacher, {cascade['questions']} held-out questions", headings, rows))
    return found


def _choices(split: str, whole: Mapping[str, Any], prices: Mapping[str, Any]) -> list[Rows]:
    """Return what strategies and thresholds do on one test split."""
    found: list[Rows] = []
    rows = []
    for name, strategy in whole["strategies"].items():
        price = prices.get(name.split(",")[0] if "samples" in name else name)
        rows.append(
            [
                name,
                _share(strategy["accuracy"]),
                _points(strategy["difference"]),
                f"{price['mean_times_answer']:.2f} ×" if price else "–",
            ]
        )
    for name in ("answer, rationale", "answer, rationale, confidence"):
        if name in prices:
            rows.append([name, "as answer", "–", f"{prices[name]['mean_times_answer']:.2f} ×"])
    found.append((f"strategies, {split}", ["strategy", "accuracy", "against answering at once, points", "time"], rows))
    if whole["abstaining"]:
        rows = []
        for aim in whole["abstaining"]:
            wanted = (
                f"{100 * aim['target_accuracy']:g} % right"
                if aim["target_accuracy"]
                else f"{100 * aim['max_handed_on']:g} % withheld"
            )
            if "problem" in aim:
                rows.append([wanted, aim["problem"], "–", "–"])
                continue
            rows.append([wanted, f"{aim['threshold']:.3f}", _share(aim["accuracy_of_given"]), _share(aim["withheld"])])
        headings = ["aim on validation questions", "threshold", "accuracy of the answers given", "withheld"]
        found.append((f"abstaining, {split}", headings, rows))
    return found


def conditions(report: Mapping[str, Any]) -> str:
    """Return one line that says what was measured, where and how."""
    where, settings = report["machine"], report["settings"]
    calibration = report["confidence"]
    how = (
        f"calibrated on {calibration['questions']} validation questions"
        if calibration["signals"]
        else f"not calibrated: {calibration['why'] or 'the bundle has no confidence'}"
    )
    versions = " ".join(f"{name} {version}" for name, version in where["packages"].items())
    drawn = f"{settings['samples']} samples at temperature {settings['temperature']:g}, seed {settings['seed']}"
    return (
        f"{report['recipe']}, {report['bundle']}; confidence {how}; {drawn}. Behind a calibration error: what honest confidences "
        "would stay below 19 times of 20; behind an AUROC without interval: how few answers of one kind it rests on. "
        "Brackets are 95 % intervals (Wilson's for shares of "
        f"questions, else bootstrap over questions). {where['processor']}, {where['cores']} cores, Python {where['python']}, "
        f"{versions}."
    )


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the report as tables for the terminal."""
    found = []
    for title, headings, rows in sections(report):
        table = Table(title=title, title_justify="left")
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="left" if not number else "right")
        for row in rows:
            table.add_row(*row)
        found.append(table)
    found[-1].caption, found[-1].caption_justify = conditions(report), "left"
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# Does {report['recipe']} know when it is wrong?", ""]
    for title, headings, rows in sections(report):
        lines += [f"## {title}", "", "| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join([*lines, conditions(report), ""])


def page(report: Mapping[str, Any]) -> Page:
    """Return the report as a page with figures."""
    found = Page(f"Does {report['recipe']} know when it is wrong?", conditions(report))
    found_sections = sections(report)
    splits = report["splits"]
    for (title, headings, rows), result in zip(found_sections, splits.values(), strict=False):
        found.heading(title)
        found.table(headings, rows)
        found.figure(risk_chart(result), "Wrong answers among those given, the most confident first. Lower is better.")
        found.figure(
            reliability_chart(result), "Right answers among those of about the same confidence. On the diagonal is honest."
        )
        found.figure(
            interval_chart(
                [
                    IntervalRow(SIGNAL_NAMES[name], *_ends(signal["auroc"]), words=_value(signal["auroc"]))
                    for name, signal in result["signals"].items()
                    if signal["auroc"] and signal["auroc"]["interval_95"]
                ],
                x_label="AUROC",
            )
        )
    for title, headings, rows in found_sections[len(splits) :]:
        found.heading(title)
        found.table(headings, rows)
        if title.startswith("handing on"):
            found.figure(
                cascade_chart(report["cascade"]),
                "The least confident questions are handed on; at random, accuracy is on the dashed line.",
            )
    return found


def _ends(found: Mapping[str, Any]) -> tuple[float, float, float]:
    return found["value"], found["interval_95"][0], found["interval_95"][1]


def risk_chart(result: Mapping[str, Any]) -> str:
    """Return the risk-coverage curves of all signals, as SVG."""
    series = [
        Series(SIGNAL_NAMES[name], [(100 * coverage, risk) for coverage, risk in signal["risk_coverage"]])
        for name, signal in result["signals"].items()
    ]
    return line_chart(series, x_label="questions answered, %", y_label="wrong among the answers given", percent=True, zero=True)


def reliability_chart(result: Mapping[str, Any]) -> str:
    """Return right answers against stated confidence, as SVG."""
    series = [
        Series(
            SIGNAL_NAMES[name],
            [(100 * part["confidence"], part["right"]["value"]) for part in signal["reliability"]],
        )
        for name, signal in result["signals"].items()
    ]
    series.append(Series("honest", [(0.0, 0.0), (100.0, 1.0)], dashed=True))
    return line_chart(series, x_label="confidence, %", y_label="right answers", percent=True, zero=True, markers=True)


def cascade_chart(cascade: Mapping[str, Any]) -> str:
    """Return accuracy against the share handed on, as SVG."""
    curve: Sequence[tuple[float, float]] = [(100 * share, accuracy) for share, accuracy in cascade["curve"]]
    student, teacher = cascade["student"]["value"], cascade["teacher"]["value"]
    series = [
        Series("the least confident first", curve),
        Series("at random", [(0.0, student), (100.0, teacher)], dashed=True),
    ]
    points = cascade["points"]
    if points:
        at = [(100 * point["handed_on"]["value"], point["accuracy"]["value"]) for point in points]
        low = [point["accuracy"]["interval_95"][0] for point in points]
        high = [point["accuracy"]["interval_95"][1] for point in points]
        series.append(Series("thresholds chosen on validation questions", at, low, high))
    return line_chart(series, x_label="questions handed on, %", y_label="right answers", percent=True)
