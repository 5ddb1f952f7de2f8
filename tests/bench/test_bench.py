"""Bench: the same questions to every variant, each in a process of its own, every figure with its uncertainty."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmedge.engines.native import library
from tests.conftest import REPOSITORY, engine_of_int8, is_one_line_error, killed_when_lines_are_there, mmedge


@pytest.fixture(scope="module", params=["tiny_run", "llama_run"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run: Path = request.getfixturevalue(request.param)
    out = tmp_path_factory.mktemp("bench")
    done = mmedge("bench", run, "--questions", "6", "--verdicts", "8", "--warmup", "1", "--out", out)
    assert done.code == 0, done.err
    return out, json.loads((out / "bench.json").read_text())


def test_student_fp32_and_int8_stand_side_by_side(report: tuple[Path, dict[str, Any]]) -> None:
    variants = report[1]["variants"]
    assert [variant["name"] for variant in variants] == ["torch fp32", "onnxruntime fp32", f"{engine_of_int8()} int8"]
    for variant in variants:
        assert all(split["total"] == 6 and len(split["interval_95"]) == 2 for split in variant["answer_accuracy"].values())
        latency = variant["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert latency["count"] == len(variant["samples"]["seconds"])
        assert 0 < variant["time_to_first_token_ms"]["p50"] < latency["p99"]
        assert variant["verdict_accuracy"]["total"] == 8
        assert variant["bytes_on_disk"] > 1000
    torch_, exact, small = variants
    assert torch_["samples"]["answers"] == exact["samples"]["answers"]
    assert small["bytes_on_disk"] < exact["bytes_on_disk"]


def test_each_variant_has_a_memory_of_its_own(report: tuple[Path, dict[str, Any]]) -> None:
    torch_, exact, small = (variant["peak_memory_bytes"] for variant in report[1]["variants"])
    assert 20e6 < small < torch_ and exact < torch_


def test_the_table_says_machine_and_conditions(report: tuple[Path, dict[str, Any]]) -> None:
    text = (report[0] / "bench.md").read_text()
    assert f"{engine_of_int8()} int8" in text and "95 % Wilson" in text and "threads" in text
    kernels = {variant["engine"]: variant["kernels"] for variant in report[1]["variants"]}
    assert kernels["torch"] is kernels["onnxruntime"] is None
    if "native" in kernels:
        assert kernels["native"] == library.instruction_set() and f"native engine with {kernels['native']} kernels." in text


def test_shares_of_the_machines_ceilings_stand_with_every_variant_whose_work_is_known(
    report: tuple[Path, dict[str, Any]],
) -> None:
    variants = report[1]["variants"]
    reached = {(variant["engine"], variant["precision"]): variant["reached"] for variant in variants}
    for variant in variants:
        stated = variant["engine"] == "torch" or json.loads((Path(variant["place"]) / "manifest.json").read_text()).get("work")
        assert (variant["reached"] is not None) == bool(stated)
    assert all(0 < one["bandwidth_share"] < 10 and 0 < one["arithmetic_share"] < 10 for one in reached.values() if one)
    torch_fp32, fp32, int8 = (reached[key] for key in (("torch", "fp32"), ("onnxruntime", "fp32"), (engine_of_int8(), "int8")))
    if fp32 and int8:
        # the same student multiplies by the same weights whoever computes, in a quarter of the bytes where they are int8
        assert torch_fp32["operations_per_token"] == pytest.approx(fp32["operations_per_token"], rel=0.02)
        assert torch_fp32["weight_bytes_per_token"] == pytest.approx(fp32["weight_bytes_per_token"], rel=0.15)  # norms, positions
        assert int8["weight_bytes_per_token"] < 0.5 * fp32["weight_bytes_per_token"]
        assert (int8["arithmetic"], fp32["arithmetic"]) == ("int8", "float32")


def test_a_bundle_alone_is_measured_where_its_evaluation_set_is_named(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "bundle-int8", tmp_path / "bundle")
    missing = mmedge("bench", tmp_path / "bundle", "--questions", "2")
    assert is_one_line_error(missing) and "--evaluation" in missing.err
    done = mmedge(
        "bench",
        tmp_path / "bundle",
        "--questions",
        "2",
        "--verdicts",
        "0",
        "--evaluation",
        tiny_run / "evaluation.jsonl",
        "--json",
        "-q",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["variants"][0]["name"] == f"{engine_of_int8()} int8"


def test_a_damaged_variant_and_a_wrong_place_are_one_line(tiny_run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle-int8", bundle)
    (bundle / "config.json").write_text("{}")
    found = mmedge("bench", bundle, "--evaluation", tiny_run / "evaluation.jsonl")
    assert is_one_line_error(found) and "config.json is damaged" in found.err
    for place, complaint in ((tmp_path / "none", "no such folder"), (tmp_path, "is not a run, a student or a bundle")):
        found = mmedge("bench", place)
        assert is_one_line_error(found) and complaint in found.err


def test_a_killed_bench_continues(tiny_run: Path, tmp_path: Path) -> None:
    arguments = ["bench", tiny_run / "bundle-fp32", tiny_run / "bundle-int8", "--out", tmp_path]
    killed_when_lines_are_there([*arguments, "-q"], tmp_path / ".bench.journal", 5)
    done = mmedge(*arguments)
    assert done.code == 0, done.err
    kept = re.search(r"continuing: (\d+) answers", done.err)
    assert kept and int(kept[1]) >= 4
    report = json.loads((tmp_path / "bench.json").read_text())
    whole = sum(report["questions"].values())
    assert all(variant["latency_ms"]["count"] == whole for variant in report["variants"])
    assert not (tmp_path / ".bench.journal").exists()
    again = mmedge(*arguments, "--questions", "2")
    assert again.code == 0 and "continuing" not in again.err


def test_the_script_about_verdicts_counts_every_chain_of_thought_and_answer(tiny_run: Path) -> None:
    script = REPOSITORY / "benchmarks" / "quickstart_verdicts.py"
    done = subprocess.run([sys.executable, str(script), str(tiny_run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(int(count) for count in re.findall(r"^flaw .*: (\d+) CoTs", done.stdout, re.M)) == 56
    assert len(re.findall(r"^own answers to \w+: \d+ of 12 right", done.stdout, re.M)) == 2


def test_what_could_not_be_opened_is_tried_anew(tiny_run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle-int8"
    shutil.copytree(tiny_run / "bundle-int8", bundle)
    whole = (bundle / "weights.data").read_bytes()
    (bundle / "weights.data").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    questions = [
        "--evaluation",
        tiny_run / "evaluation.jsonl",
        "--questions",
        "2",
        "--verdicts",
        "0",
        "--timed",
        "2",
        "--rounds",
        "1",
    ]
    command = ["bench", bundle, *questions, "--out", tmp_path / "out"]
    failed = mmedge(*command)
    assert failed.code == 1 and "damaged" in failed.err
    (bundle / "weights.data").write_bytes(whole)
    assert mmedge(*command).code == 0
