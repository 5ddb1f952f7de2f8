"""`mmedge export`: student → ONNX graphs → int8 → verified, sealed bundles; resumable, and refused where they differ."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmedge import __version__
from mmedge.distill.students import Student, open_student, student_details
from mmedge.errors import MmedgeError
from mmedge.export.graphs import KEPT, GraphChoice, choose_graphs, export_graphs
from mmedge.export.quantize import quantize_model
from mmedge.export.verify import check, compare
from mmedge.progress import Progress
from mmedge.runtime.bundle import GRAPHS, MANIFEST, Graphs, open_bundle, read_manifest, seal
from mmedge.runtime.student import EdgeStudent
from mmedge.storage import atomic_folder, folder_size, read_json, remove_leftovers, sha256_file, sha256_json, write_json
from mmedge.tasks.encoding import Family
from mmedge.tasks.evaluation_set import FILE_NAME, VALIDATION, EvaluationSet, read_evaluation_set

Precision = Literal["fp32", "int8"]
# Below this, one product is done before a second thread is awake: a student of 1.2 M parameters answers in 8 ms with one thread
# and in 17 ms with two (measured on two cores); SmolLM2's 135 M gain from every core.
SMALL_PARAMETERS = 10_000_000
GRAPH_FORMAT = 3  # counts up when the same student would give other graphs


def find_student(place: Path) -> Path:
    """Return the student folder that a run or a student folder means.

    Raises:
        MmedgeError: There is none.
    """
    if not place.exists():
        raise MmedgeError(f"no such run or student: {place}", "distil one first: mmedge distill RECIPE --out RUN")
    if (place / "student").is_dir():
        return place / "student"
    if (place / "recipe.yaml").is_file():
        raise MmedgeError(f"the run {place} has no student yet", f"finish it: mmedge distill {place / 'recipe.yaml'} --out {place}")
    return place


def export(
    place: Path,
    precisions: Sequence[Precision],
    progress: Progress,
    out: Path | None = None,
    evaluation: Path | None = None,
    max_accuracy_drop: float | None = None,
    graphs: GraphChoice | None = None,
) -> dict[str, dict[str, Any]]:
    """Export a student.

    Args:
        place: A run, or a student folder.
        precisions: Which bundles to write.
        progress: Where progress is shown.
        out: The folder that gets `bundle-fp32`, `bundle-int8`; that of the student by default.
        evaluation: The evaluation set to verify with; that beside the student by default.
        max_accuracy_drop: The largest loss of accuracy in points; the recipe's by default.
        graphs: Who writes the graphs; as the recipe says by default.

    Returns:
        The manifest of each bundle by precision.

    Raises:
        MmedgeError: The student cannot be exported, or a bundle is not the same model.
    """
    folder = find_student(place)
    details = student_details(folder)
    out = out or folder.parent
    questions = read_evaluation_set(evaluation or folder.parent / FILE_NAME)
    settings = details["recipe"]["export"]
    drop = settings["max_accuracy_drop"] if max_accuracy_drop is None else max_accuracy_drop
    weights = {file.name: sha256_file(file) for file in sorted(folder.glob("*.safetensors"))}
    writer = choose_graphs(folder, graphs or settings.get("graphs", "auto"))
    key = sha256_json({"format": GRAPH_FORMAT, "graphs": writer, "weights": weights, "student": details["prompts"]})
    if out.is_dir():
        remove_leftovers(out)
    found: dict[str, dict[str, Any]] = {}
    missing: list[Precision] = []
    for precision in precisions:
        bundle = out / f"bundle-{precision}"
        kept = _kept(bundle, key, questions, drop)
        if kept is None:
            missing.append(precision)
        else:
            progress.line(f"{bundle}: exported already, kept")
            found[precision] = kept
    if missing:
        floats = out / ".graphs"
        _float_graphs(folder, details["family"], writer, floats, key, progress)
        student = open_student(folder)
        for precision in missing:
            found[precision] = _bundle(floats, writer, out, precision, student, details, key, questions, settings, drop, progress)
        shutil.rmtree(floats, ignore_errors=True)
    return found


def _kept(bundle: Path, key: str, questions: EvaluationSet, drop: float) -> dict[str, Any] | None:
    """Return the manifest of a bundle that was exported before from the same student and holds, or None."""
    if not (bundle / MANIFEST).is_file():
        return None
    try:
        manifest = open_bundle(bundle).manifest
    except MmedgeError:
        return None  # damaged or of an older format: exported anew
    same = manifest["key"] == key and manifest["max_accuracy_drop"] == drop
    return manifest if same and manifest["verified_on"] == _questions_hash(questions) else None


def _questions_hash(questions: EvaluationSet) -> str:
    return sha256_json(repr(questions.questions.get(VALIDATION, ())))


def _float_graphs(student: Path, family: Family, writer: Graphs, graphs: Path, key: str, progress: Progress) -> None:
    """Write the float32 graphs that all precisions start from, unless a killed export left them finished."""
    marker = graphs / "key.json"
    if marker.is_file() and read_json(marker).get("key") == key:
        progress.line("float32 graphs: made already, kept")
        return
    progress.line("writing float32 graphs")
    with atomic_folder(graphs) as temporary:
        export_graphs(student, family, writer, temporary)
        write_json(temporary / "key.json", {"key": key})


def _bundle(
    graphs: Path,
    writer: Graphs,
    out: Path,
    precision: Precision,
    student: Student,
    details: dict[str, Any],
    key: str,
    questions: EvaluationSet,
    settings: dict[str, Any],
    drop: float,
    progress: Progress,
) -> dict[str, Any]:
    target = out / f"bundle-{precision}"
    examples = questions.questions.get(VALIDATION, ())[: settings["verify_questions"]]
    if not examples:
        raise MmedgeError(
            "the evaluation set has no validation questions to verify with", "raise split.validation and distil again"
        )
    generation = details["recipe"]["generation"]
    with atomic_folder(target) as temporary:
        progress.line(f"{precision}: writing")
        for name in KEPT:
            if (graphs / name).is_file():
                shutil.copyfile(graphs / name, temporary / name)
        for part, name in GRAPHS[details["family"], writer].items():
            if precision == "fp32":
                for file in graphs.glob(f"{name}*"):  # the graph, and its weights where they are a file of their own
                    shutil.copyfile(file, temporary / file.name)
            else:
                report = quantize_model(graphs / name, temporary / name, many_rows=part == "encoder")
                progress.line(
                    f"{precision}: {name}: {report.matrices} matrices, {report.tables} tables, "
                    f"{report.bytes_before / 1e6:.1f} → {report.bytes_after / 1e6:.1f} MB"
                )
        manifest = {
            "mmedge": __version__,
            "recipe": details["recipe"]["name"],
            "precision": precision,
            "family": details["family"],
            "graphs": writer,
            "task": {
                "name": questions.task,
                "judge": questions.judge.name,
                "labels": list(getattr(questions.judge, "labels", ())),
            },
            "prompts": details["prompts"],
            "special_tokens": details["special_tokens"],
            "max_input_tokens": details["max_input_tokens"],
            "max_answer_tokens": generation["max_answer_tokens"],
            "max_rationale_tokens": generation["max_rationale_tokens"],
            "threads": 1 if details["parameters"] < SMALL_PARAMETERS else None,
            "student": {"parameters": details["parameters"], "origin": details["origin"], "metrics": details["metrics"]},
            "key": key,
            "verified_on": _questions_hash(questions),
            "max_accuracy_drop": drop,
        }
        seal(temporary, manifest)
        progress.line(f"{precision}: verifying on {len(examples)} validation questions")
        verification = compare(student, EdgeStudent.open(temporary), examples, questions.judge, generation["max_answer_tokens"])
        check(verification, precision, drop)
        seal(temporary, {**manifest, "verification": verification.to_json()})
    progress.line(
        f"{target}: {folder_size(target) / 1e6:.1f} MB, {verification.same_answers}/{verification.questions} answers as the "
        f"student's, top-1 agreement {100 * verification.top1_agreement:.2f} %, KL {verification.mean_kl:.1e}"
    )
    return read_manifest(target)
