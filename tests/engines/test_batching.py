"""Calls that wait for a busy engine are written together, each as it would be alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmedge.engines.batching import BatchingEngine
from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation
from mmedge.runtime import Student
from mmedge.tasks.encoding import Prompt


class _Held:
    """An engine whose first batch waits until it is released."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.gate, self.began = inner, threading.Event(), threading.Event()

    def conversation(self) -> Engine:
        return self  # type: ignore[return-value]

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        self.began.set()
        assert self.gate.wait(30)
        return self.inner.generate(prompts, max_new_tokens, how)


class _Gone(Exception):
    pass


@pytest.fixture(params=["tiny_run", "llama_run"])
def asked(request: pytest.FixtureRequest) -> tuple[Engine, list[Prompt]]:
    run: Path = request.getfixturevalue(request.param)
    speaker = Student.load(run / "bundle-int8").speaker
    texts = [f"Ann has {n} apples and buys {n + 2} more. How many are there{' now' * (n % 3)}?" for n in range(6)]
    contexts = [speaker.encoder.prompts.reasoning_context(text) for text in texts]
    return speaker.engine, [speaker.prompt("predict", context) for context in contexts]


def _together(engine: Engine, prompts: list[Prompt], hows: list[Decoding]) -> tuple[list[Generation | Exception], list[int]]:
    """Let all calls but the first wait for it; return what each gets, and the rows of the batches."""
    held, rows = _Held(engine), list[int]()
    shared = BatchingEngine(held, 1, told=rows.append)  # type: ignore[arg-type]

    def call(place: int) -> Generation | Exception:
        try:
            return shared.generate([prompts[place]], 10, hows[place])
        except _Gone as error:
            return error

    with ThreadPoolExecutor(len(prompts)) as pool:
        first = pool.submit(call, 0)
        held.began.wait(30)
        others = [pool.submit(call, place) for place in range(1, len(prompts))]
        while len(shared._waiting) < len(others):
            time.sleep(0.001)
        held.gate.set()
        return [one.result(60) for one in (first, *others)], rows


def test_what_waits_is_written_in_one_batch_as_alone(asked: tuple[Engine, list[Prompt]]) -> None:
    engine, prompts = asked
    told: list[list[int]] = [[] for _ in prompts]

    def how(place: int) -> Decoding:
        return Decoding(scored=True, on_token=lambda row, token: told[place].append(token))

    found, rows = _together(engine, prompts, [how(place) for place in range(len(prompts))])
    assert rows == [1, 5]
    for place, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
        alone = engine.generate([prompt], 10, Decoding(scored=True))
        assert isinstance(one, Generation) and one.tokens == alone.tokens and one.ended == alone.ended
        assert one.log_probabilities[0] == pytest.approx(alone.log_probabilities[0], abs=1e-3) and told[place] == one.tokens[0]


def test_samples_keep_their_seeds_and_unlike_calls_do_not_mix(asked: tuple[Engine, list[Prompt]]) -> None:
    engine, prompts = asked
    hows = [Decoding(temperature=1.0, seeds=(place,)) if place % 2 else GREEDY for place in range(len(prompts))]
    found, rows = _together(engine, prompts, hows)
    assert sorted(rows) == [1, 2, 3]
    for prompt, how, one in zip(prompts, hows, found, strict=True):
        assert isinstance(one, Generation) and one.tokens == engine.generate([prompt], 10, how).tokens


def test_a_caller_that_gives_up_harms_nobody(asked: tuple[Engine, list[Prompt]]) -> None:
    engine, prompts = asked
    seen: list[int] = []

    def gone(_: int, token: int) -> None:
        seen.append(token)
        raise _Gone

    hows = [Decoding(on_token=gone) if place == 3 else GREEDY for place in range(len(prompts))]
    found, _ = _together(engine, prompts, hows)
    assert isinstance(found.pop(3), _Gone) and len(seen) == 1
    for prompt, one in zip([*prompts[:3], *prompts[4:]], found, strict=True):
        assert isinstance(one, Generation) and one.tokens == engine.generate([prompt], 10).tokens


def test_a_failing_engine_fails_every_call_and_goes_on(asked: tuple[Engine, list[Prompt]]) -> None:
    engine, prompts = asked

    class Broken(_Held):
        def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
            raise _Gone

    shared = BatchingEngine(Broken(engine), 1)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(_Gone):
            shared.generate(prompts[:1], 5)
