"""T5 students on the native engine: torch's logits, and bits that depend on the context and the row alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmedge.bundle import Bundle
from mmedge.engines.engine import Engine
from mmedge.engines.generation import Decoding, Logits
from mmedge.engines.native import library
from mmedge.engines.native.engine import NativeEngine, unsupported
from mmedge.engines.onnx.decoding import open_engine
from mmedge.errors import MmedgeError
from mmedge.runtime import Student
from mmedge.tasks.encoding import Prompt
from tests.native.students import ENCODER_DECODERS, VOCABULARY, exported, sequences, with_cache
from tests.native.test_native import ISAS, PRECISIONS, divergence

pytestmark = pytest.mark.skipif(library.problem() is not None, reason=f"the native engine: {library.problem()}")

Pairs = list[tuple[tuple[int, ...], tuple[int, ...]]]


def pairs(seed: int, count: int, longest: int = 60) -> Pairs:
    """Return contexts, and what the decoder reads."""
    return list(zip(sequences(seed, count, longest), sequences(seed + 1000, count, 30), strict=True))


def forced(engine: Engine, context: tuple[int, ...], tokens: tuple[int, ...]) -> Logits:
    """Return an engine's logits behind every token that the decoder reads."""
    return engine.forced_logits(Prompt(context, tokens[:1]), (*tokens[1:], 0))


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_float32_logits_are_torchs(kind: str) -> None:
    student = exported(kind, "fp32")
    engine = NativeEngine(student.bundle, 1)
    for context, tokens in pairs(0, 20):
        assert np.abs(forced(engine, context, tokens) - student.logits(tokens, context)).max() < 1e-4


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_quantized_logits_are_as_near_to_torch_as_those_of_onnxruntime(kind: str, precision: str) -> None:
    student = exported(kind, precision)
    native, onnx = NativeEngine(with_cache(student.bundle, "float32"), 1), open_engine(student.bundle, 1)
    far: list[tuple[float, float]] = []
    for context, tokens in pairs(1, 25):
        right = student.logits(tokens, context)
        far.append((divergence(right, forced(native, context, tokens)), divergence(right, forced(onnx, context, tokens))))
    ours, theirs = np.mean(far, axis=0)
    assert ours <= 1.02 * theirs  # weights and cache are the same here; tests/native/test_cache.py has what other caches cost


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_a_row_gives_the_same_bits_alone_in_a_batch_step_by_step_and_on_every_instruction_set(kind: str, precision: str) -> None:
    same_bits(exported(kind, precision).bundle)


def same_bits(bundle: Bundle) -> None:
    """Assert that rows give the same bits alone, together, token by token, on one thread and two, and on every instruction set."""
    engines = [NativeEngine(bundle, threads, isa) for isa in ISAS for threads in (1, 2)]
    rows = pairs(2, 8, 90)  # more than 256 tokens of context together
    whole = [forced(engines[0], context, tokens) for context, tokens in rows]
    for engine in engines:
        together = engine.next_logits([Prompt(context, tokens) for context, tokens in rows], ())
        for (context, tokens), logits, last in zip(rows, whole, together, strict=True):
            assert np.array_equal(last, logits[-1])
            assert np.array_equal(forced(engine, context, tokens), logits)
        context, tokens = rows[0]
        one_by_one = engine.reading(1, len(tokens), engine.held([Prompt(context, ())]))
        for token, logits in zip(tokens, whole[0], strict=True):
            assert np.array_equal(one_by_one.step(np.array([token])), logits[None])


def test_a_context_longer_than_a_chunk_gives_torchs_logits() -> None:
    student = exported("t5", "fp32")
    engine = NativeEngine(student.bundle, 2)
    context = tuple(np.random.default_rng(7).integers(0, VOCABULARY, 700).tolist())
    assert np.abs(forced(engine, context, (0, 5, 6)) - student.logits((0, 5, 6), context)).max() < 1e-4
    short = tuple(context[:20])
    together = engine.next_logits([Prompt(short, (0,)), Prompt(context, (0,)), Prompt(short, (0,))], ())
    assert np.array_equal(together[0], forced(engine, short, (0,))[0])
    assert np.array_equal(together[1], forced(engine, context, (0,))[0])
    assert np.array_equal(together[2], together[0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_conversations_and_rows_that_join_write_what_is_written_alone(kind: str, precision: str) -> None:
    bundle = exported(kind, precision).bundle
    alone, together = NativeEngine(bundle, 1), NativeEngine(bundle, 2)
    shared, scored = together.conversation(), Decoding(scored=True)
    prompts = [Prompt(context, tokens[:3]) for context, tokens in pairs(4, 10, 25)]
    expected = [alone.generate([prompt], 9, scored) for prompt in prompts]
    for seed in range(3):
        chance = random.Random(seed)
        some = chance.sample(range(len(prompts)), 4)
        found = shared.generate([prompts[place] for place in some], 9, scored)
        for row, place in enumerate(some):
            assert found.tokens[row] == expected[place].tokens[0]
            assert found.log_probabilities[row] == expected[place].log_probabilities[0]
        rows = together.rows(3, 1 << 20)
        waiting, there = chance.choices(range(len(prompts)), k=15), dict[int, int]()
        while waiting or there:
            if waiting and chance.random() < 0.5:
                which = waiting.pop()
                there[rows.join(prompts[which], 9, scored)] = which
            for number, token in rows.step():
                if token is None:
                    left, right = rows.leave(number), expected[there.pop(number)]
                    assert (left.tokens, left.log_probabilities) == (right.tokens, right.log_probabilities)


def test_tokens_and_contexts_that_do_not_exist_are_refused() -> None:
    engine = NativeEngine(exported("t5", "int8").bundle, 1)
    for prompt in (Prompt((VOCABULARY,), (0,)), Prompt((), (0,)), Prompt((3,), (-1,)), Prompt(tuple([3] * 9000), (0,))):
        with pytest.raises(MmedgeError, match="the native engine refuses this"):
            engine.next_logits([prompt], ())


def test_a_trained_student_answers_the_same_on_both_engines(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_run / "bundle-int8"
    questions = [f"Ann has {n} apples and buys {n + 2} more. How many are there?" for n in range(2, 10)]
    onnx = Student.load(bundle)
    monkeypatch.setenv("MMEDGE_ENGINE", "native")
    native = Student.load(bundle)
    assert isinstance(native.speaker.engine, NativeEngine)
    left, right = ([student.answer(question) for question in questions] for student in (onnx, native))
    assert sum(one.text == other.text for one, other in zip(left, right, strict=True)) >= 7


def test_a_bundle_whose_questions_may_be_longer_than_its_plan_runs_on_onnxruntime() -> None:
    bundle = exported("t5", "int8").bundle
    assert unsupported(bundle.manifest) is None
    assert "has 8192 positions" in str(unsupported(replace(bundle.manifest, max_input_tokens=10_000)))
