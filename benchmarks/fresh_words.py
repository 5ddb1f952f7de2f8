"""Does a student of the embedded task know what it does not know? Its test questions, and 200 questions in fresh words.

python benchmarks/fresh_words.py runs/embedded-stories [TESTS]        TESTS: more test questions than the run has, of each split

The 200 of `fresh_words.jsonl` were written before version 2's grammar, to report what a newcomer's questions get. Nothing may be
chosen by them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmedge import Student
from mmedge.folders import Run, load_run_recipe
from mmedge.runtime.answers import Answer
from mmedge.statistics import Z_95, accuracy_at, auroc, calibration_by_chance, calibration_error, proportion
from mmedge.storage import iterate_jsonl
from mmedge.tasks import Example, build_task
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.tasks.evaluation_set import FILE_NAME, read_evaluation_set, read_example

FRESH = Path(__file__).with_name("fresh_words.jsonl")


def _auroc_with_interval(confidences: Sequence[float], right: Sequence[bool]) -> str:
    """Return the AUROC with the 95 % interval of Hanley and McNeil (1982)."""
    area, many, others = auroc(confidences, right), sum(right), len(right) - sum(right)
    if area is None:
        return "–"
    above, below = area / (2 - area), 2 * area * area / (1 + area)
    variance = (area * (1 - area) + (many - 1) * (above - area * area) + (others - 1) * (below - area * area)) / (many * others)
    half = Z_95 * variance**0.5
    return f"{area:.3f} [{area - half:.3f}, {min(1.0, area + half):.3f}]"


def _line(name: str, answers: Sequence[Answer], right: Sequence[bool]) -> str:
    confidences = [answer.confidence or 0.0 for answer in answers]
    share = proportion(right)
    low, high = share.interval
    right_share = f"{100 * share.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    error, chance = calibration_error(confidences, right), calibration_by_chance(confidences)
    return (
        f"| {name} | {len(right)} | {right_share} | {_auroc_with_interval(confidences, right)}"
        f" | {error:.3f} ({chance:.3f}) | {100 * accuracy_at(confidences, right, 0.7):.1f} % |"
    )


def _more(folder: Path, tests: int) -> dict[str, tuple[Example, ...]]:
    """Return larger test splits of a run's task, without questions that the run itself trained on or calibrated with."""
    task = build_task(load_run_recipe(Run(folder)).task.model_dump())
    assert isinstance(task, ArithmeticTask), "only the embedded task can write more questions"
    own = task.load()
    known = {example.question for example in (*own.train, *own.validation)}
    written = replace(task, train=1, test=tests).load().tests
    return {split: tuple(one for one in examples if one.question not in known) for split, examples in written.items()}


def main(folder: Path, tests: int | None) -> None:
    """Print the table for a finished run of the embedded task and its int8 bundle."""
    student = Student.load(folder / "bundle-int8")
    evaluation = read_evaluation_set(folder / FILE_NAME)
    splits: dict[str, tuple[Example, ...]] = dict(evaluation.tests()) if tests is None else _more(folder, tests)
    splits["fresh words"] = tuple(read_example(record, FRESH, number) for number, record in iterate_jsonl(FRESH))
    answered: dict[str, tuple[list[Answer], list[bool]]] = {}
    for name, questions in splits.items():
        answers = student.answer_all(questions)
        answered[name] = (
            answers,
            [evaluation.form.agrees(a.text, str(q.label), ()) for a, q in zip(answers, questions, strict=True)],
        )
    known, held_out = answered["new_combinations"], answered["held_out_patterns"]
    answered = {"known and held-out patterns, 1 : 1": (known[0] + held_out[0], known[1] + held_out[1]), **answered}
    print("| questions | | right | AUROC of confidence | calibration error (by chance) | right at 70 % coverage |")
    print("|---|---|---|---|---|---|")
    for name, (answers, right) in answered.items():
        print(_line(name, answers, right))
    newcomer = splits["fresh words"][0]
    first = answered["fresh words"][0][0]
    print(f"\n{newcomer.question}\n    {first.text}   confidence {first.confidence:.2f}, calibrated: {first.calibrated}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
