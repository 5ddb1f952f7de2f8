"""`mmedge export`: a student becomes ONNX bundles, or students quantized by bitsandbytes, verified and sealed, or refused.

What is exported is a `Source`; `bundles` and `bitsandbytes` each write one kind of artifact and search within its accuracy budget;
`manifest` says what was written. An export that holds is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mmedge.engines.environment import check_environment
from mmedge.export.bitsandbytes import write_student, written_student
from mmedge.export.bundles import FOREIGN, write_bundle, written_bundle
from mmedge.export.graphs import GraphChoice
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.report import write_report
from mmedge.export.source import RecoverChoice, Source
from mmedge.folders import student_in
from mmedge.manifest import Exported
from mmedge.progress import Progress
from mmedge.storage import remove_leftovers

REPORT = "export.html"


def export(
    place: Path,
    precisions: Sequence[str] | None,
    progress: Progress,
    out: Path | None = None,
    evaluation: Path | None = None,
    max_accuracy_drop: float | None = None,
    graphs: GraphChoice | None = None,
    trim_vocabulary: bool | None = None,
    *,
    int8_cache: bool | None = None,
    sensitivity: bool = False,
    recover: RecoverChoice | None = None,
    recover_minutes: float | None = None,
) -> dict[str, Exported]:
    """Export a student.

    Args:
        place: A run, or a student folder.
        precisions: Names of `PRECISIONS`; those of the recipe by default.
        progress: Where progress is shown.
        out: The folder that gets `bundle-int8`, `student-bnb-int8` and so on; that of the student by default.
        evaluation: The evaluation set to verify with; that beside the student by default.
        max_accuracy_drop: The largest loss of accuracy in points; the recipe's by default.
        graphs: Who writes the graphs; as the recipe says by default.
        trim_vocabulary: Keep only the tokens that the task needs; as the recipe says by default.
        int8_cache: Let the native engine keep keys and values in int8 where the accuracy holds; as the recipe says by default.
        sensitivity: Find out what quantizing each layer costs even where the accuracy holds.
        recover: When quantized layers learn their scales from the student; as the recipe says by default.
        recover_minutes: The longest that this may take; as the recipe says by default.

    Returns:
        The manifest of each bundle and quantized student by precision.

    Raises:
        MmedgeError: The student cannot be exported, or what is written is not the same model.
    """
    check_environment()
    folder = student_in(place)
    source = Source(
        folder,
        out or folder.parent,
        progress,
        evaluation=evaluation,
        max_accuracy_drop=max_accuracy_drop,
        graphs=graphs,
        trim_vocabulary=trim_vocabulary,
        int8_cache=int8_cache,
        sensitivity=sensitivity,
        recover=recover,
        recover_minutes=recover_minutes,
    )
    chosen = [PRECISIONS.require(name, "precision") for name in precisions or source.recipe.precisions]
    if source.out.is_dir():
        remove_leftovers(source.out)
    try:
        found: dict[str, Exported] = {}
        for one in chosen:
            found[one.name] = (write_bundle if one.artifact == "bundle" else write_student)(source, one)
        write_report(source.out / REPORT, written(source))
    finally:
        shutil.rmtree(source.out / FOREIGN, ignore_errors=True)
    return found


def written(source: Source) -> dict[str, Exported]:
    """Return the manifests of all existing exports of a student, by precision."""
    found: dict[str, Exported] = {}
    for name, precision in PRECISIONS.items():
        manifest = (written_bundle if precision.artifact == "bundle" else written_student)(source, precision)
        if manifest is not None:
            found[name] = manifest
    return found
