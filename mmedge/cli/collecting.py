"""What a teacher writes: `annotate` collects it, `review` reports on it and lets people decide about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from mmedge.cli.common import AsJson, Out, Overrides, Quiet, RecipePath, console, load, need, print_json, progress
from mmedge.errors import MmedgeError, printable

if TYPE_CHECKING:
    from mmedge.annotations.summary import AnnotationReport
    from mmedge.folders import Run
    from mmedge.recipe import Recipe
    from mmedge.review.desk import Desk
    from mmedge.tasks import Example
    from mmedge.teachers.estimate import CollectionEstimate
    from mmedge.teachers.plan import CollectionPlan
    from mmedge.teachers.prompting import Prompts

INCOMPLETE = 3  # exit code of a collection that stopped at a limit or left something for the next run


@dataclass(frozen=True)
class Preparation:
    """What to look at before anything is sent."""

    panel: ClassVar[str] = "Look first (sends nothing)"

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show how much is missing and what it would cost, then stop.")] = False
    show_prompts: Annotated[bool, typer.Option("--show-prompts", help="Print what would be sent, then stop.")] = False
    copy_prompts: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Copy the prompt templates to a folder for editing, then stop.")
    ] = None

    def wanted(self) -> bool:
        return self.dry_run or self.show_prompts or self.copy_prompts is not None


@dataclass(frozen=True)
class SpendingLimits:
    """When to stop."""

    panel: ClassVar[str] = "Limits"

    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Stop before the run's bill, earlier collections included, exceeds this.")
    ] = None
    max_requests: Annotated[int | None, typer.Option(min=0, help="Stop before the run has sent more requests than this.")] = None


def annotate(
    recipe: RecipePath,
    preparation: Preparation,
    bounds: SpendingLimits,
    out: Out = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Collect the teacher's chains of thought and self-evaluations into the run.

    Run it again to continue; start it twice at the same time to share the work. Exit code 3: stopped at a limit, or something was
    left for the next run.
    """
    loaded, folder = load(recipe, overrides, out)
    if preparation.wanted():
        _prepare(loaded, folder, preparation, as_json)
        return
    from mmedge.teachers.collect import collect_run
    from mmedge.teachers.plan import Limits

    collected, found = collect_run(loaded, folder, progress(quiet), Limits(bounds.max_cost, bounds.max_requests))
    if as_json:
        print_json({"run": str(folder), "complete": collected is None or collected.complete, **found.to_json()})
    else:
        _show_collection(found, folder)
    if collected is not None and collected.given_up and not as_json:
        said = f"{collected.given_up} questions or chains of thought have fewer texts than wanted"
        typer.echo(f"{said}: all attempts were used (teacher.attempts)")
    if collected is not None and not collected.complete:
        if collected.stopped:
            typer.echo(f"stopped: one more request could exceed {collected.stopped}; raise it and run again to continue", err=True)
        if collected.postponed:
            said = f"{collected.postponed} questions or chains of thought failed too often"
            typer.echo(f"{said}; run the same command again to retry them", err=True)
        raise typer.Exit(INCOMPLETE)
    if not found.cots.parsed:
        raise MmedgeError(
            "no chain of thought could be read",
            "check that the annotations' ids match the questions' and that each ends in an answer",
        )


def _prepare(recipe: Recipe, folder: Path, preparation: Preparation, as_json: bool) -> None:
    """Show what a collection would send, copy its templates, or say what it would cost; nothing is sent."""
    from mmedge.annotations.questions import task_of
    from mmedge.folders import Run
    from mmedge.recipe import SampledTeacherSection
    from mmedge.teachers.collect import prompts_of
    from mmedge.teachers.plan import collection_plan
    from mmedge.teachers.prompting import copy_templates, shown

    section = recipe.teacher
    if not isinstance(section, SampledTeacherSection):
        raise MmedgeError(
            "only teachers of kind openai and local have prompts and prices",
            "use such a teacher, or run the command without this option",
        )
    task = task_of(recipe, Run(folder))
    if preparation.copy_prompts is not None:
        for kind, path in copy_templates(task, preparation.copy_prompts).items():
            typer.echo(f"teacher.prompts.{kind}: {path}")
        return
    prompts, examples = prompts_of(section, task), task.load().train
    if preparation.show_prompts:
        typer.echo(printable(f"# a chain of thought for {examples[0].id}\n{shown(prompts.about_question(examples[0]))}\n"))
        judged = "(the chain of thought to be judged)"
        typer.echo(printable(f"# an evaluation of it\n{shown(prompts.about_cot(examples[0], judged))}"))
        return
    _show_estimate(recipe, folder, collection_plan(section), prompts, examples, as_json)


def _show_estimate(
    recipe: Recipe, folder: Path, plan: CollectionPlan, prompts: Prompts, examples: tuple[Example, ...], as_json: bool
) -> None:
    from mmedge.annotations.store import AnnotationStore
    from mmedge.folders import Run
    from mmedge.teachers.estimate import estimate

    path = Run(folder).annotations
    if path.is_file():
        with AnnotationStore(path) as store:
            found = estimate(examples, prompts, plan, store)
    else:
        found = estimate(examples, prompts, plan, None)
    if as_json:
        print_json(found.to_json())
        return
    typer.echo(f"{found.questions} questions; missing: {found.cots} chains of thought, {found.evaluations} self-evaluations")
    show_cost(recipe, found)


def show_cost(recipe: Recipe, found: CollectionEstimate) -> None:
    """Print what a collection takes: requests, tokens, money."""
    from mmedge.recipe import OpenAITeacherSection

    source = "from this teacher's texts so far" if found.measured else "assumed: 4 characters per token, texts as in the prompts"
    typer.echo(f"requests: {found.requests:,}, at most {found.requests_at_most:,} if texts must be sampled again")
    typer.echo(f"tokens: {found.prompt_tokens:,} read, {found.completion_tokens:,} written ({source})")
    if isinstance(recipe.teacher, OpenAITeacherSection):
        prices = recipe.teacher.prices
        if prices.input or prices.output:
            most = f"at most {found.cost_at_most:.2f} {prices.currency}"
            typer.echo(
                f"cost: about {found.cost:.2f} {prices.currency}; {most} if every text is as long as allowed and sampled again"
            )
        else:
            typer.echo("cost: unknown; set teacher.prices (input and output, per million tokens) to have it estimated")


def _show_collection(found: AnnotationReport, folder: Path) -> None:
    from mmedge.annotations.report import yield_rows

    for name, count, share in yield_rows(found):
        typer.echo(f"{name}: {count} ({share})")
    bill = found.bill
    texts = bill.texts["cot"] if bill is not None else {}
    if 2 * texts.get("identical", 0) > sum(texts.values()):
        typer.echo("most chains of thought repeat another one: does the endpoint honour teacher.temperature? If so, raise it")
    if bill is not None and bill.failed:
        failed = ", ".join(f"{count} {status}" for status, count in bill.failed.items())
        typer.echo(f"requests failed: {failed} (of {bill.requests:,})")
    if bill is not None and bill.currency and bill.cost:
        typer.echo(f"bill: {bill.cost:.4f} {bill.currency} for {bill.requests:,} requests")
    typer.echo(f"more: mmedge review {folder}")


@dataclass(frozen=True)
class Deciding:
    """Accepting, mending and dropping what a run holds."""

    panel: ClassVar[str] = "Decide"

    page: Annotated[
        bool, typer.Option("--page", help="Serve a page on 127.0.0.1 to accept, mend and drop questions and texts (extra serve).")
    ] = False
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for any free one.")] = 0
    reviewer: Annotated[str | None, typer.Option(metavar="NAME", help="Who decides. Default: the name of the user.")] = None
    to_argilla: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the questions as Argilla's records.")] = None
    from_argilla: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Store the responses in Argilla's records as decisions.")
    ] = None
    only: Annotated[Literal["all", "undecided", "new", "decided"], typer.Option(help="Which questions --to-argilla writes.")] = (
        "all"
    )

    def wanted(self) -> bool:
        return self.page or self.to_argilla is not None or self.from_argilla is not None


def review(
    place: Annotated[Path, typer.Argument(metavar="RUN", help="A run with annotations.")],
    deciding: Deciding,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as an HTML page.")] = None,
    export_to: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Write all texts as files that a recorded teacher reads.")
    ] = None,
    form: Annotated[Literal["jsonl", "parquet"], typer.Option("--format", help="Format of the files of --export.")] = "jsonl",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Report what the teacher's texts are worth, or decide about them: accept, mend, drop.

    The report: yield, agreement, correctness, verdicts, the bill, and what each filter keeps.
    """
    from mmedge.annotations.questions import task_of
    from mmedge.annotations.store import AnnotationStore
    from mmedge.annotations.summary import examples_to_show, refreshed_report
    from mmedge.folders import Run, load_run_recipe

    run = Run(place)
    loaded = load_run_recipe(run)
    if deciding.wanted():
        _decide(loaded, run, deciding)
        return
    if not run.annotations.is_file():
        raise MmedgeError(f"{place} has no annotations", f"collect them: mmedge annotate RECIPE --out {place}")
    task = task_of(loaded, run)
    with AnnotationStore(run.annotations) as store:
        if export_to is not None:
            from mmedge.annotations.exporting import export_annotations, export_questions
            from mmedge.tasks.synthesized import read_questions

            written = export_annotations(store, export_to, form)
            if task.new_questions is not None:
                written |= [export_questions(read_questions(task.new_questions), export_to)]
            for path, count in written.items():
                typer.echo(f"{path}: {count} records", err=as_json)
        found = refreshed_report(loaded, task, store, progress(quiet))
        if html is not None:
            from mmedge.annotations.report import page

            page(found, examples_to_show(loaded, store, task, 12), task.form).write(html)
            typer.echo(f"written: {html}", err=True)
    if as_json:
        print_json(found.to_json())
        return
    from mmedge.annotations.report import tables

    console(120).print(tables(found))


def _decide(recipe: Recipe, run: Run, deciding: Deciding) -> None:
    """Exchange records with Argilla, and show the page."""
    from getpass import getuser

    from mmedge.annotations.store import AnnotationStore
    from mmedge.review.argilla import export_records, import_records
    from mmedge.review.desk import Desk
    from mmedge.storage import locked

    if deciding.page:
        for package in ("starlette", "uvicorn"):
            need(package, "serve")
    with locked(run.folder, shared=True), AnnotationStore(run.annotations) as store:
        desk = Desk(recipe, run, store, (deciding.reviewer or getuser()).strip() or "somebody")
        if deciding.from_argilla is not None:
            typer.echo(f"{deciding.from_argilla}: {import_records(desk, deciding.from_argilla)}")
        if deciding.to_argilla is not None:
            typer.echo(f"{deciding.to_argilla}: {export_records(desk, deciding.to_argilla, deciding.only)} records")
        if deciding.page:
            _show_page(desk, deciding.port)


def _show_page(desk: Desk, port: int) -> None:
    from mmedge.review.app import ReviewApp
    from mmedge.serve.server import listening, serve
    from mmedge.serve.settings import ServerLimits

    listener = listening("127.0.0.1", port)
    port = listener.getsockname()[1]
    app = ReviewApp(desk, port)

    def ready() -> None:
        typer.echo(f"review at http://127.0.0.1:{port}/{app.token}/   (Ctrl-C ends it; every decision is stored at once)", err=True)

    serve(app, listener, ServerLimits(clients=32, drain=2.0), ready)
