"""What measuring costs: the same questions to a bundle through `mmedge bench`'s worker and through the Python API alone.

    python benchmarks/bench_overhead.py runs/quickstart/bundle-int8

Both take turns on every question in one process. Two ratios are printed, with 95 % intervals over rounds: the time of a call
through the bench over that of a plain call, both seen by the same outside clock (the overhead), and what the bench says a call
took over what that clock says (whether samples are true).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmedge import Student
from mmedge.bench.asker import Asker
from mmedge.engines.variants import VariantSpec, open_variant
from mmedge.machine import machine
from mmedge.tasks.evaluation_set import FILE_NAME, read_evaluation_set


def interval(ratios: list[float], seed: int = 0) -> dict[str, float]:
    """Return the median of some ratios and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(seed).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"value": float(np.median(ratios)), "low": float(low), "high": float(high)}


def main() -> None:
    """Start from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    tests = read_evaluation_set(arguments.evaluation or arguments.bundle.resolve().parent / FILE_NAME).tests()
    questions = [example for examples in tests.values() for example in examples][: arguments.questions]
    plain = Student.load(arguments.bundle, arguments.threads)
    asker = Asker(open_variant(VariantSpec("bundle", arguments.bundle, arguments.threads)))
    overhead, truth = [], []
    for number in range(arguments.rounds + 1):
        spent = {"plain": 0.0, "bench": 0.0, "said": 0.0}
        for place, example in enumerate(questions):
            for way in ("plain", "bench") if (number + place) % 2 else ("bench", "plain"):
                started = time.perf_counter()
                if way == "plain":
                    plain.answer_all([example], batch=1)
                    spent[way] += time.perf_counter() - started
                else:
                    found = asker.ask([example], "answer", 1)
                    spent[way] += time.perf_counter() - started
                    spent["said"] += found.seconds
        if number:  # the first warms up
            overhead.append(spent["bench"] / spent["plain"])
            truth.append(spent["said"] / spent["bench"])
    report: dict[str, Any] = {
        "overhead": interval(overhead),
        "said_over_seen": interval(truth),
        "questions": len(questions),
        "rounds": arguments.rounds,
        "machine": machine(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
