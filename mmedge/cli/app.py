"""The command line: parse, call one function, render. Nothing heavy is imported before a command needs it.

mmedge quickstart
mmedge distill recipes/quickstart.yaml --out runs/quickstart
mmedge export runs/quickstart --fp32 --int8
mmedge bench runs/quickstart
mmedge run runs/quickstart/bundle-int8 "Ann has 3 apples and buys 4 more. How many apples does Ann have now?"
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from dataclasses import replace
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmedge import __version__
from mmedge.errors import MmedgeError, missing_extra, printable

if TYPE_CHECKING:
    from mmedge.bench.bench import BenchSettings
    from mmedge.progress import Progress
    from mmedge.recipe import Recipe
    from mmedge.runtime import Strategy, Student
    from mmedge.tasks import Example, Task
    from mmedge.teachers.collector import Asked
    from mmedge.teachers.prompting import Prompts

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Distil a large teacher into a small student that knows when it is wrong, and run it at the edge.\n\n"
    "A recipe goes in; annotations, a student, int8 bundles and the measurements that prove them come out. "
    "Every command continues where it was interrupted when it is run again.",
)

BENCH_JOURNAL = ".bench.journal"

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/NAME, by the recipe's name.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmedge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show a traceback when something fails.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def _load(path: Path, overrides: list[str] | None, out: Path | None) -> tuple[Recipe, Path]:
    from mmedge.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    return recipe, out or Path("runs") / recipe.name


def _progress(quiet: bool) -> Progress:
    from mmedge.progress import Progress

    return Progress(quiet=quiet)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise missing_extra(package, extra)


# ------------------------------------------------------------------------------------------------ the chain


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/quickstart"),
    overrides: Set = None,
    quiet: Quiet = False,
) -> None:
    """The whole chain on the embedded task, in minutes on two CPU cores."""
    _need("torch", "all")
    from mmedge.bench.bench import bench as measure
    from mmedge.distill.distill import distill as train
    from mmedge.export.export import export as write
    from mmedge.folders import shipped_recipe

    recipe, _ = _load(shipped_recipe("quickstart"), overrides, out)
    progress = _progress(quiet)
    metrics = train(recipe, out, progress)
    write(out, recipe.export.precisions, progress)
    report = measure([out], _bench_settings(out, {}), progress, journal=out / BENCH_JOURNAL)
    _save_report(report, out)
    _show_metrics(metrics)
    _show_report(report)
    bundle = out / "bundle-int8"
    typer.echo(
        f'\nAsk it yourself:  mmedge run {bundle} --explain "Mara has 6 boxes with 8 plums in each. Then Mara sells 5 plums. '
        'How many plums are there now?"'
    )


INCOMPLETE = 3  # exit code of a collection that stopped at a limit, or left something for the next run


@app.command()
def annotate(
    recipe: RecipePath,
    out: Out = None,
    overrides: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be asked, and what that costs.")] = False,
    show_prompts: Annotated[bool, typer.Option("--show-prompts", help="Only print what would be sent.")] = False,
    copy_prompts: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Only copy the prompts' template files, to be edited.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Stop before the run's bill, earlier collections included, exceeds this.")
    ] = None,
    max_requests: Annotated[int | None, typer.Option(min=0, help="Stop before the run has sent more requests.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Collect the teacher's chains of thought and self-evaluations into the run.

    Run it again to continue; run it twice at once, and both share the work. Exit code 3: stopped at a limit, or something was
    left for the next run.
    """
    from mmedge.tasks import build_task

    loaded, folder = _load(recipe, overrides, out)
    task = build_task(loaded.task.model_dump())
    if show_prompts or copy_prompts is not None or dry_run:
        _prepare_collection(loaded, folder, task, show_prompts, copy_prompts, as_json)
        return
    from mmedge.annotations.store import AnnotationStore
    from mmedge.annotations.summary import refresh, report
    from mmedge.folders import work_on
    from mmedge.teachers.collect import Limits
    from mmedge.teachers.collect import annotate as collect

    with work_on(folder, loaded, shared=True) as run:
        examples = task.load().train
        progress = _progress(quiet)
        with AnnotationStore(run.annotations) as store:
            collected = collect(loaded, task, examples, store, progress, Limits(max_cost, max_requests))
            refresh(loaded, task, store, progress)
            found = report(loaded, store)
    if as_json:
        _print_json({"run": str(folder), "complete": collected is None or collected.complete, **found})
    else:
        _show_collection(found, folder)
    if collected is not None and collected.given_up and not as_json:
        typer.echo(f"{collected.given_up} subjects have fewer texts than wanted: every attempt allowed (teacher.attempts) was made")
    if collected is not None and not collected.complete:
        if collected.stopped:
            typer.echo(f"stopped: one more request could exceed {collected.stopped}; raise it and run again to continue", err=True)
        if collected.postponed:
            typer.echo(f"{collected.postponed} subjects failed too often; run it again to try them once more", err=True)
        raise typer.Exit(INCOMPLETE)
    if not found["cots"]["parsed"]:
        raise MmedgeError(
            "no chain of thought could be read", "do the annotations' ids match the questions', and does each end in an answer?"
        )


def _prepare_collection(
    recipe: Recipe, folder: Path, task: Task, show_prompts: bool, copy_prompts: Path | None, as_json: bool
) -> None:
    """Show what a collection would send, copy its templates, or say what it would cost; nothing is sent or made."""
    from mmedge.recipe import SampledTeacherSection

    section = recipe.teacher
    if not isinstance(section, SampledTeacherSection):
        raise MmedgeError(
            f"the teacher {section.kind!r} is not asked: it has no prompts and no price",
            "use one of the kinds openai and local",
        )
    if copy_prompts is not None:
        from mmedge.storage import read_text, write_text
        from mmedge.teachers.prompting import template_files

        for kind, source in template_files(task).items():
            target = copy_prompts / source.name
            if target.exists():
                raise MmedgeError(f"{target} exists already", "move it away, or name another folder")
            write_text(target, read_text(source))
            typer.echo(f"teacher.prompts.{kind}: {target}")
        return
    from mmedge.teachers.collect import asked_of, prompts_of

    prompts, examples = prompts_of(section, task), task.load().train
    if show_prompts:
        from mmedge.teachers.prompting import shown

        typer.echo(printable(f"# a chain of thought for {examples[0].id}\n{shown(prompts.about_question(examples[0]))}\n"))
        judged = "(here stands the chain of thought that is judged)"
        typer.echo(printable(f"# an evaluation of it\n{shown(prompts.about_cot(examples[0], judged))}"))
        return
    _show_estimate(recipe, folder, asked_of(section), prompts, examples, as_json)


def _show_estimate(
    recipe: Recipe, folder: Path, asked: Asked, prompts: Prompts, examples: tuple[Example, ...], as_json: bool
) -> None:
    from mmedge.annotations.store import AnnotationStore
    from mmedge.folders import Run
    from mmedge.recipe import OpenAITeacherSection
    from mmedge.teachers.estimate import estimate

    path = Run(folder).annotations
    if path.is_file():
        with AnnotationStore(path) as store:
            found = estimate(examples, prompts, asked, store)
    else:
        found = estimate(examples, prompts, asked, None)
    if as_json:
        _print_json(found.to_json())
        return
    source = (
        "as long as this teacher's texts so far" if found.measured else "assumed: 4 characters a token, texts as in the prompts"
    )
    typer.echo(f"{found.questions} questions; missing: {found.cots} chains of thought, {found.evaluations} self-evaluations")
    typer.echo(f"requests: {found.requests:,}, at most {found.requests_at_most:,} where texts must be drawn again")
    typer.echo(f"tokens: {found.prompt_tokens:,} read, {found.completion_tokens:,} written ({source})")
    if isinstance(recipe.teacher, OpenAITeacherSection):
        prices = recipe.teacher.prices
        if prices.input or prices.output:
            most = f"at most {found.cost_at_most:.2f} {prices.currency}"
            typer.echo(
                f"cost: about {found.cost:.2f} {prices.currency}; {most} if every text is as long as allowed and drawn again"
            )
        else:
            typer.echo("cost: unknown; give teacher.prices (input and output, per million tokens) to have it worked out")


def _show_collection(found: dict[str, Any], folder: Path) -> None:
    from mmedge.annotations.report import yield_rows

    for name, count, share in yield_rows(found):
        typer.echo(f"{name}: {count} ({share})")
    bill = found["bill"]
    texts = bill["texts"]["cot"] if bill is not None else {}
    if 2 * texts.get("identical", 0) > sum(texts.values()):
        typer.echo("most chains of thought said the same as another: does the endpoint heed teacher.temperature?")
    if bill is not None and bill["failed"]:
        failed = ", ".join(f"{count} {status}" for status, count in bill["failed"].items())
        typer.echo(f"requests failed: {failed} (of {bill['requests']:,})")
    if bill is not None and bill["currency"] and bill["cost"]:
        typer.echo(f"bill: {bill['cost']:.4f} {bill['currency']} for {bill['requests']:,} requests")
    typer.echo(f"more: mmedge annotations {folder}")


class ExportForm(StrEnum):
    """How annotations are written."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command("annotations")
def annotations_report(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run with annotations.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page to look at.")] = None,
    export_to: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Write all texts, as a recorded teacher reads them.")
    ] = None,
    form: Annotated[ExportForm, typer.Option("--format", help="How --export writes them.")] = ExportForm.JSONL,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What the teacher's texts are worth: yield, agreement, correctness, verdicts, the bill, and what each choice would keep."""
    from mmedge.annotations.store import AnnotationStore
    from mmedge.annotations.summary import refresh, report
    from mmedge.folders import Run, load_run_recipe
    from mmedge.tasks import build_task

    run = Run(place)
    loaded = load_run_recipe(run)
    if not run.annotations.is_file():
        raise MmedgeError(f"{place} has no annotations", f"collect them: mmedge annotate RECIPE --out {place}")
    task = build_task(loaded.task.model_dump())
    with AnnotationStore(run.annotations) as store:
        if export_to is not None:
            from mmedge.annotations.exporting import export_annotations

            for path, count in export_annotations(store, export_to, form.value).items():
                typer.echo(f"{path}: {count} records", err=as_json)
        refresh(loaded, task, store, _progress(quiet))
        found = report(loaded, store)
        if html is not None:
            from mmedge.annotations.report import page
            from mmedge.annotations.summary import examples_to_show
            from mmedge.teachers.collect import most_read

            page(found, examples_to_show(store, task, 12, most_read(loaded))).write(html)
            typer.echo(f"written: {html}", err=True)
    if as_json:
        _print_json(found)
        return
    from rich.console import Console

    from mmedge.annotations.report import tables

    console = Console()
    Console(width=max(console.width, 120)).print(tables(found))


@app.command()
def distill(recipe: RecipePath, out: Out = None, overrides: Set = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Train the student: stage 1 on self-evaluation, stage 2 on reasoning. Annotations are collected first if missing."""
    loaded, folder = _load(recipe, overrides, out)
    _need("torch", "distill")
    from mmedge.distill.distill import distill as train

    metrics = train(loaded, folder, _progress(quiet))
    if not _is_main_process():
        return
    if as_json:
        _print_json(metrics)
        return
    _show_metrics(metrics)
    typer.echo(f"student: {folder / 'student'}")


@app.command()
def ablate(recipe: RecipePath, out: Out = None, overrides: Set = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Compare the paper's methods on this task: labels only, one and several CoTs, with and without self-evaluation."""
    loaded, folder = _load(recipe, overrides, out)
    _need("torch", "distill")
    from mmedge.distill.ablation import ablate as compare

    results = compare(loaded, folder, _progress(quiet))
    if not _is_main_process():
        return
    if as_json:
        _print_json(results)
        return
    from rich.console import Console

    from mmedge.distill.ablation_report import caption, kinds_of_labels, table

    console = Console(width=max(Console().width, 180))
    for labels in kinds_of_labels(results):
        console.print(table(results, labels).rich(lines=True))
    console.print(caption(results), highlight=False)
    typer.echo(f"figures: {folder / 'ablation.html'}")


def _is_main_process() -> bool:
    """Whether this process is the one that speaks, where `torchrun` started several."""
    return os.environ.get("RANK", "0") == "0"


class GraphChoice(StrEnum):
    """Who writes the graphs of a bundle."""

    AUTO = "auto"
    FUSED = "fused"
    OPTIMUM = "optimum"


@app.command()
def export(
    place: Annotated[Path, typer.Argument(metavar="RUN|STUDENT", help="A run, or a student folder.")],
    int8: Annotated[bool, typer.Option("--int8", help="Write bundle-int8: 8-bit weights in blocks, int8 arithmetic.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Write bundle-int4: 4-bit weights, calibrated (GPTQ).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Write bundle-fp16: float16, for ONNX Runtime's CUDA provider.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Write bundle-fp32.")] = False,
    bnb_int8: Annotated[
        bool, typer.Option("--bnb-int8", help="Write student-bnb-int8: torch, weights in int8 by bitsandbytes, for small GPUs.")
    ] = False,
    bnb_nf4: Annotated[bool, typer.Option("--bnb-nf4", help="Write student-bnb-nf4: the same in 4-bit NormalFloat.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where bundles go. Default: beside the student.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="The evaluation set. Default: beside the student.")] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Points of accuracy on validation questions that may be lost. Default: the recipe's."),
    ] = None,
    graphs: Annotated[
        GraphChoice | None,
        typer.Option(help="Who writes the graphs: mmedge (fused, fast) or optimum (any architecture). Default: the recipe."),
    ] = None,
    trim_vocab: Annotated[
        bool | None,
        typer.Option("--trim-vocab/--whole-vocab", help="Keep only the pieces that the task needs. Default: the recipe."),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Find out what rounding each product costs; shown in export.html.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write ONNX bundles (and rounded torch students), verified against the student. Without a precision: the recipe's.

    Where rounding costs more accuracy than is allowed, the products that cost most are kept in finer numbers until it holds.
    """
    for package in ("torch", "onnx"):
        _need(package, "export")
    from mmedge.export.export import AnyPrecision, variant_name
    from mmedge.export.export import export as write
    from mmedge.folders import student_in

    student = student_in(place)
    asked: dict[AnyPrecision, bool] = {
        "fp32": fp32, "fp16": fp16, "int8": int8, "int4": int4, "bnb-int8": bnb_int8, "bnb-nf4": bnb_nf4,
    }  # fmt: skip
    wanted = [precision for precision, is_asked in asked.items() if is_asked] or None
    found = write(
        place,
        wanted,
        _progress(quiet),
        out,
        evaluation,
        max_accuracy_drop,
        graphs.value if graphs else None,
        trim_vocab,
        sensitivity=sensitivity,
    )
    if as_json:
        _print_json(found)
        return
    folder = out or student.parent
    for precision, manifest in found.items():
        size = sum(file["bytes"] for file in manifest["files"].values())
        checked = manifest["verification"]
        typer.echo(
            f"{folder / variant_name(precision)}  {size / 1e6:.1f} MB  {checked['same_answers']}/{checked['questions']} answers "
            f"as the student's  top-1 agreement {100 * checked['top1_agreement']:.2f} %"
        )


@app.command()
def bench(
    context: typer.Context,
    places: Annotated[
        list[str],
        typer.Argument(metavar="VARIANT…", help="Runs, student folders, bundles, or KIND:PLACE such as torch-bf16:RUN/student."),
    ],
    questions: Annotated[
        int | None, typer.Option(min=1, help="Questions of each test split. Default: the run's recipe, else all.")
    ] = None,
    verdicts: Annotated[
        int | None, typer.Option(min=0, help="Held-out chains of thought to judge. Default: the run's recipe, else 100.")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Questions of one pass of warm-up. Default: the run's recipe, else 5.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each variant. Default: what a bundle asks for, else all cores.")
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            "--data",
            help="The evaluation set, or JSON lines of labelled questions. Default: beside the first variant.",
        ),
    ] = None,
    scenarios: Annotated[
        str, typer.Option(help="Of single (one question at a time), offline (over batches), server (arrivals), accuracy.")
    ] = "single,accuracy",
    ask: Annotated[str, typer.Option(help="What is asked for: answer, rationale or confidence.")] = "answer",
    timed: Annotated[
        int | None, typer.Option(min=1, help="Questions of one round, evenly spread. Default: all that are asked.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Repeat rounds until medians and ratios are known so precisely, such as 3%.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds at least, each in new processes.")] = 1,
    max_rounds: Annotated[int, typer.Option(min=1, help="Rounds at most, with --precision.")] = 50,
    batches: Annotated[str, typer.Option(help="Batch sizes of the offline scenario.")] = "1,8,32",
    latency_bound: Annotated[str, typer.Option(help="What p99 must keep in the server scenario.")] = "200ms",
    server_seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="For about how long each rate is tried.")] = 10.0,
    cpus: Annotated[int | None, typer.Option(min=1, help="Processors that each variant may use.")] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Memory that each variant may use, such as 300M.")] = None,
    sweep_threads: Annotated[
        str | None, typer.Option(help="Measure each variant with each number of threads, such as 1,2.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where bench.json, .md and .html go. Default: beside the first variant.")] = None,
    remote: Annotated[
        str | None, typer.Option(metavar="USER@HOST", help="Measure on that machine, over SSH; bundles only.")
    ] = None,
    ssh_config: Annotated[Path | None, typer.Option(metavar="FILE", help="An SSH configuration for --remote.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy, latency, memory and size of variants, on the same questions, taking turns."""
    from mmedge.bench.bench import bench as measure
    from mmedge.bench.bench import first_folder, read_choices
    from mmedge.bench.energy import EnergyMeter
    from mmedge.bench.limits import parse_counts, parse_seconds, parse_share, parse_size
    from mmedge.manifest import refuse_bundle

    if out is not None:
        refuse_bundle(out, "--out")
    if remote is not None:
        from mmedge.bench.remote.session import bundles_of, run_remote

        passed_on = _given_options(context, {"places", "evaluation", "out", "remote", "ssh_config", "as_json", "quiet"})
        bundles = [Path(place) for place in places]
        report = run_remote(remote, bundles, evaluation, passed_on, _progress(quiet), ssh_config)
        folder = out or bundles_of(bundles)[0].resolve().parent
        name = _save_report(report, folder)
        if as_json:
            _print_json(report)
            return
        _show_report(report)
        typer.echo(f"measured on {remote}; written: {folder / name}.json, .md, .html")
        return
    first = Path(places[0])
    given = {"questions": questions, "warmup_questions": warmup, "verdicts": verdicts, "threads": threads}
    settings = replace(
        _bench_settings(first, {name: value for name, value in given.items() if value is not None}),
        **read_choices(scenarios, ask),
        timed=timed,
        precision=None if precision is None else parse_share(precision),
        rounds=rounds,
        max_rounds=max_rounds,
        batches=parse_counts(batches, "--batches"),
        latency_bound=parse_seconds(latency_bound),
        server_seconds=server_seconds,
        cpus=cpus,
        memory_limit=None if memory_limit is None else parse_size(memory_limit),
        sweep_threads=() if sweep_threads is None else parse_counts(sweep_threads, "--sweep-threads"),
    )
    folder = out or first_folder(places)
    journal = folder / BENCH_JOURNAL
    energy = EnergyMeter() if "offline" in settings.scenarios else None
    report = measure(places, settings, _progress(quiet), evaluation, journal, energy)
    name = _save_report(report, folder)
    if as_json:
        _print_json(report)
        return
    _show_report(report)
    typer.echo(f"written: {folder / name}.json, .md, .html")


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE.json", help="A report of mmedge bench.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="Another, of the same questions.")],
    max_slowdown: Annotated[
        str | None, typer.Option(help="Fail where a variant is slower by more, beyond noise, such as 5%.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(min=0, help="Fail where a variant's accuracy is lower by more points.")
    ] = None,
    max_memory_growth: Annotated[
        str | None, typer.Option(help="Fail where a variant's peak memory is larger by more, such as 10%.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What changed between two reports of `mmedge bench`, beyond noise; exit code 1 where a bound is broken."""
    from mmedge.bench.compare import compare as compared
    from mmedge.bench.compare import read_bounds, text

    found = compared(base, new, read_bounds(max_slowdown, max_accuracy_drop, max_memory_growth))
    if as_json:
        _print_json(found)
    else:
        typer.echo(text(found))
    if found["broken"]:
        raise typer.Exit(1)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    questions: Annotated[int | None, typer.Option(min=1, help="Questions of each test split. Default: all.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=64, help="Chains of thought drawn for each question; 0 for none.")] = 5,
    temperature: Annotated[float, typer.Option(min=0.01, max=10, help="Of drawing.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Of drawing.")] = 0,
    timed: Annotated[int, typer.Option(min=0, help="Questions that every strategy is timed on; 0 for none.")] = 20,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Questions answered together.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: what the bundle asks for, else all cores.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="The evaluation set. Default: beside the bundle.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where evaluate-PRECISION.json, .md and .html go. Default: beside the bundle.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Does it know when it is wrong? Confidence against truth, what abstaining and handing on are worth, what strategies cost."""
    from mmedge.bench.evaluation import EvaluationSettings
    from mmedge.bench.evaluation import evaluate as measure
    from mmedge.bench.evaluation_report import markdown, page, tables
    from mmedge.manifest import refuse_bundle
    from mmedge.storage import write_json, write_text

    folder = out or bundle.resolve().parent
    refuse_bundle(folder, "--out")
    journal = folder / f".evaluate-{bundle.name}.journal"
    settings = EvaluationSettings(questions, samples, temperature, seed, batch, timed, threads)
    report = measure(bundle, settings, _progress(quiet), evaluation, journal)
    name = f"evaluate-{report['precision']}"
    write_json(folder / f"{name}.json", report)
    write_text(folder / f"{name}.md", markdown(report))
    page(report).write(folder / f"{name}.html")
    journal.unlink(missing_ok=True)
    if as_json:
        _print_json(report)
        return
    from rich.console import Console

    console = Console(width=max(Console().width, 150))
    for table in tables(report):
        console.print(table.rich())
    typer.echo(f"written: {folder / name}.json, .md, .html")


def _given_options(context: typer.Context, without: set[str]) -> list[str]:
    """Return the options that were typed on the command line, as arguments for the same command elsewhere."""
    found: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in without or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            found.append((parameter.opts if value else parameter.secondary_opts)[0])
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            found += [parameter.opts[0], str(item.value if isinstance(item, Enum) else item)]
    return found


def _bench_settings(place: Path, given: dict[str, int]) -> BenchSettings:
    """Return what the command line says, then what the recipe of the run says, then the defaults."""
    from mmedge.bench.bench import BenchSettings
    from mmedge.recipe import BenchSection, load_recipe

    path = place / "recipe.yaml"
    section = load_recipe(path).bench if path.is_file() else BenchSection()
    return BenchSettings(**{**section.model_dump(), **given})


def _save_report(report: dict[str, Any], folder: Path) -> str:
    """Write a report, beside a fuller one of the same task under a name of its own; return the name."""
    from mmedge.bench.report import markdown, page
    from mmedge.storage import read_json, write_json, write_text

    name = "bench"
    try:
        before = read_json(folder / "bench.json")
        if before["task"] == report["task"] and sum(before["questions"].values()) > sum(report["questions"].values()):
            name = "bench-partial"
    except (MmedgeError, KeyError, TypeError, AttributeError):
        pass  # none there, or none that is worth keeping
    write_json(folder / f"{name}.json", report)
    write_text(folder / f"{name}.md", markdown(report))
    page(report).write(folder / f"{name}.html")
    (folder / BENCH_JOURNAL).unlink(missing_ok=True)
    return name


def _show_report(report: dict[str, Any]) -> None:
    from rich.console import Console

    from mmedge.bench.report import problems, tables

    console = Console(width=max(Console().width, 170))
    for table in tables(report):
        console.print(table.rich())
    for name, why in problems(report):
        typer.echo(f"{printable(name)}: {printable(why)}")


def _show_metrics(metrics: dict[str, Any]) -> None:
    from rich.console import Console

    from mmedge.reports.formats import in_json, number, share
    from mmedge.reports.tables import Table

    rows = []
    before, middle, after = metrics["before"], metrics["after_stage1"] or {}, metrics["after"]
    for split, found in after["answer"].items():
        rows.append([f"answers: {split}", share(*in_json(before["answer"].get(split))), "", share(*in_json(found))])
    if after["verdict"]:
        columns = [before["verdict"], middle.get("verdict"), after["verdict"]]
        rows.append(["verdicts on held-out CoTs", *(share(*in_json(found and found["accuracy"])) for found in columns)])
        rows.append(["verdicts, balanced", *(number(found and found["balanced_accuracy"], 3) for found in columns)])
        rows.append(["always saying 'correct'", *(share(*in_json(after["verdict"]["always_correct"])) for _ in columns)])
    shown = Table("distillation", ["", "untrained", "after stage 1", "distilled"], rows, "brackets are 95 % Wilson intervals")
    Console(width=max(Console().width, 120)).print(shown.rich())


# ---------------------------------------------------------------------------------------------------- asking


class StrategyChoice(StrEnum):
    """How a student goes about a question."""

    ANSWER = "answer"
    CONFIDENCE = "confidence"
    SAMPLES = "samples"
    RETRY = "retry"


class DeviceChoice(StrEnum):
    """Where a bundle computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class VoteChoice(StrEnum):
    """Which of several answers wins."""

    MAJORITY = "majority"
    SELF_EVALUATION = "self_evaluation"
    BOTH = "both"


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="One question. Without: a dialogue, or a pipe.")
    ] = None,
    choices: Annotated[list[str] | None, typer.Option("--choice", help="A choice; give one for each.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also write a rationale.")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="The best confidence that there is, not the one that costs nothing.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also judge rationale and answer: a verdict, with --explain its reasons.")
    ] = False,
    strategy: Annotated[
        StrategyChoice | None, typer.Option(help="How to go about it. Default: as the bundle says, or else answer.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, max=64, help="Chains of thought that are drawn.")] = None,
    choose_by: Annotated[VoteChoice | None, typer.Option(help="Which of the drawn answers wins.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of drawing.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of drawing.")] = None,
    retry_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="The confidence below which the strategy retry draws more.")
    ] = None,
    constrained: Annotated[
        bool | None,
        typer.Option("--constrained/--free", help="Only answers of the task's form. Default: as the bundle says, or else free."),
    ] = None,
    abstain_below: Annotated[float | None, typer.Option(min=0, max=1, help="Withhold answers with a lower confidence.")] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Withhold as few answers as bring the others to this accuracy on validation questions."),
    ] = None,
    max_handed_on: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Withhold the least confident, at most this share of them."),
    ] = None,
    escalate_to: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this OpenAI-compatible endpoint (…/v1) what would be withheld.")
    ] = None,
    escalate_model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name there.")] = None,
    escalate_key: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="The environment variable that holds its key.")
    ] = None,
    price_input: Annotated[float, typer.Option(min=0, help="Of a million tokens that it reads.")] = 0.0,
    price_output: Annotated[float, typer.Option(min=0, help="Of a million tokens that it writes.")] = 0.0,
    device: Annotated[
        DeviceChoice, typer.Option(help="Where it computes; auto: where the bundle is meant for.")
    ] = DeviceChoice.AUTO,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text while it is written.")] = False,
    input_: Annotated[Path | None, typer.Option("--input", help="JSON lines with questions; - for standard input.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="JSON lines with answers; - for standard output.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Questions answered together.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: what the bundle asks for, else all cores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a bundle: one question, a dialogue in the terminal, or JSON lines through files and pipes."""
    if question is not None and input_ is not None:
        raise MmedgeError("give either a question or --input, not both")
    if question is not None and output is not None:
        raise MmedgeError("--output is for the answers to --input or a pipe", "redirect what one question prints, or use --json")
    if question is not None and not question.strip():
        raise MmedgeError("the question is empty")
    if input_ is not None and str(input_) != "-" and not input_.is_file():
        raise MmedgeError(f"no such file: {input_}", "it must hold one JSON object with a question in each line")
    if input_ is not None and output is not None and output.exists() and input_.exists() and input_.samefile(output):
        raise MmedgeError("--input and --output are the same file", "name another output")
    if sum(aim is not None for aim in (abstain_below, target_accuracy, max_handed_on)) > 1:
        raise MmedgeError("give one of --abstain-below, --target-accuracy and --max-handed-on")
    if (escalate_to is None) != (escalate_model is None):
        raise MmedgeError("--escalate-to and --escalate-model go together")
    if escalate_to is None and (escalate_key is not None or price_input or price_output):
        raise MmedgeError("--escalate-key and prices are those of --escalate-to's endpoint", "name it")
    if choices and question is None:
        raise MmedgeError("--choice is for one question on the command line", "give `choices` in the lines of --input")
    if stream and (as_json or input_ is not None):
        raise MmedgeError("--stream shows one question's text in a terminal", "leave it out with --json and --input")
    from mmedge.cli.terminal import Asking, answer_lines, dialogue, say
    from mmedge.runtime import Endpoint, Student
    from mmedge.tasks import Example

    bigger = None
    if escalate_to is not None and escalate_model is not None:
        bigger = Endpoint(escalate_to, escalate_model, escalate_key, price_input=price_input, price_output=price_output)
    student = Student.load(bundle, threads, device.value)
    drawing = {"samples": samples, "choose_by": choose_by.value if choose_by else None, "temperature": temperature, "seed": seed}
    drawing["retry_below"] = retry_below
    wanted = student.strategy_with(strategy.value if strategy else None, **drawing)
    _refuse_unused(student, wanted, drawing, choices)
    if target_accuracy is not None or max_handed_on is not None:
        found = student.threshold(target_accuracy=target_accuracy, max_handed_on=max_handed_on)
        if wanted.kind in ("samples", "retry"):
            raise MmedgeError(
                f"thresholds are chosen for answering at once, not for --strategy {wanted.kind}", "give --abstain-below yourself"
            )
        abstain_below = found.value
        low, high = (100 * end for end in found.interval)
        typer.echo(
            f"withheld below a confidence of {found.value:.2f}: {100 * found.handed_on:.0f} % of {found.questions} validation "
            f"questions; of the others {100 * found.accuracy:.0f} % [{low:.0f}, {high:.0f}] were right",
            err=True,
        )
    asking = Asking(student, explain, evaluate, confidence, wanted, constrained, abstain_below, bigger)
    if stream and asking.decides_later:
        raise MmedgeError(
            "--stream cannot show what may yet be withheld or outvoted",
            "leave it out, or give --strategy answer --abstain-below 0",
        )
    if question is not None:
        say(asking, Example("question", question, None, tuple(choices or ())), as_json=as_json, stream=stream)
    elif input_ is None and sys.stdin.isatty():
        dialogue(asking, stream=stream)
    else:
        answer_lines(asking, input_, output, batch, _progress(False))


def _refuse_unused(student: Student, strategy: Strategy, drawing: dict[str, Any], choices: list[str] | None) -> None:
    """Refuse options that would change nothing.

    Raises:
        MmedgeError: There is one.
    """
    given = [name for name, value in drawing.items() if value is not None]
    if strategy.kind not in ("samples", "retry") and given:
        option = f"--{given[0].replace('_', '-')}"
        raise MmedgeError(f"{option} is for --strategy samples or retry, and this is {strategy.kind}", "name one of them")
    if strategy.kind == "samples" and "retry_below" in given:
        raise MmedgeError("--retry-below is for --strategy retry", "name it, or leave the option out")
    task = student.bundle.manifest["task"]
    if choices and task["judge"] != "choice":
        raise MmedgeError(f"--choice: questions of the task {task['name']} have no choices", "leave it out")


# ---------------------------------------------------------------------------------------------------- looking


@app.command()
def inspect(
    place: Annotated[Path, typer.Argument(metavar="RUN|STUDENT|BUNDLE", help="What to look at.")], as_json: AsJson = False
) -> None:
    """What is this, can it be trusted (hashes), how good is it."""
    found = _inspected(place)
    if as_json:
        _print_json(found)
        return
    for name, value in found.items():
        typer.echo(f"{name}: {json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value}")


def _inspected(place: Path) -> dict[str, Any]:
    from mmedge.manifest import MANIFEST, open_bundle
    from mmedge.storage import folder_size, read_json

    if (place / MANIFEST).is_file():
        bundle = open_bundle(place)
        manifest = bundle.manifest
        return {
            "kind": "bundle",
            "trusted": f"yes: {len(manifest['files'])} files match their hashes",
            "precision": bundle.precision,
            "family": bundle.family,
            "task": manifest["task"]["name"],
            "recipe": manifest["recipe"],
            "parameters": manifest["student"]["parameters"],
            "bytes": bundle.size,
            "verification": manifest["verification"],
            "confidence": _inspected_confidence(manifest.get("confidence") or {}),
            "answering": manifest.get("answering"),
            "student_metrics": manifest["student"]["metrics"]["after"],
        }
    if (place / "mmedge.json").is_file():
        details = read_json(place / "mmedge.json")
        if not list(place.glob("*.safetensors")):
            raise MmedgeError(
                f"the student {place} has no weights: no *.safetensors in it", "distil it again, or restore the folder"
            )
        rounded = _inspected_rounding(place, details) if "rounded" in details else {}
        return {
            "kind": "student",
            **rounded,
            "family": details["family"],
            "recipe": details["recipe"]["name"],
            "origin": details["origin"],
            "parameters": details["parameters"],
            "transformers": details["transformers"],
            "bytes": folder_size(place),
            "metrics": details["metrics"],
        }
    if (place / "recipe.yaml").is_file():
        present = [name for name in ("annotations.sqlite", "stage1", "stage2", "student") if (place / name).exists()]
        bundles = sorted(path.name for kind in ("student-*", "bundle-*") for path in place.glob(kind))
        metrics = read_json(place / "metrics.json") if (place / "metrics.json").is_file() else None
        after = metrics["after"] if metrics else "not distilled yet"
        return {"kind": "run", "holds": [*present, *bundles], "metrics": after}
    if not place.exists():
        raise MmedgeError(f"no such run, student or bundle: {place}")
    raise MmedgeError(f"{place} is neither a run, a student nor a bundle")


def _inspected_rounding(place: Path, details: dict[str, Any]) -> dict[str, Any]:
    """Return what there is to say about a student whose weights are rounded."""
    from collections import Counter

    from mmedge.students.bitsandbytes import check_rounded

    manifest = check_rounded(place, details)
    return {
        "trusted": f"yes: {len(manifest['files'])} files match their hashes",
        "precision": manifest["precision"],
        "products": dict(Counter(manifest["numbers"]["layers"].values())),
        "made_with": manifest["made_with"],
        "verification": manifest["verification"],
    }


def _inspected_confidence(stated: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest says about confidence, without the figures of single questions."""
    signals = stated.get("signals") or {}
    shown = {
        name: {"map": found["map"]["kind"], "auroc": found["auroc"], "calibration_error": found["calibration_error"]}
        for name, found in signals.items()
    }
    return {
        "calibrated_on": stated.get("questions"),
        "chosen": stated.get("chosen"),
        "why_not": stated.get("why"),
        "signals": shown,
    }


@app.command()
def doctor(
    measure: Annotated[bool, typer.Option("--measure", help="Also measure memory and arithmetic, in two seconds.")] = False,
    as_json: AsJson = False,
) -> None:
    """What this machine can do, which precision suits it, what is missing and how to get it."""
    from mmedge.doctor import examine, table

    found = examine(measure=measure)
    if as_json:
        _print_json(found.to_json())
        return
    from rich.console import Console

    Console().print(table(found).rich(grid=False))


def main() -> None:
    """Start from the command line: one-line errors, exit code 1; a traceback only with --debug."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a sign shows a question mark
            stream.reconfigure(errors="replace")
    try:
        app()
    except MmedgeError as error:
        if debug:
            raise
        typer.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer turns the former into exit code 130, without a word
        if isinstance(ended, SystemExit) and ended.code != 130:
            raise
        typer.echo("interrupted; run the same command again to continue", err=True)
        sys.exit(130)
    except MemoryError:
        typer.echo("error: out of memory\n  → close other programs, or use a smaller student or batch", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            typer.echo("error: no space left to write to\n  → free some, or send the output elsewhere; then run it again", err=True)
            sys.exit(1)
        typer.echo(f"error: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}", err=True)
        typer.echo("  → this is a defect of mmedge; run it with --debug for the traceback", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
