"""What inspecting a folder says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmedge.errors import MmedgeError
from mmedge.folders import Kind
from mmedge.inspection import InspectedPeer, InspectedRun, inspect, to_json


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


def test_nothing_that_is_known_is_an_error(tmp_path: Path) -> None:
    for place, complaint in ((tmp_path, "is not a run, a student or a bundle"), (tmp_path / "none", "no such file or folder")):
        with pytest.raises(MmedgeError, match=complaint):
            inspect(place)
