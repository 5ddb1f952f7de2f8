"""What four and two bits cost a student, and what learning its scales wins back: the same student exported in several ways.

    python benchmarks/recovery.py RUN [RUN …] [--rows "int4, GPTQ" …] [--minutes 30] [--threads 2] [--out recovery.json]

The bundles themselves are compared with their float student, on the runtime: the test questions of each run stand in place of its
validation questions in the evaluation set that `mmedge export` verifies with. Nothing is chosen there (`--max-accuracy-drop 1000`).
Where test questions are few, `--split test validation` takes a run's validation questions too; its training may not have chosen by
them then (as with one evaluation, at its end).

    int4, nearest             every weight to its nearest code
    int4, GPTQ                codes chosen so that a layer's outputs on calibration questions change least
    int4, nearest, learned    the first, and scales learned from the student: what mlx-lm's DWQ does, with this package's codes
    int4, GPTQ, learned       `--recover`
    int2, nearest             as above, in 2 bits
    int2, GPTQ, learned       `--int2`

Every row continues after a kill, and its minutes are then those of the last part. Prints a table for each run and writes everything
as JSON: divergence from the float student on test answers and on held-out texts, the change of the right answer's mean probability
and of the accuracy with 95 % intervals, size, time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmedge.folders import student_in
from mmedge.machine import machine
from mmedge.manifest import change_text
from mmedge.storage import iterate_jsonl, write_json, write_text

ROWS = {  # precision, calibrated, learned
    "int4, nearest": ("int4", False, False),
    "int4, GPTQ": ("int4", True, False),
    "int4, nearest, learned": ("int4", False, True),
    "int4, GPTQ, learned": ("int4", True, True),
    "int2, nearest": ("int2", False, False),
    "int2, GPTQ, learned": ("int2", True, True),
}


def write_evaluation(run: Path, path: Path, tested: Sequence[str], *, calibrated: bool) -> None:
    """Write a run's evaluation set with its test questions as those to verify with, and no calibration questions if so wanted."""
    lines = []
    for _, stated in iterate_jsonl(run / "evaluation.jsonl"):
        record = dict(stated)
        split = record.get("split")
        if split == "validation" and split not in tested:
            continue
        if split in tested:
            record["split"] = "validation"
        if split == "calibration" and not calibrated:
            record["split"] = "recovery"  # as many texts to learn from
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    for file in run.glob("*.json"):  # a form's own file, which the evaluation set names
        if file.name in lines[0]:
            write_text(path.parent / file.name, file.read_text(encoding="utf-8"))


def export(run: Path, row: str, place: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """Export a student one way, unless that is done, and return what its bundle is worth; None where it was refused."""
    precision, calibrated, learned = ROWS[row]
    place.mkdir(parents=True, exist_ok=True)
    evaluation = place / "evaluation.jsonl"
    write_evaluation(run, evaluation, options.split, calibrated=calibrated)
    command = [
        sys.executable,
        "-m",
        "mmedge",
        "export",
        str(run),
        f"--{precision}",
        "--out",
        str(place),
        "--max-accuracy-drop",
        "1000",
    ]
    command += ["--evaluation", str(evaluation), "--recover" if learned else "--no-recover", "--max-minutes", str(options.minutes)]
    started = time.monotonic()
    if subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": str(options.threads)}).returncode:
        return None  # it has said why
    bundle = place / f"bundle-{precision}"
    found = json.loads((bundle / "manifest.json").read_text())
    size = sum(file.stat().st_size for file in bundle.iterdir())
    seconds = round(time.monotonic() - started, 1)
    return {"seconds": seconds, "bytes": size} | {name: found[name] for name in ("verification", "recovery")}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return a run's table in Markdown."""
    heads = [
        "MB",
        "KL, test answers",
        "KL, held-out texts",
        "same token",
        "right answer's probability, points",
        "accuracy, points",
        "minutes",
    ]
    lines = [f"| | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for row, found in results.items():
        seen, learned = found["verification"], found["recovery"]
        held = f"{learned['kl_before']:.2g} → {learned['kl_after']:.2g}" if learned else "–"
        cells = [f"{found['bytes'] / 1e6:.0f}", f"{seen['mean_kl']:.2g}", held, f"{100 * seen['top1_agreement']:.1f} %"]
        cells += [
            change_text(seen["label_probability_change"]),
            change_text(seen["accuracy_change"]),
            f"{found['seconds'] / 60:.0f}",
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--split", nargs="+", default=["test"], help="the test questions, by the names of their splits")
    parser.add_argument("--minutes", type=float, default=30.0, help="the longest that scales are learned")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("recovery.json"))
    options = parser.parse_args()
    before = json.loads(options.out.read_text())["runs"] if options.out.is_file() else {}
    everything: dict[str, dict[str, Any]] = before
    for run in options.runs:
        student_in(run)
        results = everything.setdefault(str(run), {})
        for row in options.rows:
            if row in results:
                continue
            found = export(run, row, run / "recovery" / re.sub(r"\W+", "-", row), options)
            if found is None:  # tried anew when the command runs again
                print(f"{row}: no bundle was written", file=sys.stderr)
                continue
            results[row] = found
            write_json(options.out, {"machine": machine(), "threads": options.threads, "runs": everything})
        print(f"\n{run}\n\n{table(results)}")


if __name__ == "__main__":
    main()
