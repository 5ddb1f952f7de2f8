"""The native engine computes what torch computes, as near as ONNX Runtime does, and a row's bits depend on the row alone."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmedge.bundle import Bundle, open_bundle
from mmedge.engines.bundles import engine_of, open_speaker
from mmedge.engines.engine import Engine
from mmedge.engines.generation import Decoding, Logits
from mmedge.engines.native import library
from mmedge.engines.native.engine import NativeEngine, unsupported
from mmedge.engines.onnx.decoding import open_engine
from mmedge.engines.variants import find_variants, open_variant
from mmedge.errors import MmedgeError
from mmedge.manifest import NOT_VERIFIED
from mmedge.tasks.encoding import Prompt
from tests.native.students import KINDS, RECURRENT, VOCABULARY, exported, sequences

pytestmark = pytest.mark.skipif(library.problem() is not None, reason=f"the native engine: {library.problem()}")

PRECISIONS = ("fp32", "int8", "int4")
ISAS = [name for name in ("portable", "avx2", "neon", "dotprod", "i8mm") if library.instruction_set(name)]


def forced(engine: Engine, tokens: tuple[int, ...]) -> Logits:
    """Return an engine's logits behind every token of a sequence."""
    return engine.forced_logits(Prompt(tokens[:1], ()), (*tokens[1:], 0))


def divergence(left: Logits, right: Logits) -> float:
    """Return the mean KL divergence of rows of logits, in nats."""
    logs = [values - values.max(-1, keepdims=True) for values in (left.astype(np.float64), right.astype(np.float64))]
    logs = [values - np.log(np.exp(values).sum(-1, keepdims=True)) for values in logs]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_float32_logits_are_torchs(kind: str) -> None:
    student = exported(kind, "fp32")
    engine = NativeEngine(student.bundle, 1)
    for tokens in sequences(0, 20):
        assert np.abs(forced(engine, tokens) - student.logits(tokens)).max() < 1e-4


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_logits_are_as_near_to_torch_as_those_of_onnxruntime(kind: str, precision: str) -> None:
    student = exported(kind, precision)
    native, onnx = NativeEngine(student.bundle, 1), open_engine(student.bundle, 1)
    far: list[tuple[float, float]] = []
    for tokens in sequences(1, 25):
        right = student.logits(tokens)
        far.append((divergence(right, forced(native, tokens)), divergence(right, forced(onnx, tokens))))
    ours, theirs = np.mean(far, axis=0)
    assert ours <= 1.02 * theirs  # the same weights: what differs is the order of sums


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_gives_the_same_bits_alone_in_a_batch_step_by_step_and_on_every_instruction_set(kind: str, precision: str) -> None:
    same_bits(exported(kind, precision).bundle)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_more_threads_are_started_than_there_are_cores() -> None:
    bundle = exported(KINDS[0], PRECISIONS[0]).bundle
    before = len(list(Path("/proc/self/task").iterdir()))
    engine = NativeEngine(bundle, threads=500)
    cores = max(2, len(os.sched_getaffinity(0)))
    assert engine.decoder and len(list(Path("/proc/self/task").iterdir())) - before < cores


def same_bits(bundle: Bundle) -> None:
    """Assert that rows give the same bits alone, together, token by token, on one thread and two, and on every instruction set."""
    engines = [NativeEngine(bundle, threads, isa) for isa in ISAS for threads in (1, 2)]
    rows = list(sequences(2, 8, 40))
    whole = [forced(engines[0], tokens) for tokens in rows]
    for engine in engines:
        together = engine.next_logits([Prompt(tokens, ()) for tokens in rows], ())
        for tokens, logits, last in zip(rows, whole, together, strict=True):
            assert np.array_equal(last, logits[-1])
            assert np.array_equal(forced(engine, tokens), logits)
        one_by_one = engine.reading(1, len(rows[0]), {})
        for token, logits in zip(rows[0], whole[0], strict=True):
            assert np.array_equal(one_by_one.step(np.array([token])), logits[None])


def conversations(bundle: Bundle, seed: int, count: int) -> None:
    """Assert that random conversations write the same in batches, alone, on two threads, and drafted."""
    one, two = NativeEngine(bundle, 1), NativeEngine(bundle, 2)
    one.drafts = one.rewinds
    random = np.random.default_rng(seed)
    shared = two.conversation()
    for number in range(count):
        rows = [Prompt(tokens, ()) for tokens in sequences(1000 * seed + number, int(random.integers(1, 7)), 25)]
        limit = int(random.integers(1, 12))
        how = Decoding(scored=True)
        if random.random() < 0.3:
            how = Decoding(temperature=0.8, top_p=0.9, seeds=tuple(range(len(rows))), scored=True)
        together = shared.generate(rows, limit, how)
        for place, prompt in enumerate(rows):
            own = replace(how.of_rows([place]), draft=not how.temperature and bool(random.random() < 0.5))
            alone = one.generate([prompt], limit, own)
            assert alone.tokens[0] == together.tokens[place]
            assert alone.log_probabilities[0] == together.log_probabilities[place]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "mistral", *RECURRENT])
def test_conversations_write_the_same_in_a_batch_alone_drafted_and_on_two_threads(kind: str, precision: str) -> None:
    conversations(exported(kind, precision).bundle, 1, 25)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_conversations_write_the_same(kind: str, precision: str) -> None:
    conversations(exported(kind, precision).bundle, 2, 840)


def test_what_was_read_can_be_rewound_and_rows_picked() -> None:
    engine = NativeEngine(exported("llama", "int8").bundle, 2)
    rows = [tokens for tokens in sequences(3, 20) if len(tokens) > 10][:4]
    reading = engine.reading(4, 80, {})
    counts = np.array([len(tokens) for tokens in rows])
    ids = np.zeros((4, counts.max()), dtype=np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    reading.read(ids, counts, np.array([0]))
    picked = reading.rows(np.array([2, 0, 2]), 90)
    picked.rewind(6)
    found = picked.step(np.array([rows[2][6], rows[0][6], 5]))
    for logits, tokens in zip(found, (rows[2][:7], rows[0][:7], (*rows[2][:6], 5)), strict=True):
        assert np.array_equal(logits, forced(engine, tokens)[-1])


def test_a_prompt_longer_than_a_chunk_gives_the_same_bits() -> None:
    engine = NativeEngine(exported("llama", "int4").bundle, 2)
    rows = [tokens for tokens in sequences(4, 30, 200) if len(tokens) > 90][:5]  # more than 256 tokens together
    together = engine.next_logits([Prompt(tokens, ()) for tokens in rows], ())
    for logits, tokens in zip(together, rows, strict=True):
        assert np.array_equal(logits, forced(engine, tokens)[-1])


def test_tokens_and_positions_that_do_not_exist_are_refused() -> None:
    engine = NativeEngine(exported("llama", "int8").bundle, 1)
    for tokens in ((VOCABULARY,), (-1,), tuple([3] * 257)):
        with pytest.raises(MmedgeError, match="the native engine refuses this"):
            engine.next_logits([Prompt(tokens, ())], ())


def test_an_engine_that_is_asked_for_is_used_or_refused_with_the_reason(llama_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(llama_run / "bundle-int8")
    without = replace(bundle, manifest=replace(bundle.manifest, plan=None))
    monkeypatch.setenv("MMEDGE_ENGINE", "onnx")
    assert engine_of(bundle.manifest) == "onnxruntime"
    assert not isinstance(open_speaker(without).engine, NativeEngine)
    monkeypatch.setenv("MMEDGE_ENGINE", "native")
    assert engine_of(bundle.manifest) == "native"
    assert isinstance(open_speaker(bundle).engine, NativeEngine)
    assert unsupported(without.manifest) is not None
    for refused in (lambda: engine_of(without.manifest), lambda: open_speaker(without)):
        with pytest.raises(MmedgeError, match=r"MMEDGE_ENGINE=native: .* no layer plan .*\n  → leave MMEDGE_ENGINE out"):
            refused()
    with pytest.raises(MmedgeError, match="it runs on CPUs alone"):
        engine_of(bundle.manifest, "cuda")
    monkeypatch.setenv("MMEDGE_ENGINE", "other")
    with pytest.raises(MmedgeError, match="invalid engine 'other'"):
        engine_of(bundle.manifest)


def test_a_bundle_runs_on_the_engine_that_it_was_verified_on(llama_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMEDGE_ENGINE", raising=False)
    stated = open_bundle(llama_run / "bundle-int8").manifest
    older = replace(stated, confidence={})
    assert engine_of(older) == "onnxruntime"
    uncalibrated = replace(older, verification=NOT_VERIFIED)
    assert engine_of(uncalibrated) == "native"
    assert engine_of(replace(uncalibrated, precision="fp32")) == "onnxruntime"
    for engine in ("native", "onnxruntime"):
        assert engine_of(replace(stated, confidence={"engine": engine})) == engine
    assert engine_of(uncalibrated, "cuda") == "onnxruntime"
    assert engine_of(replace(uncalibrated, plan=None)) == "onnxruntime"


def test_native_is_a_variant_of_the_bench(llama_run: Path) -> None:
    (spec,) = find_variants(f"native:{llama_run / 'bundle-int8'}")
    opened = open_variant(spec)
    assert (opened.engine_name, opened.precision, opened.device) == ("native", "int8", "cpu")
    assert opened.kernels == library.instruction_set()
    question = opened.speaker.encoder.prompts.reasoning_context("How many apples are there?")
    assert len(opened.speaker.write_all("predict", [question], 5, 1)) == 1
