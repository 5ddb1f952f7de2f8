"""From a recipe to bundles: `quickstart`, `distill`, `ablate`, `export`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from mmedge.cli.common import AsJson, Out, Overrides, Quiet, RecipePath, console, load, need, print_json, progress
from mmedge.cli.measuring import show_report

if TYPE_CHECKING:
    from mmedge.distill.metrics import RunMetrics
    from mmedge.manifest import Exported
    from mmedge.recipe import Recipe


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Run the whole chain on the embedded task, in minutes on two CPU cores."""
    need("torch", "all")
    from mmedge.engines.environment import check_environment

    check_environment()
    from mmedge.bench.bench import bench as measure
    from mmedge.bench.settings import settings_for
    from mmedge.cli.measuring import BENCH_JOURNAL, save_report
    from mmedge.distill.distill import distill as train
    from mmedge.export.export import export as write
    from mmedge.folders import shipped_recipe

    recipe, _ = load(shipped_recipe("quickstart"), overrides, out)
    shown = progress(quiet)
    metrics = train(recipe, out, shown)
    exports = write(out, recipe.export.precisions, shown)
    report = measure([out], settings_for(out, {}), shown, journal=out / BENCH_JOURNAL)
    save_report(report, out)
    _show_metrics(metrics)
    _show_exports(exports, out)
    show_report(report)
    typer.echo(
        f'\nAsk it yourself:  mmedge run {out / "bundle-int8"} --explain "Mara has 6 boxes with 8 plums in each. '
        'Then Mara sells 5 plums. How many plums are there now?"'
    )


def distill(
    recipe: RecipePath, out: Out = None, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Train the student: stage 1 on self-evaluation, stage 2 on reasoning. Collects missing annotations first."""
    loaded, folder = load(recipe, overrides, out)
    need("torch", "distill")
    from mmedge.distill.distill import distill as train

    metrics = train(loaded, folder, progress(quiet))
    if not _is_main_process():
        return
    if as_json:
        print_json(metrics.model_dump())
        return
    _show_metrics(metrics)
    typer.echo(f"student: {folder / 'student'}")


def ablate(
    recipe: RecipePath,
    out: Out = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Train this many students at the same time, on Ray (extra cluster). Default: one at a time."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what it will cost, and what difference it can detect with 80 % power.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare the paper's methods on this task: labels only, one and several CoTs, with and without self-evaluation."""
    loaded, folder = load(recipe, overrides, out)
    need("torch", "distill")
    if workers:
        need("ray", "cluster")
    if plan:
        _forecast(loaded, folder, workers or 1, as_json, quiet)
        return
    from mmedge.distill.ablation import ablate as compare

    results = compare(loaded, folder, progress(quiet), workers)
    if not _is_main_process():
        return
    if as_json:
        print_json(results.to_json())
        return
    from mmedge.distill.ablation_report import caption, decisions, kinds_of_labels, oracle_table, table

    shown = console(180)
    for labels in kinds_of_labels(results):
        shown.print(table(results, labels).rich(lines=True))
    if (oracle := oracle_table(results)) is not None:
        shown.print(oracle.rich())
    shown.print(caption(results), highlight=False)
    for line in decisions(results):
        typer.echo(line)
    typer.echo(f"figures: {folder / 'ablation.html'}")


def _forecast(recipe: Recipe, folder: Path, workers: int, as_json: bool, quiet: bool) -> None:
    from mmedge.distill.ablation import forecast
    from mmedge.distill.ablation_forecast import table, words

    found = forecast(recipe, folder, progress(quiet))
    if as_json:
        print_json(found.to_json())
        return
    console(120).print(table(found).rich())
    for line in words(found, workers, folder):
        typer.echo(line)


def _is_main_process() -> bool:
    """Whether this process is the one that prints, where `torchrun` started several."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Precisions:
    """Which bundles and quantized students to write."""

    panel: ClassVar[str] = "Precisions (default: those of the recipe)"

    int8: Annotated[bool, typer.Option("--int8", help="Write bundle-int8: 8-bit weights, int8 arithmetic.")] = False
    int4: Annotated[bool, typer.Option("--int4", help="Write bundle-int4: 4-bit weights, calibrated (GPTQ).")] = False
    int2: Annotated[
        bool, typer.Option("--int2", help="Write bundle-int2: 2-bit weights, scales learned from the student, if accuracy holds.")
    ] = False
    fp16: Annotated[bool, typer.Option("--fp16", help="Write bundle-fp16, for ONNX Runtime's CUDA provider.")] = False
    fp32: Annotated[bool, typer.Option("--fp32", help="Write bundle-fp32.")] = False
    bnb_int8: Annotated[
        bool, typer.Option("--bnb-int8", help="Write student-bnb-int8: torch, int8 weights by bitsandbytes, for small GPUs.")
    ] = False
    bnb_nf4: Annotated[
        bool, typer.Option("--bnb-nf4", help="Write student-bnb-nf4: torch, 4-bit NormalFloat weights by bitsandbytes.")
    ] = False
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", metavar="NAME", help="Precision by its name, such as one that a plugin adds; repeat for several."
        ),
    ] = None

    def chosen(self) -> list[str] | None:
        """Return the precisions that are asked for; None where none is named."""
        flags = {
            "fp32": self.fp32, "fp16": self.fp16, "int8": self.int8, "int4": self.int4, "int2": self.int2,
            "bnb-int8": self.bnb_int8, "bnb-nf4": self.bnb_nf4,
        }  # fmt: skip
        from mmedge.export.quantization.precisions import PRECISIONS

        for name in self.precision or ():
            PRECISIONS.require(name, "--precision")
        return list(dict.fromkeys([*(name for name, wanted in flags.items() if wanted), *(self.precision or ())])) or None


@dataclass(frozen=True)
class Conversion:
    """How bundles are made, and how much accuracy they may lose."""

    panel: ClassVar[str] = "Conversion"

    graphs: Annotated[
        Literal["auto", "fused", "transformers", "optimum"] | None,
        typer.Option(
            metavar="NAME",
            help="Who writes the graphs: fused (mmedge itself; fast), transformers or optimum (other models), or auto. Default: the"
            " recipe's.",
        ),
    ] = None
    trim_vocab: Annotated[
        bool | None,
        typer.Option("--trim-vocab/--whole-vocab", help="Keep only the tokens that the task needs. Default: the recipe's."),
    ] = None
    int8_cache: Annotated[
        bool | None,
        typer.Option(
            "--int8-cache/--float-cache",
            help="Let the native engine keep keys and values in int8 where the accuracy holds, in quantized bundles. Default: the"
            " recipe's.",
        ),
    ] = None
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Percentage points of accuracy that may be lost on validation questions. Default: the recipe's."),
    ] = None
    evaluation: Annotated[Path | None, typer.Option(help="Evaluation set to verify with. Default: beside the student.")] = None
    recover: Annotated[
        bool | None,
        typer.Option(
            "--recover/--no-recover",
            help="Let quantized layers learn their scales from the float student. Default: the recipe's, or only if int4 or int2"
            " loses too much accuracy.",
        ),
    ] = None
    max_minutes: Annotated[float | None, typer.Option(min=0.01, help="Time limit of --recover, in minutes.")] = None
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what quantizing each linear layer costs; shown in export.html.")
    ] = False


def export(
    place: Annotated[Path, typer.Argument(metavar="RUN|STUDENT", help="A run or a student folder.")],
    precisions: Precisions,
    conversion: Conversion,
    out: Annotated[Path | None, typer.Option(help="Folder for the bundles. Default: beside the student.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write ONNX bundles and quantized torch students, verified against the student.

    If quantizing costs more accuracy than is allowed, the layers that cost most keep a higher precision.
    """
    for package in ("torch", "onnx"):
        need(package, "export")
    from mmedge.export.export import export as write
    from mmedge.folders import student_in

    student = student_in(place)
    found = write(
        place,
        precisions.chosen(),
        progress(quiet),
        out,
        conversion.evaluation,
        conversion.max_accuracy_drop,
        conversion.graphs,
        conversion.trim_vocab,
        int8_cache=conversion.int8_cache,
        sensitivity=conversion.sensitivity,
        recover=None if conversion.recover is None else "always" if conversion.recover else "never",
        recover_minutes=conversion.max_minutes,
    )
    if as_json:
        print_json({precision: asdict(manifest) for precision, manifest in found.items()})
        return
    _show_exports(found, out or student.parent)


def _show_exports(found: Mapping[str, Exported], folder: Path) -> None:
    """Print where each export is, how large it is, and how it compares with the student."""
    from mmedge.export.quantization.precisions import PRECISIONS
    from mmedge.reports.formats import size

    for precision, manifest in found.items():
        bytes_ = sum(file.bytes for file in manifest.files.values())
        typer.echo(f"{folder / PRECISIONS[precision].folder}: {size(bytes_)}, {manifest.verification}")


def _show_metrics(metrics: RunMetrics) -> None:
    from mmedge.reports.formats import in_json, number, share
    from mmedge.reports.tables import Table

    rows = []
    before, middle, after = metrics.before, metrics.after_stage1, metrics.after
    for split, found in after.answer.items():
        rows.append([f"answers: {split}", share(*in_json(before.answer.get(split))), "", share(*in_json(found))])
    if after.verdict:
        columns = [before.verdict or {}, (middle and middle.verdict) or {}, after.verdict]
        rows.append(["verdicts on held-out CoTs", *(share(*in_json(found.get("accuracy"))) for found in columns)])
        rows.append(["verdicts, balanced", *(number(found.get("balanced_accuracy"), 3) for found in columns)])
        rows.append(["always saying 'correct'", *(share(*in_json(after.verdict["always_correct"])) for _ in columns)])
    shown = Table("distillation", ["", "untrained", "after stage 1", "distilled"], rows, "brackets are 95 % Wilson intervals")
    console(120).print((shown if middle is not None else shown.take([0, 1, 3])).rich())
