"""Does `mmedge bench` say what is there? The same bundle twice, and once slowed by a tenth on purpose, again and again.

    python benchmarks/bench_noise.py runs/quickstart/bundle-int8 --repeats 20

An A/A comparison must raise no alarm, the slowed one must be found, and what two repeats say of a ratio must agree within their
intervals. Every round has new processes. Prints Markdown; a run is worth something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import tempfile
from pathlib import Path

from mmedge.bench.bench import bench
from mmedge.bench.process import Variant
from mmedge.bench.results import PairedRatio
from mmedge.bench.settings import BenchSettings
from mmedge.progress import Progress
from mmedge.tasks.evaluation_set import FILE_NAME


def _agree(one: PairedRatio, other: PairedRatio) -> bool:
    """Whether two estimates of a ratio differ by no more than their intervals together allow."""
    halves = [math.log(found.interval_95[1] / found.interval_95[0]) / 2 for found in (one, other)]
    return abs(math.log(one.value / other.value)) <= math.hypot(*halves)


def main() -> None:
    """Start from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--timed", type=int, default=40)
    arguments = parser.parse_args()
    Variant.worker = "benchmarks.slowed_worker"
    settings = BenchSettings(scenarios=("single",), timed=arguments.timed, rounds=arguments.rounds, verdicts=0)
    found: list[list[PairedRatio]] = []
    noisy: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / name for name in ("original", "same", "slowed")]
        for copy in copies:
            shutil.copytree(arguments.bundle, copy)
        for _ in range(arguments.repeats):
            report = bench(copies, settings, Progress(quiet=True), arguments.bundle.resolve().parent / FILE_NAME)
            noisy += report.noisy[:1]
            found.append([variant.ratio_to_first for variant in report.measured if variant.ratio_to_first])
            print(" ".join(f"{one.value:.3f} {one.interval_95} {one.differs}" for one in found[-1]), flush=True)
    where = report.machine
    why = f" (such as: {noisy[0]})" if noisy else ""
    counts = f"{arguments.repeats} repeats, {arguments.timed} questions, {arguments.rounds} rounds"
    print(f"\n{counts}; {len(noisy)} of them noisy{why};")
    print(f"{where['processor']}, {where['cores']} cores, Python {where['python']}\n")
    print("| | said to differ | median ratio | repeats that agree with the one before |\n|---|---|---|---|")
    for place, name in enumerate(("the same bundle again", "slowed by a tenth")):
        ratios = [one[place] for one in found]
        agreeing = sum(_agree(*pair) for pair in itertools.pairwise(ratios))
        middle = sorted(one.value for one in ratios)[len(ratios) // 2]
        alarms = sum(one.differs for one in ratios)
        print(f"| {name} | {alarms} of {len(ratios)} | {middle:.3f} | {agreeing} of {len(ratios) - 1} |")


if __name__ == "__main__":
    main()
