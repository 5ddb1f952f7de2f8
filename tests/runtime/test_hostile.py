"""A thousand inputs that nobody would call questions: an answer or one line, quickly, in bounded memory."""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path

import pytest

from mmedge import Strategy, Student
from mmedge.errors import MmedgeError
from mmedge.tasks.base import Example
from tests.conftest import mmedge

PREFIXES = [
    "predict:",
    "explain:",
    "solution:",
    "answer:",
    "{question}",
    "{cot}",
    "</s>",
    "<pad>",
    "<|endoftext|>",
    "<|im_start|>",
    "▁",
    "Ġ",
]
SCRIPTS = [
    "你好世界",
    "Сколько",
    "कितने",
    "كم تفاحة",
    "いくつ",
    "🍎🍏👨‍👩‍👧",
    "ﷺ",
    "́" * 30,
    "‮reversed",
    "a\u0000b",
    "\x1b[31m",
    "\ufeff",
    "\u2028",
]
RULES = ["1/0 = ", "9" * 400 + " = ", "(" * 200, "1 + 1 = = = ", "3 = 4", "1e999", "-" * 100, "0.0.0.0", "½ + ¾ = ", "１２ + ３ = "]


def _strange(random_: random.Random) -> str:
    kind = random_.randrange(9)
    if kind == 0:
        return random_.choice(["", " ", "\n", "\t\t", "\x00", "?"])
    if kind == 1:
        return "".join(chr(random_.randrange(0x110000)) for _ in range(random_.randrange(1, 200)))  # surrogates among them
    if kind == 2:
        return "".join(chr(random_.randrange(32)) for _ in range(random_.randrange(1, 100)))
    if kind == 3:
        return random_.choice(PREFIXES) * random_.randrange(1, 40)
    if kind == 4:
        return " ".join(random_.choice(SCRIPTS) for _ in range(random_.randrange(1, 30)))
    if kind == 5:
        return random_.choice(RULES) * random_.randrange(1, 5)
    if kind == 6:
        return "\ud800" * random_.randrange(1, 50)
    if kind == 7:
        return "Ann has 3 apples. " * random_.randrange(1, 60) + random_.choice([*PREFIXES, *SCRIPTS])
    return "".join(random_.choice([*PREFIXES, *SCRIPTS, *RULES, "a", "7"]) for _ in range(random_.randrange(1, 20)))


def _inputs() -> list[str]:
    random_ = random.Random(6)
    found = [_strange(random_) for _ in range(994)]
    return [*found, "x" * 100_000, "7 " * 50_000, "\U0001f34e" * 25_000, "= " * 50_000, " " * 100_000, "\n" * 100_000]


@pytest.mark.parametrize("name", ["tiny_run", "llama_run"])
def test_a_thousand_strange_inputs(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    student = Student.load(run / "bundle-int8")
    student.answer("Ann has 3 apples.", explain=True, evaluate=True)
    inputs = _inputs()
    assert len(inputs) == 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    for start in range(0, len(inputs), 8):
        started = time.monotonic()
        whole = start % 32 == 0 or start > 980
        answers = student.answer_all(inputs[start : start + 8], explain=whole, evaluate=whole, constrained=start % 16 == 0)
        slowest = max(slowest, time.monotonic() - started)
        assert all(isinstance(answer.text, str) and 0 <= (answer.confidence or 0) <= 1 for answer in answers)
        json.dumps([answer.to_json() for answer in answers]).encode()
    assert slowest < 20  # seconds for eight, on a busy machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("name", ["tiny_run", "llama_run"])
def test_strange_choices_and_strategies(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    student = Student.load(run / "bundle-int8")
    random_ = random.Random(7)
    for _ in range(20):
        example = Example("q", _strange(random_), None, tuple(_strange(random_) for _ in range(5)))
        student.answer(example, strategy=Strategy("retry", samples=2, retry_below=1.0), constrained=True)
        list(student.stream(example, explain=True))
    with pytest.raises(MmedgeError, match="too long"):
        student.answer(Example("q", "x", None, ("y" * 600_000, "z" * 600_000)))


def test_strange_lines_on_the_command_line(tiny_run: Path) -> None:
    random_ = random.Random(8)
    lines = [json.dumps({"question": _strange(random_) or "?"}) for _ in range(60)]
    found = mmedge("run", tiny_run / "bundle-int8", stdin="\n".join(lines) + "\n")
    answered = len(found.out.splitlines())
    assert "Traceback" not in found.err
    assert (found.code == 0 and answered == 60) or found.err.strip().startswith("error: standard input:")
