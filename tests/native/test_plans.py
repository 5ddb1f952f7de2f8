"""A plan that lies is refused: no size, offset or place in it is believed, and no crafted bundle reads outside of its file."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.engines.native import library
from mmedge.engines.native.engine import NativeEngine, mapped
from mmedge.errors import MmedgeError
from mmedge.folders import MANIFEST
from mmedge.tasks.encoding import Prompt
from tests.native.students import KINDS, RECURRENT, exported

pytestmark = pytest.mark.skipif(library.problem() is not None, reason=f"the native engine: {library.problem()}")

ODD: tuple[Any, ...] = (-1, 0, 1, 7, 2**31 - 1, 2**31, 2**40, 2**61, -(2**31), None, "x", 1.5, True, [])


def stated(precision: str = "int8", kind: str = "qwen3") -> dict[str, Any]:
    plan = exported(kind, precision).bundle.manifest.plan
    assert plan is not None
    return copy.deepcopy(dict(plan))


def opened(plan: dict[str, Any], precision: str = "int8", kind: str = "qwen3") -> NativeEngine:
    bundle = exported(kind, precision).bundle
    return NativeEngine(replace(bundle, manifest=replace(bundle.manifest, plan=plan)), 2)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every number and text in a plan."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [found for key, item in items for found in places(item, (*path, key))]
    return below or [path]


def put(plan: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        plan = plan[key]
    plan[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("matrices", 1, "codes"), 2**40, "outside of the weights"),
        (("matrices", 1, "scales"), -8, "outside of the weights"),
        (("matrices", 1, "outputs"), 2**21, "outside of the weights"),
        (("matrices", 1, "block"), 48, "blocks of an unknown size"),
        (("blocks", 0, "first"), 99, "not there"),
        (("blocks", 1, "norm"), 2, "outside of the weights"),
        (("positions",), 4_000_000, "outside of the weights"),
        (("heads",), 5, "do not fit"),
        (("vocabulary",), 300, "does not fit"),
        (("version",), 5, "version"),
        (("cache",), "int4", "field 'plan.cache': expected 'float32' or 'float16' or 'int8', found 'int4'"),
        (("cache",), ["int8"], "field 'plan.cache': expected"),
        (("heads",), 2**32 + 6, "field 'plan.heads': expected a whole number from -2147483647 to 2147483647, found 4294967302"),
        (("matrices", 2, "block"), 2**32 + 32, "field 'plan.matrices.2.block': expected a whole number from"),
        (("matrices", 2, "codes"), 2**64, "field 'plan.matrices.2.codes': expected a whole number from"),
        (("matrices", 2, "codes"), "far", "field 'plan.matrices.2.codes': expected a whole number, found 'far'"),
        (("matrices", 2, "storage"), {}, "field 'plan.matrices.2.storage': expected 'float32_rows' or"),
        (("matrices", 2), None, "field 'plan.matrices.2': expected an object, found None"),
        (("matrices",), {}, "field 'plan.matrices': expected a list"),
        (("blocks", 3, "window"), -(2**32), "field 'plan.blocks.3.window': expected a whole number from"),
        (("blocks", 2, "window"), -4, "field 'plan': blocks.2: a window is impossible"),
        (("blocks", 3, "norm"), True, "field 'plan.blocks.3.norm': expected a whole number, found True"),
        (("matrices", 4, "outputs"), 0, "field 'plan': matrices.4: a matrix has an impossible shape"),
        (("heads",), -6, "impossible shape"),
        (("epsilon",), -1e-5, "field 'plan.epsilon': expected a number from 0 to 1, found -1e-05"),
        (("epsilon",), float("nan"), "field 'plan.epsilon': expected a number from 0 to 1, found nan"),
        (("attention_scale",), 10**400, "field 'plan.attention_scale': expected a number from"),
        (("attention_scale",), "1", "field 'plan.attention_scale': expected a number from"),
    ],
)
def test_a_lying_plan_is_refused_by_name(path: tuple[Any, ...], value: Any, said: str) -> None:
    plan = stated()
    put(plan, path, value)
    refuses(plan, said)


@pytest.mark.parametrize("name", ["version", "matrices", "blocks", "width", "epsilon", "table", "norm"])
def test_a_plan_without_a_field_is_refused_by_name(name: str) -> None:
    plan = stated()
    del plan[name]
    refuses(plan, f"field 'plan.{name}' is missing")


def refuses(plan: dict[str, Any], said: str) -> None:
    """Assert that a plan is refused in a line that names the bundle's manifest, and one that says what to do."""
    with pytest.raises(MmedgeError) as caught:
        opened(plan)
    manifest = exported("qwen3", "int8").bundle.folder / MANIFEST
    assert caught.value.what.startswith(f"{manifest}: field 'plan") and said in caught.value.what
    assert "\n" not in str(caught.value).replace("\n  → export the student again", "")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("encoder", "bias"), 2**40, "outside of the weights"),
        (("encoder", "farthest"), 30_000, "outside of the weights"),
        (("encoder", "farthest"), 0, "impossible shape"),
        (("encoder", "cross"), 0, "does not fit"),
        (("encoder", "blocks"), [], "no encoder"),
        (("encoder", "blocks", 0, "kind"), "cross_attention", "no encoder"),
        (("blocks", 1, "kind"), "self_attention", "not"),
        (("blocks", 2, "activation"), "tanh", "field 'plan.blocks.2.activation': expected 'silu' or 'relu' or 'gelu'"),
        (("encoder", "blocks", 1, "norm"), None, "field 'plan.encoder.blocks.1.norm': expected a whole number, found None"),
        (("encoder", "blocks", 1, "norm"), 2, "encoder.blocks.1: a norm lies outside of the weights"),
        (("encoder",), [], "field 'plan.encoder': expected an object"),
        (("encoder",), None, "no encoder"),
        (("cosines",), 0, "rotary"),
        (("kv_heads",), 2, "not"),
    ],
)
def test_a_lying_plan_of_an_encoder_is_refused_by_name(path: tuple[Any, ...], value: Any, said: str) -> None:
    plan = stated("int8", "t5")
    put(plan, path, value)
    with pytest.raises(MmedgeError, match=said):
        opened(plan, "int8", "t5").next_logits([Prompt((3,), (5,))], ())


@pytest.mark.skipif("lfm2" not in KINDS, reason="needs transformers 5")
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("blocks", 0, "taps"), [], "a convolution does not fit"),
        (("blocks", 0, "taps"), [0] * 17, "17 taps"),
        (("blocks", 0, "taps", 1), 2**40, "a convolution lies outside of the weights"),
        (("blocks", 0, "taps", 0), -4, "a convolution lies outside of the weights"),
        (("blocks", 0, "taps"), 3, "field 'plan.blocks.0.taps': expected a list, found 3"),
        (("blocks", 0, "taps", 1), "x", "field 'plan.blocks.0.taps.1': expected a whole number, found 'x'"),
        (("blocks", 0, "kernel_bias"), 2**61, "a convolution lies outside of the weights"),
        (("blocks", 0, "first"), 0, "does not fit"),
        (("blocks", 0, "kind"), "self_attention", "does not fit"),
        (("blocks", 4, "kind"), "convolution", "does not fit"),
        (("width",), 97, "does not fit"),
    ],
)
def test_a_lying_plan_of_layers_with_states_is_refused_by_name(path: tuple[Any, ...], value: Any, said: str) -> None:
    plan = stated("int8", "lfm2")
    put(plan, path, value)
    with pytest.raises(MmedgeError, match=said):
        opened(plan, "int8", "lfm2")


@pytest.mark.skipif("qwen3_5" not in KINDS, reason="needs transformers 5")
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("blocks", 0, "key_heads"), 3, "a gated delta layer does not fit"),
        (("blocks", 0, "key_heads"), 0, "a gated delta layer does not fit"),
        (("blocks", 0, "value_heads"), 2048, "a gated delta layer does not fit"),
        (("blocks", 0, "value_heads"), 8, "does not fit"),
        (("blocks", 0, "key_width"), 24, "does not fit"),
        (("blocks", 0, "value_width"), -44, "a gated delta layer does not fit"),
        (("blocks", 0, "second"), 0, "does not fit"),
        (("blocks", 0, "second"), -1, "not there"),
        (("blocks", 0, "taps"), [], "a convolution does not fit"),
        (("blocks", 0, "step_bias"), 2**40, "a decay lies outside of the weights"),
        (("blocks", 0, "slope"), None, "a decay lies outside of the weights"),
        (("blocks", 0, "head_norm"), 2**31, "a norm lies outside of the weights"),
        (("blocks", 2, "gated"), 0, "does not fit"),
        (("blocks", 2, "kind"), "gated_delta", "a gated delta layer does not fit"),
    ],
)
def test_a_lying_plan_of_gated_delta_layers_is_refused_by_name(path: tuple[Any, ...], value: Any, said: str) -> None:
    plan = stated("int8", "qwen3_5")
    put(plan, path, value)
    with pytest.raises(MmedgeError, match=said):
        opened(plan, "int8", "qwen3_5")


def test_a_plan_may_not_name_a_file_elsewhere(tmp_path: Path) -> None:
    for name in ("../weights.data", "/etc/passwd", "", "other.data", None, 3):
        with pytest.raises(MmedgeError, match="names no file"):
            mapped(tmp_path, {"file": name})


@pytest.mark.parametrize("kind", ["qwen3", "t5", *RECURRENT])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_spoiled_plans_are_refused_or_read_within_the_file(precision: str, kind: str) -> None:
    spoil(precision, kind, 400, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "t5", *RECURRENT])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_many_spoiled_plans_are_refused_or_read_within_the_file(precision: str, kind: str) -> None:
    spoil(precision, kind, 10_000, seed=1)


def spoil(precision: str, kind: str, count: int, seed: int) -> None:
    """Change one to three values of a plan at random; what is accepted must compute something."""
    chance, whole = random.Random(seed), {"cache": "int8"} | stated(precision, kind)
    paths = places(whole)
    for _ in range(count):
        plan = copy.deepcopy(whole)
        for path in chance.sample(paths, chance.randint(1, 3)):
            near = chance.choice(ODD) if chance.random() < 0.5 else chance.randint(0, 2000)
            put(plan, path, near)
        try:
            engine = opened(plan, precision, kind)
            logits = engine.next_logits([Prompt((3, 5, 7), (11, 2)), Prompt((1,), (4,))], ())
        except MmedgeError:
            continue
        assert logits.shape == (2, plan["vocabulary"])


def test_spoiled_weights_compute_something() -> None:
    bundle = exported("llama", "int8").bundle
    plan = bundle.manifest.plan
    assert plan is not None
    chance = np.random.default_rng(0)
    for _ in range(20):
        weights = np.array(mapped(bundle.folder, plan))
        weights[chance.integers(0, len(weights), 1000)] = chance.integers(0, 256, 1000)
        decoder = library.Decoder(plan, weights, 1)
        cache, logits = decoder.cache(1, 8), np.empty((1, decoder.vocabulary), dtype=np.float32)
        counts, starts, wanted = np.array([3]), np.array([0]), np.array([2])
        decoder.read(cache, np.array([5, 6, 7]), counts, starts, None, wanted, logits)
