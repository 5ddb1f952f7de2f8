"""New questions: `synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedge.cli.collecting import INCOMPLETE, Preparation, SpendingLimits, show_cost
from mmedge.cli.common import AsJson, Out, Overrides, Quiet, RecipePath, console, load, print_json, progress
from mmedge.errors import MmedgeError, printable

if TYPE_CHECKING:
    from mmedge.synthesis.synthesize import Synthesis


def synthesize(
    recipe: RecipePath,
    preparation: Preparation,
    bounds: SpendingLimits,
    count: Annotated[int | None, typer.Option(min=1, help="New questions that the run should have. Default: the recipe's.")] = None,
    out: Out = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Have the teacher write new questions like the recipe's training questions; annotate and distill use them too.

    The new questions differ from training and test questions and from each other, and are balanced over labels or functions. Run it
    again to continue, or with a larger --count for more. Exit code 3: stopped at a limit, something was left for the next run, or
    some label, or all of them together, got less than half of the questions that were wanted.
    """
    loaded, folder = load(recipe, overrides, out)
    if preparation.wanted():
        from mmedge.synthesis.synthesize import prepare

        _look_first(prepare(loaded, count), folder, preparation, as_json)
        return
    from mmedge.synthesis.synthesize import synthesize as write
    from mmedge.teachers.plan import Limits

    found = write(loaded, folder, progress(quiet), count, Limits(bounds.max_cost, bounds.max_requests))
    if as_json:
        print_json({"run": str(folder), **found.to_json()})
    else:
        console(100).print(found.table().rich())
        for example in found.examples:
            typer.echo(printable(f"  {example}"))
    if found.stopped:
        typer.echo(f"stopped: one more request could exceed {found.stopped}; raise it and run again to continue", err=True)
    if found.postponed:
        typer.echo(f"{found.postponed} requests failed too often; run the same command again to retry them", err=True)
    if not found.complete:
        raise typer.Exit(INCOMPLETE)
    if found.taken < found.wanted:
        few = f", fewest for {found.scarcest}" if found.scarcest else ""
        said = f"{found.wanted - found.taken} fewer than wanted{few}: the teacher repeats itself, or its texts hold no questions"
        typer.echo(said, err=True)
    if not as_json:
        typer.echo(f"new questions: {folder / 'synthesized.jsonl'}; look at them: mmedge review {folder} --page")
        typer.echo(f"next: mmedge annotate {recipe} --out {folder}, or mmedge distill {recipe} --out {folder}")
    if found.falls_short:
        raise typer.Exit(INCOMPLETE)


def _look_first(given: Synthesis, folder: Path, preparation: Preparation, as_json: bool) -> None:
    """Show what a synthesis would send, copy its template, or say what it would cost; nothing is sent."""
    from mmedge.annotations.store import AnnotationStore
    from mmedge.folders import Run
    from mmedge.recipe import SampledTeacherSection
    from mmedge.storage import read_text, write_text
    from mmedge.synthesis.asking import BUILT_IN
    from mmedge.tasks.synthesized import read_questions
    from mmedge.teachers.estimate import estimate
    from mmedge.teachers.prompting import shown

    if not isinstance(given.recipe.teacher, SampledTeacherSection):
        raise MmedgeError(
            "only teachers of kind openai and local have prompts and prices",
            "use such a teacher, or run the command without this option",
        )
    if preparation.copy_prompts is not None:
        copy = preparation.copy_prompts / BUILT_IN.name
        if copy.exists():
            raise MmedgeError(f"{copy} already exists", "move it away, or name another folder")
        write_text(copy, read_text(BUILT_IN))
        typer.echo(f"synthesis.prompt: {copy}")
        return
    run, prompts = Run(folder), given.prompts()
    taken = read_questions(run.synthesized) if run.synthesized.is_file() else ()
    store = AnnotationStore(run.synthesis) if run.synthesis.is_file() else None
    try:
        briefs = given.next_round(store, taken)
        prompts.briefs.update((brief.id, brief) for brief in briefs)
        subjects = [brief.subject() for brief in briefs]
        if preparation.show_prompts:
            for brief in briefs[:3]:
                typer.echo(printable(f"# {brief.id}\n{shown(prompts.about_question(brief.subject()))}\n"))
            return
        found = estimate(subjects, prompts, given.plan(), store).with_bound(given.requests_at_most(store, taken))
    finally:
        if store is not None:
            store.close()
    if as_json:
        print_json(found.to_json() | {"wanted": given.recipe.synthesis.count, "taken": len(taken)})
        return
    kinds = [kind for kind in given.briefs.kinds if kind]
    over = f", balanced over {len(kinds)} {'labels' if given.task.form.labels else 'kinds'}" if kinds else ""
    aside = f" (with messages, and so not shown: {given.dialogues})" if given.dialogues else ""
    typer.echo(
        f"{len(given.splits.train)} training questions{aside}; new questions: {len(taken)} of {given.recipe.synthesis.count}{over}"
    )
    show_cost(given.recipe, found)
