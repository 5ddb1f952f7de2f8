"""What a teacher's flaws do, and what self-evaluation does about them, on the embedded task, whose flaws are ours to set.

    mmedge distill recipes/embedded-base.yaml --out runs/embedded-base
    python benchmarks/flaws.py --out runs/flaws          half an hour of one CPU core; continues where it was interrupted

Accuracy against the share of flawed chains of thought (0 to 60 %), and against their number m (1 to 8), with and without
self-evaluation: the rows of `mmedge ablate recipes/ablation-embedded.yaml`, every row with as many lessons. Writes `flaws.json`,
`flaws.md` and a figure for each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmedge.distill.ablation import ablate
from mmedge.distill.ablation_summary import Comparison
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.recipe import EmbeddedTeacherSection, load_recipe
from mmedge.reports.charts import Series, line_chart, standalone
from mmedge.statistics import Estimate
from mmedge.storage import write_json, write_text

SHARES = (0.0, 0.15, 0.3, 0.45, 0.6)
COUNTS = (1, 2, 4, 8)
ROWS = ("cots", "cots_self_evaluation")
MORE = "{filter_only: {self_evaluation: false, keep: judged_correct}}"
NAMES = {
    "cots": "m CoTs",
    "cots_self_evaluation": "m CoTs + self-evaluation",
    "filter_only": "m CoTs that the teacher judged correct",
}


def compared(arguments: argparse.Namespace, name: str, *settings: str) -> Comparison:
    """Return the comparison of one setting."""
    common = [
        f"ablation.seeds=[{', '.join(map(str, range(arguments.seeds)))}]",
        "ablation.labels=[pseudo]",
        f"ablation.rows=[{', '.join(ROWS)}]",
        f"ablation.more={MORE}",
        f"student.source={arguments.student}",
        *(arguments.set or []),
    ]
    recipe = load_recipe(Path(arguments.recipe), [*common, *settings])
    return ablate(recipe, arguments.out / name, Progress())


def share_right(found: Comparison, row: str, test: str) -> Estimate:
    """Return the share of a test that a row answers right."""
    return next(one for one in found.rows if one.row == row).tests[test].share


def figure(found: dict[str, Comparison], test: str, x_label: str) -> str:
    """Return accuracy against what was varied, a line with its interval for each row."""
    series = []
    for row in NAMES:
        points, low, high = [], [], []
        for x, results in found.items():
            one = share_right(results, row, test)
            points.append((float(x), one.value))
            low.append(one.low)
            high.append(one.high)
        series.append(Series(NAMES[row], points, low, high))
    return standalone(line_chart(series, x_label=x_label, y_label=f"answers right: {test}", percent=True, markers=True))


def table(found: dict[str, Comparison], test: str, heading: str) -> str:
    """Return the same as Markdown."""
    lines = [f"| {heading} | " + " | ".join(NAMES.values()) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for x, results in found.items():
        cells = []
        for row in NAMES:
            one = share_right(results, row, test)
            cells.append(f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]")
        lines.append(f"| {x} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train everything that is not there yet and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/flaws"))
    parser.add_argument("--recipe", default="recipes/ablation-embedded.yaml")
    parser.add_argument("--student", default="runs/embedded-base/student")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    shares = {str(share): compared(arguments, f"share-{share}", f"teacher.flawed_share={share}") for share in SHARES}
    counts = {str(count): compared(arguments, f"count-{count}", f"teacher.cots_per_question={count}") for count in COUNTS}
    teacher = load_recipe(Path(arguments.recipe), arguments.set or []).teacher
    assert isinstance(teacher, EmbeddedTeacherSection)
    parts = [
        "# What a teacher's flaws do",
        f"{arguments.seeds} seeds, pseudo-labels; brackets are 95 % intervals over questions and seeds.",
    ]
    for number, test in enumerate(next(iter(shares.values())).test_questions):
        ending = "" if number == 0 else f"-{number + 1}"
        write_text(arguments.out / f"flaws-share{ending}.svg", figure(shares, test, "share of flawed chains of thought"))
        write_text(arguments.out / f"flaws-count{ending}.svg", figure(counts, test, "chains of thought for each question"))
        parts += [f"## {test}", table(shares, test, "flawed share"), table(counts, test, f"m ({teacher.flawed_share:.0%} flawed)")]
    write_text(arguments.out / "flaws.md", "\n\n".join(parts) + "\n")
    found = {name: {x: one.to_json() for x, one in each.items()} for name, each in (("shares", shares), ("counts", counts))}
    write_json(arguments.out / "flaws.json", {**found, "machine": machine()})
    print(json.dumps({"written": str(arguments.out / "flaws.md")}))


if __name__ == "__main__":
    main()
