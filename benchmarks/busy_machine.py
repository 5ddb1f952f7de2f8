"""How training, export and answering slow down on a busy machine: a loop pinned to each core, medians of several rounds.

    python -m benchmarks.busy_machine                       both students, five rounds each way
    python -m benchmarks.busy_machine --rounds 3 --only answers --out busy.json

With one other process on every core, half of each core is left: twice the idle time is the fair share. Threads that spin while they
wait for each other take far more. Idle and busy rounds alternate, so that a drifting machine slows both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from mmedge.machine import machine, usable_cores

ANSWERING = """
import json, sys, time
from pathlib import Path
from mmedge.bench.asker import Asker
from mmedge.engines.variants import VariantSpec, open_variant
from mmedge.tasks.evaluation_set import read_evaluation_set
kind, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
questions = [one for part in read_evaluation_set(place.parent / "evaluation.jsonl").tests().values() for one in part]
asker = Asker(open_variant(VariantSpec(kind, place)))
asker.ask(questions[:3], "rationale", 1)
started = time.perf_counter()
for number in range(count):
    asker.ask([questions[number % len(questions)]], "rationale", 1)
print(time.perf_counter() - started)
"""


def _burn(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    number = 1
    while True:
        number = (number * 1103515245 + 12345) % 2147483648


@contextmanager
def _others(busy: bool) -> Iterator[None]:
    """Keep one process busy on every usable core, or none."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(usable_cores())
    burners = [multiprocessing.Process(target=_burn, args=(core,), daemon=True) for core in cores] if busy else []
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def _run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def _recipe(folder: Path, steps: int) -> Path:
    """Write a recipe that trains a student of the quickstart's size for some steps."""
    values = yaml.safe_load((Path(__file__).parent.parent / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    values["task"] |= {"train": 1200, "test": 30}
    values["split"] = {"validation": 40, "verdict_test": 20}
    for stage in ("stage1", "stage2"):
        values["training"][stage] |= {"max_steps": steps, "evaluate_every": steps}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _trained(recipe: Path, folder: Path) -> float:
    """Train anew and return the seconds of both stages, without starting up and validating."""
    _run("-m", "mmedge", "distill", recipe, "--out", folder, "-q")
    stages = [json.loads((folder / stage / "done.json").read_text(encoding="utf-8")) for stage in ("stage1", "stage2")]
    return sum(float(stage["seconds"]) for stage in stages)


def _exported(run: Path, folder: Path) -> float:
    started = time.perf_counter()
    _run("-m", "mmedge", "export", run, "--int8", "--out", folder, "-q")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="training steps of each stage")
    parser.add_argument("--questions", type=int, default=60, help="answered with a rationale in each round")
    parser.add_argument("--bundle", type=Path, help="answer with this bundle too, such as a large student's")
    parser.add_argument("--only", default="", help="work whose name has this in it; all by default")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, run = _recipe(folder, given.steps), folder / "run"
        _trained(recipe, run)
        _exported(run, run)
        numbers = iter(range(10**6))
        works: dict[str, Callable[[], float]] = {
            "training": lambda: _trained(recipe, folder / f"train{next(numbers)}"),
            "export": lambda: _exported(run, folder / f"export{next(numbers)}"),
            "answers, bundle": lambda: float(_run("-c", ANSWERING, "bundle", run / "bundle-int8", given.questions)),
            "answers, torch": lambda: float(_run("-c", ANSWERING, "torch", run / "student", given.questions)),
        }
        if given.bundle:
            works["answers, given bundle"] = lambda: float(_run("-c", ANSWERING, "bundle", given.bundle, given.questions))
        works = {work: measure for work, measure in works.items() if given.only in work}
        seconds: dict[str, dict[bool, list[float]]] = {work: {False: [], True: []} for work in works}
        for _ in range(given.rounds):
            for work, measure in works.items():
                for busy in (False, True):
                    with _others(busy):
                        seconds[work][busy].append(measure())
        found = {
            work: {
                "idle_seconds": statistics.median(times[False]),
                "busy_seconds": statistics.median(times[True]),
                "ratio": statistics.median(times[True]) / statistics.median(times[False]),
                "samples": {"idle": times[False], "busy": times[True]},
            }
            for work, times in seconds.items()
        }
    for work, figures in found.items():
        print(f"{work:22} idle {figures['idle_seconds']:7.2f} s   busy {figures['busy_seconds']:7.2f} s   × {figures['ratio']:.2f}")
    if given.out:
        given.out.write_text(json.dumps({"machine": machine(), "work": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
