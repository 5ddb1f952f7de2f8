"""What is here: `inspect` a folder, the machine (`doctor`), the recipe's `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedge.cli.common import AsJson, console, print_json


def inspect(
    place: Annotated[Path, typer.Argument(metavar="RUN|STUDENT|BUNDLE", help="A run, a student or a bundle.")],
    as_json: AsJson = False,
) -> None:
    """Show what a folder is, whether its files match their hashes, and how good it is."""
    from mmedge.inspection import inspect as inspected
    from mmedge.inspection import to_json
    from mmedge.inspection_table import table

    kind, found = inspected(place)
    if as_json:
        print_json(to_json(kind, found))
        return
    console().print(table(kind, found).rich(grid=False))


def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure memory bandwidth and arithmetic speed; takes two seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this machine can do, which precision suits it, what is missing, and how to install it."""
    from mmedge.doctor import examine, table

    found = examine(measure=measure)
    if as_json:
        print_json(found.to_json())
        return
    console().print(table(found).rich(grid=False))


def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    With `mmedge schema > recipe.schema.json`, an editor with YAML support completes and checks a recipe whose first line is
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from mmedge.recipe import Recipe

    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()})
