"""How fast a bundle answers: everything from one reading, in batches, drafted, and from a cold start.

    python benchmarks/runtime_speed.py runs/quickstart/bundle-int8 [--questions 60] [--json FILE]

Ratios are within one run; ways that are compared take turns on every question.

    chain    answer + rationale + confidence by `Student`, against the three written back to back from one reading (what is
             added), and against three calls that each read the question anew (what is saved)
    batch    answers a second in batches of 1, 8 and 32, and whether every answer is the same
    draft    rationales written with several tokens guessed and verified a step, against one token a step: the same tokens?
    constrained  answers held to their form, against free ones, a token: one token a step, and with forced tokens read together
    cold     from the start of a process to its first answer
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge import Strategy, Student
from mmedge.engines.generation import Decoding
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.statistics import bootstrap, proportion
from mmedge.storage import iterate_jsonl, write_json
from mmedge.tasks.base import ChainOfThought, Example
from mmedge.tasks.evaluation_set import FILE_NAME, read_evaluation_set, read_example
from mmedge.tasks.forms.constraints import Constraint
from mmedge.tasks.prompts import render_question

SCORED = Decoding(scored=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def chain(student: Student, questions: Sequence[Example]) -> dict[str, Any]:
    """Answer, rationale and verdict: together, back to back from one reading, and each by itself."""
    stated, encoder = student.bundle.manifest, student.speaker.encoder
    begun, verdicts = encoder.verdict_tokens()

    def parts(example: Example, shared: bool) -> float:
        context = stated.prompts.reasoning_context(render_question(example))
        engine = student.speaker.engine.conversation()

        def asked() -> Any:
            return engine if shared else student.speaker.engine.conversation()

        first, answer = timed(lambda: asked().generate([encoder.prompt("predict", context)], stated.max_answer_tokens, SCORED))
        second, rationale = timed(
            lambda: asked().generate([encoder.prompt("explain", context)], stated.max_rationale_tokens, SCORED)
        )
        cot = ChainOfThought(encoder.text(rationale.tokens[0]), encoder.text(answer.tokens[0]))
        judged = encoder.prompt("predict", stated.prompts.evaluation_context(render_question(example), cot))
        third, _ = timed(lambda: asked().next_logits([judged], begun)[:, verdicts])
        return first + second + third

    def naive(example: Example) -> float:
        """As one would without knowing what the three have in common: a prompt each, the verdict written out."""
        context = stated.prompts.reasoning_context(render_question(example))

        def written(kind: Any, context: Any, limit: int) -> str:
            return encoder.text(student.speaker.engine.generate([encoder.prompt(kind, context)], limit).tokens[0])

        def work() -> None:
            cot = ChainOfThought(
                written("explain", context, stated.max_rationale_tokens), written("predict", context, stated.max_answer_tokens)
            )
            written("predict", stated.prompts.evaluation_context(render_question(example), cot), 8)

        return timed(work)[0]

    ways: dict[str, Callable[[Example], float]] = {
        "student": lambda example: timed(lambda: student.answer(example, explain=True, strategy=Strategy("confidence")))[0],
        "back_to_back": lambda example: parts(example, True),
        "naive": naive,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(questions[0])
    for number, example in enumerate(questions):
        names = list(ways)
        for name in names[number % 3 :] + names[: number % 3]:
            seconds[name].append(ways[name](example))
    return {
        "questions": len(questions),
        "ms": {name: 1000 * statistics.median(taken) for name, taken in seconds.items()},
        "student_over_back_to_back": sum(seconds["student"]) / sum(seconds["back_to_back"]),
        "naive_over_student": sum(seconds["naive"]) / sum(seconds["student"]),
    }


def batches(student: Student, questions: Sequence[Example], rounds: int = 9) -> dict[str, Any]:
    """Answers a second by batch size, medians over rounds in which sizes take turns, and how many answers differ in anything."""
    sizes = (1, 8, 32)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    answers: dict[int, list[Any]] = {}
    for number in range(rounds + 1):
        for size in sizes:
            seconds, answers[size] = timed(lambda size=size: student.answer_all(questions, batch=size, strategy=Strategy()))  # type: ignore[misc]
            if number:  # the first round warms up
                rates[size].append(len(questions) / seconds)
    ratios = sorted(many / one for many, one in zip(rates[32], rates[1], strict=True))
    return {
        "questions": len(questions),
        "answers_per_second": {str(size): statistics.median(values) for size, values in rates.items()},
        "speedup_32": statistics.median(ratios),
        "speedup_32_of_rounds": ratios,
        "different_answers_32": sum(a != b for a, b in zip(answers[1], answers[32], strict=True)),
    }


def drafts(student: Student, questions: Sequence[Example]) -> dict[str, Any]:
    """Rationales one by one, plainly and drafted in turn."""
    stated, encoder = student.bundle.manifest, student.speaker.encoder
    prompts = [encoder.prompt("explain", stated.prompts.reasoning_context(render_question(example))) for example in questions]
    ways = {"plain": Decoding(), "drafted": Decoding(draft=True)}
    seconds, steps, different, tokens = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0), 0, 0
    for prompt in prompts[:3]:
        for how in ways.values():
            student.speaker.engine.generate([prompt], stated.max_rationale_tokens, how)
    for number, prompt in enumerate(prompts):
        found = {}
        for name in sorted(ways, reverse=bool(number % 2)):
            started = time.perf_counter()
            found[name] = student.speaker.engine.generate([prompt], stated.max_rationale_tokens, ways[name])
            taken = time.perf_counter() - started
            seconds[name] += taken
            steps[name] += found[name].steps
        different += found["plain"].tokens != found["drafted"].tokens
        tokens += len(found["plain"].tokens[0])
    return {
        "questions": len(questions),
        "tokens": tokens,
        "tokens_per_step": tokens / steps["drafted"],
        "speedup": seconds["plain"] / seconds["drafted"],
        "different": different,
    }


class OneByOne:
    """A constraint that does not tell which tokens are forced."""

    def __init__(self, constraint: Constraint) -> None:
        self.allowed = constraint.allowed
        if hasattr(constraint, "permits"):
            self.permits = constraint.permits


def constrained(student: Student, questions: Sequence[Example]) -> dict[str, Any]:
    """Answers written freely, held to the form, and with forced tokens read together, in turn: seconds a token after the first."""
    stated, encoder = student.bundle.manifest, student.speaker.encoder
    limit, constrainer = stated.max_answer_tokens, student.bundle.form.constrainer(encoder)
    spent: dict[str, list[tuple[float, int]]] = {"free": [], "constrained": [], "forced": []}
    same: list[bool] = []
    for number, example in enumerate(questions):
        prompt = encoder.prompt("predict", stated.prompts.reasoning_context(render_question(example)))
        written, names = {}, list(spent)
        for name in names[number % 3 :] + names[: number % 3]:
            held = None if name == "free" else constrainer.answer(example, limit)
            held = OneByOne(held) if held is not None and name == "constrained" else held
            how = Decoding() if held is None else Decoding(constraints=(held,))
            found = student.speaker.engine.generate([prompt], limit, how)
            written[name] = found.tokens[0]
            spent[name].append((found.seconds - found.time_to_first_token, len(found.tokens[0]) - 1))
        same.append(written["free"] == written["constrained"] == written["forced"])
    seconds = {name: np.array(found, dtype=float) for name, found in spent.items()}

    def against_free(name: str) -> dict[str, Any] | None:
        of, free = seconds[name], seconds["free"]

        def ratio(places: NDArray[np.int64]) -> float:
            one, base = of[places].sum(0), free[places].sum(0)
            return float(one[0] / one[1] / (base[0] / base[1]))

        found = bootstrap(ratio, len(of))
        return None if found is None else found.to_json()

    return {
        "questions": len(questions),
        "ms_a_token": {name: 1000 * float(found[:, 0].sum() / found[:, 1].sum()) for name, found in seconds.items()},
        "tokens": {name: int(found[:, 1].sum()) for name, found in seconds.items()},
        "same_texts": proportion(same).to_json(),
        "constrained_over_free": against_free("constrained"),
        "forced_over_free": against_free("forced"),
    }


def cold(folder: Path, question: str, times: int = 5) -> dict[str, Any]:
    """Seconds from the start of a process to its end with one answer, and of an import alone."""
    ask = f"from mmedge import Student\nprint(Student.load({str(folder)!r}).answer({question!r}).text)"
    found = {
        "first_answer": [
            timed(lambda: subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True))[0] for _ in range(times)
        ],
        "import": [timed(lambda: subprocess.run([sys.executable, "-c", "import mmedge"], check=True))[0] for _ in range(times)],
        "python": [timed(lambda: subprocess.run([sys.executable, "-c", ""], check=True))[0] for _ in range(times)],
    }
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--batched", type=int, default=320)
    parser.add_argument("--drafted", type=int, default=60)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", type=Path, help="JSON lines with more questions to draft for")
    parser.add_argument("--only", choices=("chain", "batch", "draft", "constrained", "cold"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        student = Student.load(given.bundle, given.threads)
    except MmedgeError as error:
        raise SystemExit(f"error: {error}") from None
    tests = read_evaluation_set(given.bundle.resolve().parent / FILE_NAME).tests()
    questions = [example for examples in tests.values() for example in examples]
    more = [read_example(record, given.data, number) for number, record in iterate_jsonl(given.data)] if given.data else questions
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "chain": lambda: chain(student, questions[: given.questions]),
        "batch": lambda: batches(student, (questions * 9)[: given.batched]),
        "draft": lambda: drafts(student, more[: given.drafted]),
        "constrained": lambda: constrained(student, questions[: given.questions]),
        "cold": lambda: cold(given.bundle, questions[0].question),
    }
    found: dict[str, Any] = {"bundle": given.bundle.name, "recipe": student.bundle.manifest.recipe, "machine": machine()}
    found |= {name: part() for name, part in parts.items() if given.only in (None, name)}
    print(json.dumps(found, indent=2))
    if given.json:
        write_json(given.json, found)


if __name__ == "__main__":
    main()
