"""How good, how fast, how large: `bench`, `compare`, `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from mmedge.cli.common import AsJson, BundlePath, Quiet, Threads, console, given_options, print_json, progress
from mmedge.errors import MmedgeError

if TYPE_CHECKING:
    from mmedge.bench.results import BenchReport
    from mmedge.bench.settings import BenchSettings
    from mmedge.progress import Progress

BENCH_JOURNAL = ".bench.journal"


@dataclass(frozen=True)
class Questions:
    """What is asked."""

    panel: ClassVar[str] = "Questions"

    questions: Annotated[
        int | None, typer.Option(min=1, help="Questions of each test split. Default: the run's recipe, or all.")
    ] = None
    verdicts: Annotated[
        int | None, typer.Option(min=0, help="Held-out chains of thought to judge. Default: the run's recipe, or 100.")
    ] = None
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            "--data",
            help="Evaluation set, or JSON lines of labelled questions. Default: the one beside the first variant.",
        ),
    ] = None
    ask: Annotated[str, typer.Option(help="What to ask for: answer, rationale or confidence.")] = "answer"


@dataclass(frozen=True)
class Scenarios:
    """What is measured, and until when."""

    panel: ClassVar[str] = "Scenarios"

    scenarios: Annotated[
        str,
        typer.Option(
            help="Comma-separated: single (one question at a time), offline (batches), server (random arrivals), accuracy."
        ),
    ] = "single,accuracy"
    timed: Annotated[
        int | None, typer.Option(min=1, help="Questions timed in each round, evenly spread. Default: all that are asked.")
    ] = None
    within: Annotated[
        str | None, typer.Option(help="Repeat rounds until medians and ratios are known to within this, such as 3%.")
    ] = None
    rounds: Annotated[int, typer.Option(min=1, help="Fewest rounds, each in new processes.")] = 1
    max_rounds: Annotated[int, typer.Option(min=1, help="Most rounds with --within.")] = 50
    warmup: Annotated[int | None, typer.Option(min=0, help="Questions in one warm-up pass. Default: the run's recipe, or 5.")] = (
        None
    )
    batches: Annotated[str, typer.Option(help="Batch sizes of the offline scenario.")] = "1,8,32"
    latency_bound: Annotated[str, typer.Option(help="Bound on p99 latency in the server scenario.")] = "200ms"
    server_seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Approximate seconds spent at each rate.")] = 10.0


@dataclass(frozen=True)
class Device:
    """What a variant may use, and where to measure it."""

    panel: ClassVar[str] = "Device"

    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each variant. Default: what a bundle asks for, or all cores.")
    ] = None
    sweep_threads: Annotated[
        str | None, typer.Option(help="Measure each variant with each of these thread counts, such as 1,2.")
    ] = None
    cpus: Annotated[int | None, typer.Option(min=1, help="Processors that each variant may use.")] = None
    memory_limit: Annotated[str | None, typer.Option(help="Memory that each variant may use, such as 300M.")] = None
    remote: Annotated[str | None, typer.Option(metavar="USER@HOST", help="Measure on that machine, over SSH; bundles only.")] = None
    ssh_config: Annotated[Path | None, typer.Option(metavar="FILE", help="SSH configuration file for --remote.")] = None


@dataclass(frozen=True)
class Servers:
    """Servers instead of variants: the server scenario over HTTP."""

    panel: ClassVar[str] = "Servers, instead of variants"

    server: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="OpenAI-compatible server, such as http://127.0.0.1:8080/v1."),
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option(help="The servers' model; once for all, or once for each. Needed where a server has several."),
    ] = None
    student: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Send servers other than mmedge's the prompts of this student, which they must serve."),
    ] = None
    server_key: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the servers' API key.")
    ] = None


def bench(
    context: typer.Context,
    questions: Questions,
    scenarios: Scenarios,
    device: Device,
    servers: Servers,
    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="VARIANT…", help="Runs, student folders, bundles, or KIND:PLACE such as torch-bf16:RUN/student."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, .md and .html. Default: beside the first variant.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy, latency, memory, energy and size of variants, which take turns on the same questions."""
    from mmedge.bench.bench import bench as measure
    from mmedge.bench.bench import first_folder
    from mmedge.bench.energy import EnergyMeter
    from mmedge.bundle import refuse_bundle

    if out is not None:
        refuse_bundle(out, "--out")
    shown = progress(quiet)
    if servers.server:
        if places or device.remote:
            raise MmedgeError("--server measures servers, not variants", "leave out the variants and --remote")
        _bench_servers(servers, questions, scenarios, out, shown, as_json)
        return
    if not places:
        raise MmedgeError("no variant given", "name a run, a student folder or a bundle, or a server with --server URL")
    if device.remote is not None:
        from mmedge.bench.remote.session import bundles_of, run_remote

        passed_on = given_options(context, {"places", "evaluation", "out", "remote", "ssh_config", "as_json", "quiet"})
        bundles = [Path(place) for place in places]
        report = run_remote(device.remote, bundles, questions.evaluation, passed_on, shown, device.ssh_config)
        folder = out or bundles_of(bundles)[0].resolve().parent
    else:
        settings = _bench_settings(Path(places[0]), questions, scenarios, device)
        folder = out or first_folder(places)
        energy = EnergyMeter() if "offline" in settings.scenarios else None
        report = measure(places, settings, shown, questions.evaluation, folder / BENCH_JOURNAL, energy)
    name = save_report(report, folder)
    if as_json:
        print_json(report.to_json())
        return
    show_report(report)
    typer.echo(f"{f'measured on {device.remote}; ' if device.remote else ''}written: {folder / name}.json, .md, .html")


def _bench_servers(
    servers: Servers, questions: Questions, scenarios: Scenarios, out: Path | None, shown: Progress, as_json: bool
) -> None:
    """Measure servers."""
    from mmedge.bench.bench import server_questions
    from mmedge.bench.servers import ServedPrompts, ServerBench, measure
    from mmedge.bench.servers_report import document, table, write
    from mmedge.bench.settings import parse_seconds

    student = None
    if servers.student is not None:
        from mmedge.runtime import Student

        asked = Student.load(servers.student)
        student = ServedPrompts(asked.speaker.encoder, asked.bundle.manifest.max_answer_tokens)
    examples, form = server_questions(questions.evaluation, servers.student, questions.questions)
    settings = ServerBench(
        parse_seconds(scenarios.latency_bound, "--latency-bound"), scenarios.server_seconds, scenarios.timed or 100
    )
    urls, models = servers.server or [], servers.model or []
    measured = measure(urls, models, examples, form, settings, shown, student, servers.server_key)
    found = document(measured, examples, form, settings)
    if out is not None:
        write(found, out)
    if as_json:
        print_json(found)
        return
    console(170).print(table(found).rich())
    if out is not None:
        typer.echo(f"written: {out / 'servers'}.json, .md")


def _bench_settings(place: Path, questions: Questions, scenarios: Scenarios, device: Device) -> BenchSettings:
    """Return the settings that the command line gives."""
    from mmedge.bench.settings import parse_counts, parse_seconds, parse_share, parse_size, read_choices, settings_for

    given = {
        "questions": questions.questions,
        "verdicts": questions.verdicts,
        "warmup_questions": scenarios.warmup,
        "threads": device.threads,
    }
    return replace(
        settings_for(place, {name: value for name, value in given.items() if value is not None}),
        **read_choices(scenarios.scenarios, questions.ask),
        timed=scenarios.timed,
        precision=None if scenarios.within is None else parse_share(scenarios.within, "--within"),
        rounds=scenarios.rounds,
        max_rounds=scenarios.max_rounds,
        batches=parse_counts(scenarios.batches, "--batches"),
        latency_bound=parse_seconds(scenarios.latency_bound, "--latency-bound"),
        server_seconds=scenarios.server_seconds,
        cpus=device.cpus,
        memory_limit=None if device.memory_limit is None else parse_size(device.memory_limit, "--memory-limit"),
        sweep_threads=() if device.sweep_threads is None else parse_counts(device.sweep_threads, "--sweep-threads"),
    )


def save_report(report: BenchReport, folder: Path) -> str:
    """Write a report, and remove the journal that a killed bench would continue from; return its name."""
    from mmedge.bench.report import write_report

    name = write_report(report, folder)
    (folder / BENCH_JOURNAL).unlink(missing_ok=True)
    return name


def show_report(report: BenchReport) -> None:
    """Print a bench's tables, and last, where a reader looks first, the decision."""
    from mmedge.bench.report import decision, tables

    shown = console(170)
    for table in tables(report):
        shown.print(table.rich())
    for line in decision(report):
        typer.echo(line)


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE.json", help="A report of mmedge bench.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="A later report on the same questions.")],
    max_slowdown: Annotated[
        str | None, typer.Option(help="Fail if a variant is slower by more than this, such as 5%, beyond noise.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(min=0, help="Fail if a variant's accuracy drops by more percentage points than this.")
    ] = None,
    max_memory_growth: Annotated[
        str | None, typer.Option(help="Fail if a variant's peak memory grows by more than this, such as 10%.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two reports of `mmedge bench`, beyond noise. Exit code 1: a bound is exceeded."""
    from mmedge.bench.compare import compare as compared
    from mmedge.bench.compare import read_bounds, text

    found = compared(base, new, read_bounds(max_slowdown, max_accuracy_drop, max_memory_growth))
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo(text(found))
    if found.broken:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Samples:
    """The chains of thought that a student samples for each question."""

    panel: ClassVar[str] = "Sampling"

    samples: Annotated[int, typer.Option(min=0, max=64, help="Chains of thought sampled for each question; 0 for none.")] = 5
    temperature: Annotated[float, typer.Option(min=0.01, max=10, help="Sampling temperature.")] = 0.7
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0


def evaluate(
    bundle: BundlePath,
    samples: Samples,
    questions: Annotated[int | None, typer.Option(min=1, help="Questions of each test split. Default: all.")] = None,
    timed: Annotated[int, typer.Option(min=0, help="Questions on which each strategy is timed; 0 for none.")] = 20,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Questions per batch.")] = 16,
    threads: Threads = None,
    evaluation: Annotated[Path | None, typer.Option(help="Evaluation set. Default: the one beside the bundle.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluate-PRECISION.json, .md and .html. Default: beside the bundle.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure whether a bundle knows when it is wrong, and what abstaining, escalating and voting gain."""
    from mmedge.bench.evaluation import EvaluationSettings
    from mmedge.bench.evaluation import evaluate as measure
    from mmedge.bench.evaluation_report import decision, tables, write_report
    from mmedge.bundle import refuse_bundle
    from mmedge.runtime import Student

    folder = out or bundle.resolve().parent
    refuse_bundle(folder, "--out")
    journal = folder / f".evaluate-{bundle.name}.journal"
    settings = EvaluationSettings(questions, samples.samples, samples.temperature, samples.seed, batch, timed)
    report = measure(Student.load(bundle, threads), settings, progress(quiet), evaluation, journal)
    name = write_report(report, folder)
    journal.unlink(missing_ok=True)
    if as_json:
        print_json(report.to_json())
        return
    shown = console(150)
    for table in tables(report):
        shown.print(table.rich())
    typer.echo(decision(report))
    typer.echo(f"written: {folder / name}.json, .md, .html")
