"""What keys and values are kept in: float32, float16 or int8; less memory, nearly the same logits, and the same bits everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmedge.bundle import open_bundle
from mmedge.engines.bundles import open_speaker
from mmedge.engines.generation import Decoding
from mmedge.engines.native import library
from mmedge.engines.native.engine import NativeEngine
from mmedge.engines.native.slots import NativeSlots
from tests.native import test_encoder_decoder, test_native
from tests.native.students import ENCODER_DECODERS, KINDS, exported, sequences, with_cache

pytestmark = pytest.mark.skipif(library.problem() is not None, reason=f"the native engine: {library.problem()}")

CACHES = ("float16", "int8")


@pytest.mark.parametrize("kind", KINDS)
def test_int8_keeps_the_same_bits_alone_in_a_batch_step_by_step_and_on_every_instruction_set(kind: str) -> None:
    test_native.same_bits(with_cache(exported(kind, "int4").bundle, "int8"))


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_encoded_contexts_in_int8_give_the_same_bits_everywhere(kind: str) -> None:
    test_encoder_decoder.same_bits(with_cache(exported(kind, "int4").bundle, "int8"))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_conversations_write_the_same_whatever_the_cache_is_kept_in(kind: str, cache: str) -> None:
    test_native.conversations(with_cache(exported(kind, "fp32").bundle, cache), 3, 20)


@pytest.mark.parametrize(("cache", "most"), [("float16", 1e-7), ("int8", 1e-4)])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_nearly_those_of_a_float32_cache(kind: str, cache: str, most: float) -> None:
    bundle = exported(kind, "fp32").bundle
    exact, coarse = NativeEngine(bundle, 1), NativeEngine(with_cache(bundle, cache), 1)
    far = []
    for tokens in sequences(5, 15):
        left, right = test_native.forced(exact, tokens), test_native.forced(coarse, tokens)
        assert not np.array_equal(left, right)
        far.append(test_native.divergence(left, right))
    assert np.mean(far) < most


@pytest.mark.parametrize(("cache", "most"), [("float16", 1e-7), ("int8", 1e-4)])
@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_an_encoder_decoders_logits_are_nearly_those_of_a_float32_cache(kind: str, cache: str, most: float) -> None:
    bundle = exported(kind, "fp32").bundle
    exact, coarse = (NativeEngine(with_cache(bundle, one), 1) for one in ("float32", cache))
    far = []
    for context, tokens in test_encoder_decoder.pairs(6, 15):
        left, right = (test_encoder_decoder.forced(engine, context, tokens) for engine in (exact, coarse))
        far.append(test_native.divergence(left, right))
    assert np.mean(far) < most


@pytest.mark.parametrize("kind", [*KINDS, *ENCODER_DECODERS])
def test_float16_halves_the_memory_and_int8_takes_little_more_than_a_quarter(kind: str) -> None:
    bundle = exported(kind, "int8").bundle
    plan = bundle.manifest.plan
    assert plan is not None
    exact, half, quarter = (NativeEngine(with_cache(bundle, cache), 1).decoder for cache in ("float32", *CACHES))
    width = plan["head_width"]
    assert 2 * half.position_bytes == exact.position_bytes
    assert quarter.position_bytes * 4 * width == exact.position_bytes * (width + 4)  # a scale of four bytes for each head
    assert NativeEngine(bundle, 1).decoder.position_bytes == half.position_bytes
    assert NativeEngine(exported(kind, "fp32").bundle, 1).decoder.position_bytes == exact.position_bytes


def test_the_same_memory_holds_twice_as_many_rows() -> None:
    bundle = exported("qwen3", "int8").bundle
    held = []
    for cache in ("float32", "float16"):
        decoder = NativeEngine(with_cache(bundle, cache), 1).decoder
        slots = NativeSlots(decoder, 1000, 1 << 20, encodes=False)
        slots.prepare(0, 64, 0)
        held.append(len(slots))
    assert held[1] in (2 * held[0], 2 * held[0] + 1)


@pytest.mark.parametrize("run", ["tiny_run", "llama_run"])
def test_a_trained_student_answers_the_same(run: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(run)
    bundle = open_bundle(folder / "bundle-int8")
    exact = NativeEngine(with_cache(bundle, "float32"), 1)
    speaker = open_speaker(bundle, 1)
    questions = [f"Ann has {count} apples and buys {count + 2} more. How many are there?" for count in range(2, 14)]
    prompts = [speaker.prompt("predict", speaker.encoder.prompts.reasoning_context(question)) for question in questions]
    right = exact.generate(prompts, 8, Decoding(scored=True))
    for cache in CACHES:
        found = NativeEngine(with_cache(bundle, cache), 1).generate(prompts, 8, Decoding(scored=True))
        assert sum(left == other for left, other in zip(right.tokens, found.tokens, strict=True)) >= 11
