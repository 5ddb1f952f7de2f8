"""What `mmedge inspect` says of a folder: what it is, whether it can be trusted (hashes), how good it is. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmedge.bundle import check_student, open_bundle, read_manifest
from mmedge.engines.bundles import suited_engine
from mmedge.errors import MmedgeError
from mmedge.folders import DETAILS, Kind, Run, is_quantized, kind_of, peer_engine
from mmedge.manifest import Exported
from mmedge.model_card import cache_summary, describe_model, finer_summary, quantization_summary
from mmedge.storage import folder_size, read_json


@dataclass(frozen=True)
class InspectedRun:
    """A run, or a comparison of methods.

    Attributes:
        holds: Names of what was made so far: annotations, stages, students, bundles; of a comparison, its trainings.
        metrics: Scores of the distilled student; None before it is distilled.
        problems: By bundle, why it cannot be used and how to renew it.
    """

    holds: list[str]
    metrics: dict[str, Any] | None
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InspectedStudent:
    """A student.

    Attributes:
        metrics: Its scores: untrained, after stage 1, distilled.
        model: Its kind of model, source, licence and prompt, as far as these are known.
        trusted, precision, linears, made_with, verification: Of a quantized student: that its files match their hashes, its
            precision, how many linear layers have which, the versions that quantized it, how close it is to the student.
    """

    family: str
    recipe: str
    origin: str
    parameters: int
    transformers: str
    bytes: int
    metrics: dict[str, Any]
    model: dict[str, Any]
    trusted: str | None = None
    precision: str | None = None
    linears: dict[str, int] | None = None
    made_with: dict[str, Any] | None = None
    verification: dict[str, Any] | None = None


@dataclass(frozen=True)
class InspectedBundle:
    """A bundle, all of whose files match their hashes.

    Attributes:
        model: Its student's kind of model, source, licence and prompt, as far as these are known.
        learned: What its student learned to write besides answers; None where that is not known.
        matrices: How many matrices are stored in which format.
        finer: How many of these are kept in which finer format than the precision's own, for accuracy.
        engine: What it was verified on, and runs on where it can: `native` or `onnxruntime`.
        cache: What the native engine keeps keys and values in; None where it cannot run the bundle.
        least_runtime: The oldest ONNX Runtime that has its operators, where that is not the oldest that mmedge supports.
    """

    trusted: str
    precision: str
    family: str
    task: str
    recipe: str
    parameters: int
    bytes: int
    verification: dict[str, Any]
    confidence: dict[str, Any]
    answering: dict[str, Any] | None
    student_metrics: dict[str, Any]
    model: dict[str, Any]
    matrices: dict[str, int]
    least_runtime: str | None
    finer: dict[str, int] = field(default_factory=dict)
    learned: tuple[str, ...] | None = None
    cache: str | None = None
    engine: str | None = None


@dataclass(frozen=True)
class InspectedPeer:
    """An export for another engine."""

    engine: str
    bytes: int


Inspected = InspectedRun | InspectedStudent | InspectedBundle | InspectedPeer


def inspect(place: Path) -> tuple[Kind, Inspected]:
    """Return what a path is, and what there is to say about it.

    Raises:
        MmedgeError: The path is something else, is damaged, or was written by a newer version.
    """
    kind = kind_of(place)
    if kind is Kind.BUNDLE:
        return kind, _bundle(place)
    if kind in (Kind.STUDENT, Kind.QUANTIZED_STUDENT):
        return kind, _student(place)
    if kind in (Kind.RUN, Kind.COMPARISON):
        return kind, _run(Run(place))
    if kind is Kind.PEER:
        return kind, InspectedPeer(peer_engine(place) or "", folder_size(place))
    if kind is Kind.MISSING:
        raise MmedgeError(f"no such file or folder: {place}", "name a run, a student or a bundle")
    raise MmedgeError(f"{place} is not a run, a student or a bundle", "name a folder that mmedge distill or mmedge export wrote")


def to_json(kind: Kind, found: Inspected) -> dict[str, Any]:
    """Return what was found as JSON-able values, without what does not apply."""
    return {"kind": kind.value} | {name: value for name, value in asdict(found).items() if value not in (None, {})}


def not_ours(kind: Kind) -> MmedgeError:
    """Return the error for what has the right hash, and says nonsense of itself."""
    return MmedgeError(
        f"the {kind}'s metrics, confidence or model are not what mmedge writes", "restore its files, or write it again"
    )


def _run(run: Run) -> InspectedRun:
    made = [run.annotations.name] if run.annotations.exists() else []
    made += [path.name for path in (*run.stages, *run.variants)]
    made += sorted(path.name for path in (run.comparison / "rows").glob("*") if path.is_dir())
    problems = {}
    for bundle in run.bundles:
        try:
            read_manifest(bundle)
        except MmedgeError as error:
            problems[bundle.name] = str(error)
    metrics = read_json(run.metrics)["after"] if run.metrics.is_file() else None
    return InspectedRun(made, metrics, problems)


def _student(folder: Path) -> InspectedStudent:
    details = read_json(folder / DETAILS)
    if not list(folder.glob("*.safetensors")):
        raise MmedgeError(f"the student {folder} has no weights: no *.safetensors in it", "distil it again, or restore the folder")
    quantized: dict[str, Any] = {}
    if is_quantized(details):
        manifest = check_student(folder, details)
        quantized = {
            "trusted": _matching(manifest),
            "precision": manifest.precision,
            "linears": dict(Counter(manifest.quantization.layers.values())),
            "made_with": manifest.made_with,
            "verification": asdict(manifest.verification),
        }
    try:
        return InspectedStudent(
            family=details["family"],
            recipe=details["recipe"]["name"],
            origin=details["origin"],
            parameters=details["parameters"],
            transformers=details["transformers"],
            bytes=folder_size(folder),
            metrics=details["metrics"],
            model=describe_model(folder, details),
            **quantized,
        )
    except (KeyError, TypeError):
        raise MmedgeError(f"{folder / DETAILS} was not written by this version of mmedge", "distil the student again") from None


def _bundle(folder: Path) -> InspectedBundle:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    try:
        confidence, metrics = _confidence(manifest.confidence), manifest.student.metrics["after"]
    except (AttributeError, KeyError, TypeError):
        raise not_ours(Kind.BUNDLE) from None
    return InspectedBundle(
        trusted=_matching(manifest),
        precision=manifest.precision,
        family=manifest.family,
        task=manifest.task.name,
        recipe=manifest.recipe,
        parameters=manifest.student.parameters,
        bytes=bundle.size,
        verification=asdict(manifest.verification),
        confidence=confidence,
        answering=asdict(manifest.answering),
        student_metrics=metrics,
        model=dict(manifest.model),
        matrices=quantization_summary(manifest),
        finer=finer_summary(manifest),
        least_runtime=manifest.least_runtime or None,
        learned=manifest.student.learned,
        cache=cache_summary(manifest),
        engine=suited_engine(manifest),
    )


def _matching(manifest: Exported) -> str:
    return f"yes: {len(manifest.files)} files match their hashes"


def _confidence(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says about confidence, without the figures of single questions."""
    signals = {
        name: {"map": found["map"]["kind"], "auroc": found["auroc"], "calibration_error": found["calibration_error"]}
        for name, found in (stated.get("signals") or {}).items()
    }
    return {
        "calibrated_on": stated.get("questions"),
        "engine": stated.get("engine"),
        "chosen": stated.get("chosen"),
        "why_not": stated.get("why"),
        "signals": signals,
    }
