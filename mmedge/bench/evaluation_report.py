"""What `mmedge evaluate` found, as tables for the terminal, as Markdown, and as a page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmedge.reports.charts import IntervalRow, Series, interval_chart, line_chart
from mmedge.reports.formats import NOTHING, estimate, in_json, number, points, share
from mmedge.reports.page import Page
from mmedge.reports.tables import Cell, Table

SIGNAL_NAMES = {
    "answer": "the answer's own probability",
    "evaluation": "self-evaluation",
    "combined": "both, and agreement with the rationale",
    "samples": "agreement of the samples",
}


def _share(found: Mapping[str, Any] | None) -> str:
    return share(*in_json(found))


def _points(found: Mapping[str, Any] | None) -> str:
    return points(*in_json(found), (found or {}).get("p"))


def _value(found: Mapping[str, Any] | None) -> str:
    few = f" (by {found['fewer']})" if found and found["interval_95"] is None else ""
    return estimate(*in_json(found), digits=3) + few


def sections(report: Mapping[str, Any]) -> list[Table]:
    """Return every table."""
    found: list[Table] = []
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
                Cell(f"{SIGNAL_NAMES[name]} (chosen)", "strong") if name == chosen else SIGNAL_NAMES[name],
                _value(signal["auroc"]),
                f"{number(signal['calibration_error']['value'], 3)} ({number(signal['calibration_error']['by_chance'], 3)})",
                _value(signal["risk_coverage_area"]),
                _share(signal["accuracy_at"]["0.7"]),
                _share(signal["accuracy_at"]["0.8"]),
                _points(signal["gain_at"]["0.7"]),
            ]
            for name, signal in result["signals"].items()
        ]
        found.append(Table(f"{split}: {result['questions']} questions, accuracy {_share(result['accuracy'])}", headings, rows))
    for split, result in report["splits"].items():
        found += _choices(split, result, report["prices"])
    cascade = report["cascade"]
    if cascade is not None:
        rows = [["student alone", "0", _share(cascade["student"]), NOTHING, "0"]]
        for point in cascade["points"]:
            rows.append(
                [
                    f"at most {100 * point['max_handed_on']:g} % handed on",
                    _share(point["handed_on"]),
                    _share(point["accuracy"]),
                    _points(point["gain_over_student"]),
                    number(point["teacher_characters_per_question"], 0),
                ]
            )
        characters = number(cascade["teacher_characters_per_question"], 0)
        rows.append(["teacher alone", "100 %", _share(cascade["teacher"]), NOTHING, characters])
        headings = ["cascade", "handed on", "accuracy", "gain over the student, points", "teacher's characters a question"]
        found.append(Table(f"handing on to the recorded teacher, {cascade['questions']} held-out questions", headings, rows))
    return found


def _choices(split: str, whole: Mapping[str, Any], prices: Mapping[str, Any]) -> list[Table]:
    """Return what strategies and thresholds do on one test split."""
    found: list[Table] = []
    rows = []
    for name, strategy in whole["strategies"].items():
        price = prices.get(name.split(",")[0] if "samples" in name else name)
        rows.append(
            [
                name,
                _share(strategy["accuracy"]),
                _points(strategy["difference"]),
                f"{price['mean_times_answer']:.2f} ×" if price else NOTHING,
            ]
        )
    for name in ("answer, rationale", "answer, rationale, confidence"):
        if name in prices:
            rows.append([name, "as answer", NOTHING, f"{prices[name]['mean_times_answer']:.2f} ×"])
    found.append(Table(f"strategies, {split}", ["strategy", "accuracy", "against answering at once, points", "time"], rows))
    if whole["abstaining"]:
        rows = []
        for aim in whole["abstaining"]:
            wanted = (
                f"{100 * aim['target_accuracy']:g} % right"
                if aim["target_accuracy"]
                else f"{100 * aim['max_handed_on']:g} % withheld"
            )
            if "problem" in aim:
                rows.append([wanted, aim["problem"], NOTHING, NOTHING])
                continue
            rows.append([wanted, number(aim["threshold"], 3), _share(aim["accuracy_of_given"]), _share(aim["withheld"])])
        headings = ["aim on validation questions", "threshold", "accuracy of the answers given", "withheld"]
        found.append(Table(f"abstaining, {split}", headings, rows))
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
    """Return the report as tables for the terminal: the last one says what was measured, where and how."""
    *found, last = sections(report)
    return [*found, replace(last, caption=conditions(report))]


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# Does {report['recipe']} know when it is wrong?", ""]
    for table in sections(report):
        lines += [f"## {table.title}", "", table.markdown(), ""]
    return "\n".join([*lines, conditions(report), ""])


def page(report: Mapping[str, Any]) -> Page:
    """Return the report as a page with figures."""
    found = Page(f"Does {report['recipe']} know when it is wrong?", conditions(report))
    found_sections = sections(report)
    splits = report["splits"]
    for table, result in zip(found_sections, splits.values(), strict=False):
        found.heading(table.title)
        found.table(table)
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
    for table in found_sections[len(splits) :]:
        found.heading(table.title)
        found.table(table)
        if table.title.startswith("handing on"):
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
