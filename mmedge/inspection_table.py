"""What was found of a folder as a table that a person reads, without headings; scripts read `inspection.to_json` instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmedge.folders import Kind
from mmedge.inspection import Inspected, InspectedBundle, InspectedRun, InspectedStudent, not_ours
from mmedge.manifest import Verification
from mmedge.model_card import in_name_only
from mmedge.reports.formats import in_json, number, share, size
from mmedge.reports.tables import Cell, Column, Table


def table(kind: Kind, found: Inspected) -> Table:
    """Return what `inspect` found, a row a fact.

    Raises:
        MmedgeError: What it says of its metrics, its confidence or its model is not what mmedge writes.
    """
    try:
        cells = [[Cell(name, "strong"), Cell(str(text))] for name, text in (("kind", str(kind)), *_rows(found)) if text]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise not_ours(kind) from None
    if isinstance(found, InspectedRun):
        cells += [[Cell("problem", "bad"), Cell(f"{name}: {text}")] for name, text in found.problems.items()]
    return Table("", [Column(align="left", wraps=False), Column(align="left")], cells)


def _rows(found: Inspected) -> Iterator[tuple[str, str]]:
    if isinstance(found, InspectedRun):
        return _run(found)
    if isinstance(found, InspectedStudent):
        return _student(found)
    if isinstance(found, InspectedBundle):
        return _bundle(found)
    return iter([("made for", found.engine), ("size", size(found.bytes))])


def _run(found: InspectedRun) -> Iterator[tuple[str, str]]:
    yield "holds", ", ".join(found.holds) or "nothing yet"
    yield from _scores(found.metrics)


def _student(found: InspectedStudent) -> Iterator[tuple[str, str]]:
    yield "trusted", found.trusted or ""
    yield from _model(found.family, found.model, found.parameters, found.bytes)
    yield "recipe", found.recipe
    yield "precision", found.precision or ""
    yield "linear layers", _counted(found.linears or {})
    yield "made with", ", ".join(f"{name} {version}" for name, version in (found.made_with or {}).items())
    yield "saved by", "" if found.made_with else f"transformers {found.transformers}"
    yield from _scores(found.metrics.get("after"))
    yield "against student", _comparison(found.verification)


def _bundle(found: InspectedBundle) -> Iterator[tuple[str, str]]:
    yield "trusted", found.trusted
    yield "precision", in_name_only(found.precision, found.matrices, found.finer) or found.precision
    yield from _model(found.family, found.model, found.parameters, found.bytes)
    yield "matrices", _counted(found.matrices)
    yield "kept finer", f"{_counted(found.finer)}, for accuracy" if found.finer else ""
    yield "keys and values", f"{found.cache} on the native engine" if found.cache else ""
    yield "task", found.task
    yield "recipe", found.recipe
    yield from _scores(found.student_metrics, "student's ")
    yield "against student", _comparison(found.verification)
    yield "confidence", _confidence(found.confidence)
    yield "writes", "" if found.learned is None else ", ".join(["answers", *(f"{name}s" for name in found.learned)])
    yield "answers", _answering(found.answering or {})
    yield "engine", "native, or ONNX Runtime where it is missing" if found.engine == "native" else "ONNX Runtime"
    yield "runs on", f"ONNX Runtime {found.least_runtime} or newer" if found.least_runtime else ""


def _model(family: str, model: Mapping[str, Any], parameters: int, bytes_: int) -> Iterator[tuple[str, str]]:
    yield "model", f"{model['model_type']}, {family}" if "model_type" in model else family
    yield "made from", model.get("source", "")
    yield "its licence", model.get("licence", "")
    yield "prompt", _prompt(model)
    yield "system message", model.get("system", "")
    yield "parameters", f"{parameters:,}"
    yield "size", size(bytes_)


def _prompt(model: Mapping[str, Any]) -> str:
    """Return how a student is prompted: in a chat, by which template and whose it is."""
    if "template_sha256" not in model:
        return str(model.get("prompt", ""))
    return f"chat, template of {model.get('source') or 'an unknown source'}, sha256 {model['template_sha256'][:12]}"


def _scores(metrics: Mapping[str, Any] | None, whose: str = "") -> Iterator[tuple[str, str]]:
    """Yield accuracies with their 95 % intervals."""
    for split, found in ((metrics or {}).get("answer") or {}).items():
        yield f"{whose}answers", f"{_share(found)} right: {split}"
    if verdict := (metrics or {}).get("verdict"):
        yield f"{whose}verdicts", f"{_share(verdict['accuracy'])} right; always 'correct': {_share(verdict['always_correct'])}"


def _share(found: Mapping[str, Any]) -> str:
    return f"{share(*in_json(found))} of {found['total']}" if "total" in found else share(*in_json(found))


def _counted(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in found.items())


def _comparison(found: Mapping[str, Any] | None) -> str:
    return str(Verification(**found)) if found and found["questions"] else ""


def _confidence(found: Mapping[str, Any]) -> str:
    if not found.get("chosen"):
        return "not calibrated" + (f": {found['why_not']}" if found.get("why_not") else "")
    best = found["signals"].get(found["chosen"], {})
    figures = f"AUROC {number(best.get('auroc'), 2)}, calibration error {number(best.get('calibration_error'), 3)}"
    return f"calibrated on {found['calibrated_on']} validation questions; best signal: {found['chosen']} ({figures})"


def _answering(found: Mapping[str, Any]) -> str:
    kind = (found.get("strategy") or {}).get("kind", "answer")
    words = ["at once" if kind == "answer" else f"by the strategy {kind}"]
    words += ["constrained to the task's form"] if found.get("constrained") else []
    if threshold := found.get("threshold"):
        words.append(f"withholds answers below a confidence of {threshold['value']:.2f}")
    return ", ".join(words)
