"""`--int8-cache`: keys and values in int8 where the accuracy holds, and what the bundle says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mmedge.bundle import open_bundle
from mmedge.engines.bundles import open_speaker
from mmedge.engines.native import library
from mmedge.engines.native.engine import NativeEngine
from mmedge.errors import MmedgeError
from mmedge.export.bundles import write_bundle
from mmedge.export.quantization.precisions import PRECISIONS, Precision
from mmedge.export.source import Source
from mmedge.inspection import inspect, to_json
from mmedge.manifest import Manifest, Verification
from mmedge.progress import Progress
from tests.conftest import mmedge

pytestmark = pytest.mark.skipif(library.problem() is not None, reason=f"the native engine: {library.problem()}")


def content(found: Verification, precision: Precision, max_accuracy_drop: float) -> Sequence[str]:
    """Find nothing wrong: how well a student of a few steps holds is no matter."""
    return []


def exported(run: Path, out: Path, *, int8_cache: bool) -> Manifest:
    source = Source(run / "student", out, Progress(quiet=True), int8_cache=int8_cache)
    return write_bundle(source, PRECISIONS["int8"], content)


@pytest.mark.parametrize("family", ["tiny_run", "llama_run"])
def test_a_bundle_keeps_int8_where_the_accuracy_holds_and_says_so(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Path = request.getfixturevalue(family)
    monkeypatch.setenv("MMEDGE_ENGINE", "onnx")
    exported(run, tmp_path / "float", int8_cache=False)
    exported(run, tmp_path / "int8", int8_cache=True)
    before, bundle = (open_bundle(tmp_path / kind / "bundle-int8") for kind in ("float", "int8"))
    stated = bundle.manifest
    assert stated.plan is not None and stated.plan["cache"] == "int8"
    assert stated.int8_cache is not None and stated.int8_cache.problems == ()
    assert stated.int8_cache.verification.mean_kl < 0.05
    assert stated.identity() != before.manifest.identity()
    coarse, exact = (NativeEngine(one, 1).decoder for one in (bundle, before))
    assert coarse.position_bytes < 0.7 * exact.position_bytes
    assert f"in int8 on the native engine: {stated.int8_cache.verification}" in (bundle.folder / "README.md").read_text()
    assert "in float16 on the native engine |" in (before.folder / "README.md").read_text()
    assert to_json(*inspect(bundle.folder))["cache"] == "int8"
    assert to_json(*inspect(before.folder))["cache"] == "float16"
    context = open_speaker(bundle).encoder.prompts.reasoning_context("How many apples are there?")
    answers = [open_speaker(one).write("predict", [context], 12) for one in (bundle, before)]
    assert answers[0] == answers[1]  # ONNX Runtime knows nothing of it
    monkeypatch.setenv("MMEDGE_ENGINE", "native")
    exported(run, tmp_path / "native", int8_cache=True)
    on_native = open_bundle(tmp_path / "native" / "bundle-int8").manifest
    assert on_native.int8_cache is not None and on_native.verification == on_native.int8_cache.verification
    assert on_native.confidence["engine"] == "native"


def test_where_it_costs_too_much_float16_stays(llama_run: Path, tmp_path: Path) -> None:
    calls: list[Verification] = []

    def judge(found: Verification, precision: Precision, max_accuracy_drop: float) -> Sequence[str]:
        calls.append(found)
        return ["accuracy drops by 9.0 points (allowed: 1)"] if len(calls) > 1 else []

    source = Source(llama_run / "student", tmp_path, Progress(quiet=True), int8_cache=True)
    stated = write_bundle(source, PRECISIONS["int8"], judge)
    assert len(calls) == 2 and stated.verification == calls[0]
    assert stated.plan is not None and "cache" not in stated.plan
    assert stated.int8_cache is not None and stated.int8_cache.verification == calls[1]
    card = (tmp_path / "bundle-int8" / "README.md").read_text()
    assert "in float16 on the native engine; not in int8: accuracy drops by 9.0 points (allowed: 1)" in card
    assert inspect(tmp_path / "bundle-int8")[1].cache == "float16"  # type: ignore[union-attr]


def test_an_export_with_another_cache_is_written_again_and_float32_stays_exact(llama_run: Path, tmp_path: Path) -> None:
    options = ("--fp32", "--int8", "--max-accuracy-drop", "100", "--out", tmp_path)
    for more, again in (("--float-cache", True), ("--int8-cache", True), ("--int8-cache", False), ("--float-cache", True)):
        done = mmedge("export", llama_run, more, *options)
        assert done.code == 0, done.err
        assert (f"{tmp_path / 'bundle-int8'}: already exported, kept" in done.err) is not again
        exact = open_bundle(tmp_path / "bundle-fp32").manifest
        assert exact.int8_cache is None and exact.plan is not None and "cache" not in exact.plan
    assert "verifying with keys and values in int8" not in done.err


def test_a_bundle_that_the_native_engine_cannot_run_is_refused_by_name(llama_run: Path, tmp_path: Path) -> None:
    source = Source(llama_run / "student", tmp_path, Progress(quiet=True), int8_cache=True, recover="never")
    with pytest.raises(MmedgeError, match="int2: the native engine cannot check an int8 cache: the bundle has no layer plan"):
        write_bundle(source, PRECISIONS["int2"], content)
    assert not list(tmp_path.iterdir())
