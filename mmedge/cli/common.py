"""What the verbs of the command line share: options, groups of options, and how results are printed."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from mmedge.errors import MmedgeError, missing_extra

if TYPE_CHECKING:
    from rich.console import Console

    from mmedge.progress import Progress
    from mmedge.recipe import Recipe

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/NAME, from the recipe's name.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use. Default: what the bundle asks for, or all cores.")]


def load(path: Path, overrides: list[str] | None, out: Path | None) -> tuple[Recipe, Path]:
    """Return a recipe and the folder of its run."""
    from mmedge.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    return recipe, out or Path("runs") / recipe.name


def need(package: str, extra: str) -> None:
    """Check that an optional package is installed.

    Raises:
        MmedgeError: The package is not installed.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise missing_extra(package, extra)


def progress(quiet: bool) -> Progress:
    """Return where progress is shown."""
    from mmedge.progress import Progress

    return Progress(quiet=quiet)


def print_json(value: Any) -> None:
    """Print a result for scripts."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console(least_width: int = 0) -> Console:
    """Return a console for tables, at least so many columns wide."""
    from rich.console import Console

    return Console(width=max(Console().width, least_width)) if least_width else Console()


# ------------------------------------------------------------------------------------------- groups of options


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Return the command of a function some of whose parameters are dataclasses: each of their fields becomes an option.

    A dataclass's `panel` is the title of its options in `--help`. Every field has a default. Values are called N, NUMBER, TEXT and
    PATH in `--help`, not by their Python types.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints[parameter.name]
        if not is_dataclass(annotation):
            parameters.append(parameter.replace(annotation=_shown_as(annotation), kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = annotation
        types = get_type_hints(annotation, include_extras=True)
        for field in fields(annotation):
            type_ = _shown_as(types[field.name], annotation.panel)  # type: ignore[union-attr]
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=type_)
            )

    def command(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        function(**given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


_VALUES: tuple[tuple[Any, str], ...] = ((int, "N"), (float, "NUMBER"), (str, "TEXT"), (Path, "PATH"), (bool, ""))


def _shown_as(type_: Any, panel: str | None = None) -> Any:
    """Return `Annotated[T, typer.Option(…)]` with the option under a title, and a word for its value; others as they are."""
    if get_origin(type_) is not Annotated or not isinstance(get_args(type_)[1], OptionInfo):
        return type_
    plain, option = get_args(type_)
    option = copy(option)
    option.rich_help_panel = panel or option.rich_help_panel
    kinds = {plain, *get_args(plain), *(inner for kind in get_args(plain) for inner in get_args(kind))}
    option.metavar = option.metavar or next((word for kind, word in _VALUES if kind in kinds), None)
    return Annotated[plain, option]


# Options renamed since the previous version, still read in this one: (verb, old name) → new name
RENAMED = {("run", "--max-handed-on"): "--max-withheld", ("bench", "--precision"): "--within"}

RENAMED_VERBS = {"annotations": "review"}


# What typer says of an option's value, and the same in plain words
_PLAIN = (
    (r"^Value error, ", ""),
    (r"^Input should be a valid integer.*", "must be a whole number"),
    (r"^Input should be a valid number.*", "must be a number"),
    (r"^Input should be greater than or equal to ", "must be at least "),
    (r"^Input should be less than or equal to ", "must be at most "),
)


class Command(TyperCommand):
    """A verb that understands its options' old names, and its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace old names, with a notice, and parse."""
        if self.name in RENAMED_VERBS:
            _tell_new_name(self.name, RENAMED_VERBS[self.name])
        for place, word in enumerate(args):
            name, equals, value = word.partition("=")
            if (new := RENAMED.get((self.name or "", name))) is not None:
                _tell_new_name(name, new)
                args[place] = new + equals + value
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            for theirs, ours in _PLAIN:
                error.message = re.sub(theirs, ours, error.message)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; errors call its options by the names that they have on the command line."""
        try:
            return super().invoke(ctx)
        except MmedgeError as error:
            raise MmedgeError(self._as_typed(error.what), self._as_typed(error.hint)) from error

    def _as_typed(self, text: str) -> str:
        """Return a message whose `abstain_below`, and `explain: …` at its beginning, are `--abstain-below` and `--explain: …`."""
        for parameter in self.params:
            name, option = parameter.name or "", max(parameter.opts, key=len)
            if not option.startswith("--"):
                continue
            where = rf"(?<![\w./-]){name}\b(?![./=-]\w)" if "_" in name else rf"^{name}(?=:| is | must )"
            text = re.sub(where, option, text)
        return text


def _tell_new_name(old: str, new: str) -> None:
    typer.echo(f"notice: {old} is now called {new}; the old name will be refused in the next version", err=True)


def given_options(context: typer.Context, without: set[str]) -> list[str]:
    """Return the options that were given on the command line, as arguments for the same command elsewhere."""
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
            found += [parameter.opts[0], str(item)]
    return found
