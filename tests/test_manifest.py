"""Manifests: what export wrote is read as it was written, older formats too, and what does not fit is one clear line."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mmedge import Student
from mmedge.bundle import open_bundle, read_manifest
from mmedge.errors import MmedgeError
from mmedge.folders import MANIFEST
from mmedge.inspection import inspect
from mmedge.inspection_table import table
from mmedge.manifest import Manifest
from mmedge.storage import hash_files, sha256_json
from mmedge.typed import read_as


def format_5(new: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest as it was written before format 6."""
    old = {name: new[name] for name in new if name not in ("quantization", "work", "states", "plan", "sha256", "format")}
    old["task"] = {"name": new["task"]["name"], "judge": new["task"]["form"], "labels": new["task"]["settings"].get("labels", [])}
    old["numbers"] = new["quantization"]
    steps = [{**step, "fixed_steps": step["static_activations"]} for step in new["budget"]]
    old["budget"] = [{name: step[name] for name in step if name != "static_activations"} for step in steps]
    old["sensitivity"] = [{"product": cost["linear"], "loss": cost["loss"], "bytes": cost["bytes"]} for cost in new["sensitivity"]]
    return {"format": 5, **old}


def rewritten(bundle: Path, folder: Path, stated: dict[str, Any]) -> Path:
    """Copy a bundle and give it another manifest, sealed as export seals one."""
    shutil.copytree(bundle, folder)
    whole = stated | {"files": hash_files(folder, MANIFEST)}
    (folder / MANIFEST).write_text(json.dumps(whole | {"sha256": sha256_json(whole)}))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_of_format_5_opens_and_answers_the_same(precision: str, tiny_run: Path, tmp_path: Path) -> None:
    bundle = tiny_run / f"bundle-{precision}"
    old = format_5(json.loads((bundle / MANIFEST).read_text()))
    old["answering"]["threshold"] = {
        "target_accuracy": 0.9, "max_handed_on": None, "value": 0.25, "accuracy": 0.95, "handed_on": 0.5, "questions": 16,
        "interval": [0.8, 1.0],
    }  # fmt: skip
    folder = rewritten(bundle, tmp_path / "old", old)
    found, expected = read_manifest(folder), read_manifest(bundle)
    assert (found.task, found.quantization, found.verification) == (expected.task, expected.quantization, expected.verification)
    assert found.budget == expected.budget and found.work is None
    threshold = found.answering.threshold
    assert threshold is not None and (threshold.value, threshold.withheld, threshold.interval) == (0.25, 0.5, (0.8, 1.0))
    question = "Ann has 3 apples and buys 4. How many has she now?"
    answers = [Student.load(place).answer(question, abstain_below=0.0).text for place in (folder, bundle)]
    assert answers[0] == answers[1]


def test_labels_of_format_5_are_settings_of_the_form(tiny_run: Path, tmp_path: Path) -> None:
    old = format_5(json.loads((tiny_run / "bundle-int8" / MANIFEST).read_text()))
    old["task"] |= {"judge": "label", "labels": ["yes", "no"]}
    bundle = open_bundle(rewritten(tiny_run / "bundle-int8", tmp_path / "old", old))
    assert (bundle.manifest.task.form, bundle.manifest.task.settings) == ("label", {"labels": ["yes", "no"]})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"threads": "two"}, "field 'threads': expected a whole number, found 'two'"),
        ({"threads": True}, "field 'threads': expected a whole number, found True"),
        ({"family": "diffusion"}, "field 'family': expected 'encoder-decoder' or 'decoder-only', found 'diffusion'"),
        ({"task": {"name": "a"}}, "field 'task.form' is missing"),
        ({"task": {"name": "a", "form": "sonnet"}}, "'sonnet'"),
        ({"budget": [{"kept_finer": 1}]}, "field 'budget.problems' is missing"),
        ({"prompts": None}, "field 'prompts': expected an object, found None"),
        ({"files": []}, "field 'files': expected an object"),
        ({"max_input_tokens": -5}, "field 'max_input_tokens': expected a whole number from 1 to 1000000, found -5"),
        ({"max_answer_tokens": 0}, "field 'max_answer_tokens': expected a whole number from 1 to 1000000, found 0"),
        ({"max_rationale_tokens": 10**12}, "field 'max_rationale_tokens': expected a whole number from 1 to 1000000"),
        ({"threads": -1}, "field 'threads': expected a whole number from 1 to 1024, found -1"),
        ({"vocabulary": {"kept": 9, "of": 4}}, "field 'vocabulary.kept': expected a whole number from 1 to 4, found 9"),
        ({"states": [{"name": "a", "shape": [2, -3]}]}, "field 'states.0.shape': expected a whole number from 1 to"),
        ({"states": [{"name": "a", "shape": [2], "dtype": "complex64"}]}, "field 'states.dtype': expected 'float32' or 'float16'"),
        ({"work": {"bytes": -1, "operations": 1, "table_bytes": 0}}, "field 'work.bytes': expected a whole number from 0"),
        ({"max_accuracy_drop": float("nan")}, "field 'max_accuracy_drop': expected a finite number, found nan"),
        ({"max_accuracy_drop": 10**400}, "field 'max_accuracy_drop': expected a finite number, found 1000"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_field(
    change: dict[str, Any], complaint: str, tiny_run: Path, tmp_path: Path
) -> None:
    stated = json.loads((tiny_run / "bundle-int8" / MANIFEST).read_text())
    del stated["sha256"]
    folder = rewritten(tiny_run / "bundle-int8", tmp_path / "bundle", stated)
    whole = {**stated, "files": hash_files(folder, MANIFEST)} | change
    (folder / MANIFEST).write_text(json.dumps(whole | {"sha256": sha256_json(whole)}))
    with pytest.raises(MmedgeError) as caught:
        open_bundle(folder)
    assert complaint in caught.value.what and "\n" not in caught.value.what
    old = {**format_5(stated), "task": "none"}
    (folder / MANIFEST).write_text(json.dumps(old | {"sha256": sha256_json(old)}))
    with pytest.raises(MmedgeError, match="is not what mmedge export writes"):
        read_manifest(folder)


def test_nonsense_in_what_is_only_shown_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    stated = json.loads((tiny_run / "bundle-int8" / MANIFEST).read_text())
    del stated["sha256"]
    student = stated["student"]
    folder = rewritten(tiny_run / "bundle-int8", tmp_path / "bundle", stated)
    for change in (
        {"confidence": {"signals": 3}},
        {"confidence": {"chosen": [1]}},
        {"student": student | {"metrics": {}}},
        {"student": student | {"metrics": {"after": True}}},
        {"student": student | {"metrics": {"after": {"answer": {"test": {"value": 0.5, "interval_95": 3}}}}}},
    ):
        whole = {**stated, "files": hash_files(folder, MANIFEST)} | change
        (folder / MANIFEST).write_text(json.dumps(whole | {"sha256": sha256_json(whole)}))
        with pytest.raises(MmedgeError, match="the bundle's metrics, confidence or model are not what mmedge writes"):
            table(*inspect(folder))
    whole = {**stated, "files": hash_files(folder, MANIFEST), "answering": {"strategy": {"kind": "answer", "depth": 3}}}
    (folder / MANIFEST).write_text(json.dumps(whole | {"sha256": sha256_json(whole)}))
    with pytest.raises(MmedgeError, match=r"field 'answering\.strategy\.depth' is unknown"):
        Student.load(folder).answer("1 + 1?")


def test_what_is_written_is_what_is_read(tiny_run: Path) -> None:
    manifest = read_manifest(tiny_run / "bundle-int8")
    assert read_as(Manifest, json.loads(json.dumps(asdict(manifest))), "here") == manifest
    assert read_as(Manifest, asdict(manifest) | {"of_a_later_version": 1}, "here") == manifest
