"""What inspecting a folder says of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.folders import Kind
from mmedge.inspection import InspectedBundle, InspectedPeer, InspectedRun, inspect, to_json
from mmedge.inspection_table import table


def test_a_run_says_what_it_holds_and_which_bundles_must_be_renewed(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "annotations.sqlite", "metrics.json"):
        shutil.copy(tiny_run / name, run)
    for name in ("bundle-fp32", "bundle-int8"):
        shutil.copytree(tiny_run / name, run / name)
    (run / "stage3").mkdir()
    manifest = json.loads((run / "bundle-int8" / "manifest.json").read_text())
    (run / "bundle-int8" / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    kind, found = inspect(run)
    assert kind is Kind.RUN and isinstance(found, InspectedRun)
    assert found.holds == ["annotations.sqlite", "stage3", "bundle-fp32", "bundle-int8"]
    assert list(found.problems) == ["bundle-int8"] and "export" in found.problems["bundle-int8"]
    assert found.metrics == json.loads((run / "metrics.json").read_text())["after"]


def test_a_comparison_says_which_trainings_it_holds(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "ablation" / "rows" / "pseudo-cots-seed0").mkdir(parents=True)
    assert to_json(*inspect(tmp_path)) == {"kind": "comparison of methods", "holds": ["pseudo-cots-seed0"]}


def test_an_export_for_another_engine_says_which(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert inspect(tmp_path / "model.gguf") == (Kind.PEER, InspectedPeer("llama.cpp", 4))


def test_a_student_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "mmedge.json").write_text('{"format": 0}')
    with pytest.raises(MmedgeError, match=r"was not written by this version of mmedge\n.*distil"):
        inspect(tmp_path)


def _bundle_found(**changes: Any) -> dict[str, str]:
    found = InspectedBundle(
        trusted="yes", precision="int4", family="decoder-only", task="t", recipe="r", parameters=1, bytes=1, verification={},
        confidence={}, answering=None, student_metrics={}, model={}, matrices={"int4": 3}, least_runtime=None,
    )  # fmt: skip
    found = dataclasses.replace(found, **changes)
    return {row[0].text: row[1].text for row in table(Kind.BUNDLE, found)._cells}


def test_a_bundle_says_whose_template_it_has_and_what_is_left_of_its_precision() -> None:
    plain = _bundle_found(model={"prompt": "plain", "source": "a/b"})
    assert plain["prompt"] == "plain" and plain["precision"] == "int4" and "kept finer" not in plain
    chat = {"prompt": "chat", "source": "a/b", "template_sha256": "ab" * 32, "system": "Be\x1b brief."}
    found = _bundle_found(model=chat, matrices={"int4": 3, "int8": 2}, finer={"int8": 2})
    assert found["prompt"] == "chat, template of a/b, sha256 abababababab"
    assert found["system message"] == "Be\N{REPLACEMENT CHARACTER} brief."
    assert found["precision"] == "int4" and found["kept finer"] == "2 in int8, for accuracy"
    found = _bundle_found(matrices={"int8": 2}, finer={"int8": 2})
    assert found["precision"] == "int4 in name only: every matrix had to be kept in int8 for accuracy"


def test_nothing_that_is_known_is_an_error(tmp_path: Path) -> None:
    for place, complaint in ((tmp_path, "is not a run, a student or a bundle"), (tmp_path / "none", "no such file or folder")):
        with pytest.raises(MmedgeError, match=complaint):
            inspect(place)
