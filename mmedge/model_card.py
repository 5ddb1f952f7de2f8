"""What a student is and where it comes from, and the model card that a bundle carries (`README.md`). Needs no torch.

describe_model(student, details)   {"model_type": "gemma3_text", "source": "google/gemma-3-270m-it", "licence": "gemma", …}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmedge.engines.native.plans import BrokenPlan, cache_type
from mmedge.errors import printable
from mmedge.manifest import Manifest
from mmedge.reports.formats import size
from mmedge.reports.tables import in_markdown
from mmedge.storage import read_json, sha256_json
from mmedge.tasks.chat.template import ChatTemplate

CARD = "README.md"
LONGEST_LICENCE = 200  # characters; the longest name of one is a third of that


def describe_model(folder: Path, details: Mapping[str, Any]) -> dict[str, str]:
    """Return what a student is: its kind of model, its source and licence, and how it is prompted; what is not known is left out.

    Args:
        folder: The student's.
        details: Its `mmedge.json`.
    """
    origin, chat = details.get("origin") or {}, ChatTemplate.beside(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    found = {
        "model_type": str((config.get("model_type") if isinstance(config, dict) else None) or ""),
        "source": str(origin.get("source") or ""),
        "licence": str(origin.get("licence") or ""),
        "prompt": "plain" if chat is None else "chat",
        "template_sha256": "" if chat is None else sha256_json(chat.template),
        "system": "" if chat is None else chat.system,
    }
    return {name: value for name, value in found.items() if value}


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model's own card states in its first lines; None where it states none."""
    path = folder / CARD
    try:
        if not path.is_file():  # a device or a pipe might never end
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            return stated_licence(file.read(20_000))
    except OSError:
        return None


def stated_licence(card: str) -> str | None:
    """Return the `license` field of a model card's front matter, or its `license_name` where that says `other`."""
    if not card.startswith("---"):
        return None
    fields: dict[str, str] = {}
    for line in card.split("---", 2)[1].splitlines():
        name, colon, value = line.partition(":")
        if colon and not name.startswith((" ", "-")):
            fields[name.strip()] = value.strip().strip("\"'")
    licence = fields.get("license") or None
    named = fields.get("license_name") or licence if licence == "other" else licence
    return printable(named)[:LONGEST_LICENCE] if named else None


def quantization_summary(manifest: Manifest) -> dict[str, int]:
    """Return how many matrices are stored in which format."""
    return dict(Counter(manifest.quantization.layers.values()))


def finer_summary(manifest: Manifest) -> dict[str, int]:
    """Return how many matrices are kept in which finer format than the precision's own, for accuracy."""
    return dict(Counter(manifest.quantization.exceptions.values()))


def in_name_only(precision: str, matrices: Mapping[str, int], finer: Mapping[str, int]) -> str:
    """Return that no matrix is stored in a precision where every one had to be kept in a finer format; else nothing."""
    if not finer or sum(finer.values()) < sum(matrices.values()):
        return ""
    return f"{precision} in name only: every matrix had to be kept in {' or '.join(finer)} for accuracy"


def cache_summary(manifest: Manifest) -> str | None:
    """Return what the native engine keeps keys and values in; None without a layer plan."""
    try:
        return cache_type(manifest.plan) if manifest.plan is not None else None
    except BrokenPlan:  # which says that the plan is broken when the bundle is opened
        return None


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write a bundle's model card."""
    (folder / CARD).write_text(card(manifest), encoding="utf-8")


def card(manifest: Manifest) -> str:
    """Return a bundle's model card: front matter as model hubs read it, and a page for people."""
    model, exceptions = manifest.model, manifest.quantization.exceptions
    front = [f"license: {json.dumps(model['licence'])}"] if "licence" in model else []
    front += [f"base_model: {json.dumps(model['source'])}"] if "/" in model.get("source", "") else []
    rows = {
        "model": model.get("model_type", manifest.family),
        "made from": model.get("source", "not known"),
        "licence of the source": model.get("licence", "not stated; see the source"),
        "parameters": f"{manifest.student.parameters:,}",
        "task": f"{manifest.task.name} ({manifest.task.form})",
        "prompt": _prompt(manifest),
        "precision": in_name_only(manifest.precision, quantization_summary(manifest), finer_summary(manifest))
        or manifest.precision,
        "stored": _stored(manifest),
        "kept finer for accuracy": ", ".join(f"{name}: {kept}" for name, kept in exceptions.items()) or "nothing",
        "keys and values": _cache(manifest),
        "vocabulary": f"{manifest.vocabulary.kept:,} of {manifest.vocabulary.of:,} tokens" if manifest.vocabulary else "whole",
        "compared with the student": str(manifest.verification),
        "runs on": f"{_native(manifest)}ONNX Runtime {manifest.least_runtime or '1.22'} or newer, {manifest.device}",
        "size": size(manifest.written.bytes),
    }
    lines = ["---", "library_name: mmedge", *front, "---", f"# {in_markdown(f'{manifest.recipe}, {manifest.precision}')}", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {in_markdown(value)} |" for name, value in rows.items()), ""]
    lines += ["`mmedge run FOLDER QUESTION` asks it, and `mmedge inspect FOLDER` checks its files.", ""]
    return "\n".join(lines)


def _native(manifest: Manifest) -> str:
    return "the native engine, where it was verified, or " if manifest.confidence.get("engine") == "native" else ""


def _prompt(manifest: Manifest) -> str:
    if manifest.model.get("prompt") != "chat":
        turns = f"; dialogues one message a line, {manifest.prompts.turn!r}" if manifest.prompts.turn else ""
        return f"plain: questions are read as they are{turns}"
    turns = ", dialogues too" if manifest.prompts.turn else ""
    return f"the source's chat template, sha256 {manifest.model['template_sha256'][:12]}{turns}"


def _stored(manifest: Manifest) -> str:
    counted = [f"{count} matrices in {format_}" for format_, count in quantization_summary(manifest).items()]
    return ", ".join([*counted, "the rest as it was computed"]) if counted else "as it was computed"


def _cache(manifest: Manifest) -> str:
    kept_in, tried = cache_summary(manifest), manifest.int8_cache
    if kept_in is None:
        return "as ONNX Runtime keeps them"
    said = f"in {kept_in} on the native engine"
    if tried is None:
        return said
    return f"{said}; not in int8: {'; '.join(tried.problems)}" if tried.problems else f"{said}: {tried.verification}"
