"""Rows that join and leave while others are written: each writes what it writes alone, whoever comes and goes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.engines.engine import Engine, RowEngine
from mmedge.engines.generation import GREEDY, Decoding, Generation
from mmedge.engines.joining import JoiningEngine
from mmedge.engines.native import library
from mmedge.engines.native.slots import NativeSlots
from mmedge.engines.slotted import READ_BETWEEN, SlottedRows
from mmedge.engines.variants import VariantSpec, open_variant
from mmedge.runtime import Student
from mmedge.tasks.encoding import Prompt

MB = 1 << 20
SCORED = Decoding(scored=True)


class _Gone(Exception):
    pass


class Opened:
    """An engine, and prompts for it."""

    def __init__(self, bundle: Path, engine: str = "onnxruntime") -> None:
        speaker = open_variant(VariantSpec("native", bundle)).speaker if engine == "native" else Student.load(bundle).speaker
        self.engine: Any = speaker.engine
        # a batch of int8 rows has the very bits of each alone where no row's scale depends on others
        self.exact = engine == "native" or (bool(getattr(self.engine, "_encoder", None)) and bundle.name == "bundle-int8")
        texts = [f"Ann has {n} apples and buys {n + 2} more. How many are there{' now' * (7 * n % 5)}?" for n in range(10)]
        contexts = [speaker.encoder.prompts.reasoning_context(text) for text in texts]
        self.prompts = [speaker.prompt("predict" if n % 2 else "explain", context) for n, context in enumerate(contexts)]

    def like(self, found: Generation, alone: Generation) -> bool:
        """Whether what was written is what is written alone."""
        worst = max(abs(one - other) for one, other in zip(found.log_probabilities[0], alone.log_probabilities[0], strict=True))
        return found.tokens == alone.tokens and found.ended == alone.ended and worst <= (0 if self.exact else 2e-3)


RUNS = [("tiny_run", "onnxruntime"), ("tiny_run", "native"), ("llama_run", "onnxruntime"), ("llama_run", "native")]


@pytest.fixture(params=[(*run, precision) for run in RUNS for precision in ("int8", "fp32")], ids="-".join)
def opened(request: pytest.FixtureRequest) -> Opened:
    run, engine, precision = request.param
    if engine == "native" and library.problem():
        pytest.skip(f"the native engine: {library.problem()}")
    folder: Path = request.getfixturevalue(run)
    return Opened(folder / f"bundle-{precision}", engine)


@pytest.fixture
def llama(llama_run: Path) -> Opened:
    return Opened(llama_run / "bundle-int8")


def _finished(rows: RowEngine, number: int) -> Generation:
    while (number, None) not in rows.step():
        pass
    return rows.leave(number)


def test_whoever_comes_and_goes_each_row_writes_what_it_writes_alone(opened: Opened) -> None:
    alone = [opened.engine.generate([prompt], 20, SCORED) for prompt in opened.prompts]
    for seed in range(3):
        chance, rows = random.Random(seed), opened.engine.rows(5, 512 * MB)
        waiting, there = chance.choices(range(len(alone)), k=25), dict[int, int]()
        while waiting or there:
            if waiting and chance.random() < 0.4:
                which = waiting.pop()
                there[rows.join(opened.prompts[which], 20, SCORED)] = which
            if there and chance.random() < 0.03:
                number = chance.choice(list(there))
                which = there.pop(number)
                begun = rows.leave(number).tokens[0]
                assert begun == alone[which].tokens[0][: len(begun)]
            for number, token in rows.step():
                if token is None:
                    assert opened.like(rows.leave(number), alone[there.pop(number)])
        assert not rows.step()


class Counted:
    """A decoder of the native engine, and how many tokens each of its runs has read."""

    def __init__(self, decoder: library.Decoder) -> None:
        self._decoder, self.runs = decoder, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def read(self, cache: library.Cache, ids: library.Integers, *rest: Any) -> None:
        self.runs.append(len(ids))
        self._decoder.read(cache, ids, *rest)


@pytest.mark.skipif(library.problem() is not None, reason="the native engine cannot be used here")
@pytest.mark.parametrize("run", ["tiny_run", "llama_run"])
def test_rows_are_read_and_written_in_one_run_and_what_they_share_is_read_once(run: str, request: pytest.FixtureRequest) -> None:
    opened = Opened(request.getfixturevalue(run) / "bundle-int8", "native")
    encodes, counted = run == "tiny_run", Counted(opened.engine.decoder)
    rows = SlottedRows(opened.engine, NativeSlots(counted, 8, 512 * MB, encodes), 8)  # type: ignore[arg-type]
    first, other = (rows.join(opened.prompts[place], 20) for place in (0, 1))
    rows.step()
    rows.step()
    assert len(counted.runs) == 2, "the others may begin as the first one does"
    alike = [rows.join(opened.prompts[3], 20) for _ in range(3)]
    length = len(opened.engine.sequence(opened.prompts[3]))
    before = sum(counted.runs)
    rows.step()
    rows.step()
    assert len(counted.runs) == 4, "whoever joins is read while the others write"
    assert sum(counted.runs) - before <= length + 2 * 2 + 5 + (encodes * 2 * length), (
        "of three prompts that are alike, two are copied"
    )
    expected = [opened.engine.generate([opened.prompts[place]], 20).tokens for place in (0, 3)]
    while rows.step():
        pass
    assert rows.leave(first).tokens == expected[0] and [rows.leave(one).tokens for one in alike] == [expected[1]] * 3
    assert rows.leave(other).tokens


def test_a_row_alone_has_the_bits_of_a_conversation(opened: Opened) -> None:
    rows, talk = opened.engine.rows(4, 512 * MB), opened.engine.conversation()
    for prompt in (*opened.prompts, *opened.prompts[::-1]):
        found, expected = _finished(rows, rows.join(prompt, 20, SCORED)), talk.generate([prompt], 20, SCORED)
        assert (found.tokens, found.ended) == (expected.tokens, expected.ended)
        assert found.log_probabilities[0] == pytest.approx(expected.log_probabilities[0], abs=1e-5)
        number = rows.join(prompt, 0)
        while (number, None) not in rows.step():
            pass
        np.testing.assert_allclose(rows.last_logits(number), talk.next_logits([prompt], [])[0], atol=1e-4)
        rows.leave(number)


def test_a_long_prompt_holds_nobody_up(llama: Opened) -> None:
    rows = llama.engine.rows(4, 512 * MB)
    long = Prompt(tuple(np.random.default_rng(0).integers(5, 90, 6 * READ_BETWEEN).tolist()), (7,))
    writing = rows.join(llama.prompts[0], 60, Decoding(temperature=5.0, seeds=(4,)))
    rows.step()
    joining = rows.join(long, 5)
    steps = 0
    while True:
        written = rows.step()
        assert [token for number, token in written if number == writing], "the row that writes has its token at every step"
        steps += 1
        if any(number == joining for number, _ in written):
            break
    assert steps >= 6
    rows.leave(joining)
    again = rows.join(long, 5)
    assert any(number == again for number, _ in rows.step()), "what was read stays read, for whoever asks the same"


def test_what_the_memory_does_not_hold_waits(opened: Opened) -> None:
    rows = opened.engine.rows(8, MB // 8)
    alone = [opened.engine.generate([prompt], 20, SCORED) for prompt in opened.prompts]
    numbers = {rows.join(prompt, 20, SCORED): place for place, prompt in enumerate(opened.prompts)}
    while numbers:
        written = rows.step()
        assert len({number for number, _ in written}) < len(opened.prompts)
        for number, token in written:
            if token is None:
                assert opened.like(rows.leave(number), alone[numbers.pop(number)])


# ------------------------------------------------------------------------------------------------------------- threads


def _at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


@pytest.mark.parametrize("lanes", [1, 2])
def test_threads_share_an_engine_and_get_what_they_get_alone(opened: Opened, lanes: int) -> None:
    counted: list[int] = []
    shared = JoiningEngine(opened.engine, [opened.engine.rows(4, 512 * MB) for _ in range(lanes)], counted.append)
    alone = [opened.engine.generate([prompt], 20, SCORED) for prompt in opened.prompts]
    logits = [opened.engine.next_logits([prompt], [5, 6])[0] for prompt in opened.prompts]
    told: list[list[int]] = [[] for _ in opened.prompts]

    def ask(place: int) -> tuple[Generation, Any, Generation]:
        talk, prompt = shared.conversation(), opened.prompts[place]
        how = Decoding(scored=True, on_token=lambda row, token: told[place].append(token))
        return talk.generate([prompt], 20, how), talk.next_logits([prompt], [5, 6]), talk.generate([prompt] * 2, 20, SCORED)

    for place, (written, behind, twice) in enumerate(_at_once(len(opened.prompts), ask)):
        assert opened.like(written, alone[place]) and told[place] == written.tokens[0]
        np.testing.assert_allclose(behind[0], logits[place], atol=0 if opened.exact else 2e-3)
        assert twice.tokens == [alone[place].tokens[0]] * 2
    assert max(counted) > 1


def test_samples_keep_their_seeds(opened: Opened) -> None:
    shared = JoiningEngine(opened.engine, [opened.engine.rows(8, 512 * MB)])
    hows = [Decoding(temperature=1.0, seeds=(place, place + 50)) if place % 2 else GREEDY for place in range(len(opened.prompts))]
    found = _at_once(len(hows), lambda place: shared.generate([opened.prompts[place]] * 2, 15, hows[place]))
    for prompt, how, one in zip(opened.prompts, hows, found, strict=True):
        assert one.tokens == opened.engine.generate([prompt] * 2, 15, how).tokens


def test_a_caller_that_gives_up_leaves_at_once_and_harms_nobody(llama: Opened) -> None:
    counted: list[int] = []
    shared = JoiningEngine(llama.engine, [llama.engine.rows(8, 512 * MB)], counted.append)
    seen: list[int] = []

    def ask(place: int) -> Generation | None:
        def gone(_: int, token: int) -> None:
            seen.append(token)
            raise _Gone

        if place != 3:
            return shared.generate([llama.prompts[place]], 20)
        with pytest.raises(_Gone):
            shared.generate([llama.prompts[place]], 20, Decoding(on_token=gone))
        return None

    found = _at_once(len(llama.prompts), ask)
    assert len(seen) == 1 and found.pop(3) is None
    alone = [llama.engine.generate([prompt], 20).tokens for place, prompt in enumerate(llama.prompts) if place != 3]
    assert [one.tokens for one in found] == alone


class _Counting:
    """Rows whose steps are counted."""

    def __init__(self, inner: RowEngine) -> None:
        self._inner, self.steps = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self) -> Sequence[tuple[int, int | None]]:
        self.steps += 1
        return self._inner.step()


def test_for_a_caller_that_is_gone_not_one_more_step_is_made_even_while_its_prompt_is_read(llama: Opened) -> None:
    long = Prompt(tuple(np.random.default_rng(0).integers(5, 90, 6 * READ_BETWEEN).tolist()), (7,))

    def waits(steps: int) -> Callable[[], None]:
        left = [None] * steps

        def check() -> None:
            if not left:
                raise _Gone
            left.pop()

        return check

    asks: list[Callable[[Engine], object]] = [lambda one: one.generate([long] * 2, 20), lambda one: one.next_logits([long], ())]
    for steps, ask in [(steps, ask) for steps in (0, 1, 3) for ask in asks]:
        counting = _Counting(llama.engine.rows(4, 512 * MB))  # which has read nothing yet
        counting.join(llama.prompts[0], 60, Decoding(temperature=5.0, seeds=(4,)))  # another's, so that it is read in parts
        shared = JoiningEngine(llama.engine, [counting])
        with pytest.raises(_Gone):
            ask(shared.asked_by(waits(steps)))
        assert counting.steps == steps
        assert shared.generate(llama.prompts[:1], 20).tokens == llama.engine.generate(llama.prompts[:1], 20).tokens


class _Failing:
    """Rows whose step fails now and then."""

    def __init__(self, inner: RowEngine) -> None:
        self._inner, self.fails = inner, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self) -> Sequence[tuple[int, int | None]]:
        if self.fails.is_set():
            raise _Gone
        return self._inner.step()


def test_a_failing_engine_fails_whoever_is_there_and_goes_on(llama: Opened) -> None:
    failing = _Failing(llama.engine.rows(4, 512 * MB))
    shared = JoiningEngine(llama.engine, [failing])
    expected = llama.engine.generate(llama.prompts[:1], 20).tokens

    def ask(_: int) -> bool:
        try:
            return bool(shared.generate(llama.prompts[:1], 20).tokens == expected)
        except _Gone:
            return False

    for _ in range(3):
        failing.fails.set()
        assert not any(_at_once(6, ask))
        failing.fails.clear()
        assert all(_at_once(6, ask))


def test_no_thread_is_forgotten(llama: Opened) -> None:
    shared = JoiningEngine(llama.engine, [llama.engine.rows(3, 512 * MB), llama.engine.rows(3, 512 * MB)])

    def ask(place: int) -> int:
        chance = random.Random(place)
        for _ in range(20):
            time.sleep(chance.random() * 0.002)
            shared.generate([chance.choice(llama.prompts)] * chance.randint(1, 3), chance.randint(1, 4))
        return place

    assert _at_once(12, ask) == list(range(12))
