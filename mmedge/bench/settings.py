"""What `mmedge bench` measures, and how much of it; and how a command line writes sizes, times, shares and counts.

Knows nothing about variants or processes, and imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mmedge.errors import MmedgeError

Scenario = Literal["single", "offline", "server", "accuracy"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
Ask = Literal["answer", "rationale", "confidence"]  # the answer only; with a chain of thought; with the best confidence there is
ASKS: tuple[Ask, ...] = get_args(Ask)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class BenchSettings:
    """How much to measure.

    Attributes:
        questions: Questions of each test split; None for all.
        warmup_questions: Questions of one pass of warm-up; passes are repeated until they get no faster (see `timing.settled`).
        verdicts: Held-out chains of thought that are judged.
        threads: Threads of each variant; by default what a bundle asks for, or else all of the process's cores.
        scenarios: What is measured.
        ask: What is asked for: the answer, with a rationale, or with the best confidence there is.
        timed: How many of the questions, evenly spread, are asked one at a time in each round; None for all.
        rounds: How often these are asked, each time of new processes.
        precision: Rounds are repeated until half the 95 % intervals of medians and ratios are at most this share; None for not.
        max_rounds: Rounds at most.
        batches: Batch sizes of the offline scenario.
        offline_rounds: How often each batch size is measured.
        latency_bound: Seconds that p99 must keep in the server scenario.
        server_seconds: About how long one rate is tried.
        cpus: Processors that each variant may use; None for all of this process's.
        memory_limit: Bytes of memory that each variant may use; None for no limit.
        sweep_threads: Thread counts that each variant is measured with.
    """

    questions: int | None = None
    warmup_questions: int = 5
    verdicts: int = 100
    threads: int | None = None
    scenarios: tuple[Scenario, ...] = ("single", "accuracy")
    ask: Ask = "answer"
    timed: int | None = None
    rounds: int = 1
    precision: float | None = None
    max_rounds: int = 50
    batches: tuple[int, ...] = (1, 8, 32)
    offline_rounds: int = 4
    latency_bound: float = 0.2
    server_seconds: float = 10.0
    cpus: int | None = None
    memory_limit: int | None = None
    sweep_threads: tuple[int, ...] = ()


def settings_for(place: Path, given: Mapping[str, int]) -> BenchSettings:
    """Return settings: those given first, then those of the run's recipe, then the defaults.

    Args:
        place: What is measured; a run has a recipe.
        given: Fields of the recipe's section `bench` that a command line says.
    """
    from mmedge.folders import RECIPE
    from mmedge.recipe import BenchSection, load_recipe

    path = place / RECIPE
    section = load_recipe(path).bench if path.is_file() else BenchSection()
    return BenchSettings(**{**section.model_dump(), **given})


def read_choices(scenarios: str, ask: str) -> dict[str, Any]:
    """Return the fields of `BenchSettings` that a command line gives as words.

    Raises:
        MmedgeError: It says something else.
    """
    wanted = [name.strip() for name in scenarios.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in SCENARIOS]:
        raise MmedgeError(f"--scenarios: unknown scenario {unknown[0]!r}", f"choose from {', '.join(SCENARIOS)}")
    if not wanted:
        raise MmedgeError("--scenarios is empty", f"choose from {', '.join(SCENARIOS)}")
    if ask not in ASKS:
        raise MmedgeError(f"--ask: unknown choice {ask!r}", f"choose from {', '.join(ASKS)}")
    return {"scenarios": tuple(name for name in SCENARIOS if name in wanted), "ask": ask}


def parse_size(text: str, what: str) -> int:
    """Return a size such as `300M` (300 · 10⁶ bytes), `512MiB` or `1G` in bytes.

    Raises:
        MmedgeError: It is something else, or less than a megabyte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1e6:
        raise MmedgeError(
            f"{what}: invalid size {text!r}", "write a number with M, MiB, G or GiB, such as 300M; at least a megabyte"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def parse_seconds(text: str, what: str) -> float:
    """Return a span of time such as `200ms` or `1.5s` in seconds.

    Raises:
        MmedgeError: It is something else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", text)
    if match is None or not float(match[1]):
        raise MmedgeError(f"{what}: invalid time {text!r}", "write a number with ms or s, such as 200ms")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def parse_share(text: str, what: str) -> float:
    """Return a share such as `3%` or `0.03`.

    Raises:
        MmedgeError: It is something else, or not between 0 and 1.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise MmedgeError(f"{what}: invalid percentage {text!r}", "write a percentage between 0 and 100, such as 3%")
    return share


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """Return whole numbers such as `1,8,32`, each once.

    Raises:
        MmedgeError: Some are something else, or not positive.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 100_000 for part in parts):
        raise MmedgeError(f"{what}: invalid list {text!r}", "write positive whole numbers separated by commas, such as 1,8,32")
    return tuple(dict.fromkeys(int(part) for part in parts))
