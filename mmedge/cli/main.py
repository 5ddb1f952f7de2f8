"""The command line: which verbs there are, and what happens when one fails.

mmedge quickstart
mmedge distill recipes/quickstart.yaml --out runs/quickstart
mmedge export runs/quickstart --fp32 --int8
mmedge bench runs/quickstart
mmedge run runs/quickstart/bundle-int8 "Ann has 3 apples and buys 4 more. How many apples does Ann have now?"

Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from mmedge import __version__
from mmedge.cli import asking, chain, collecting, looking, measuring, serving, synthesizing
from mmedge.cli.common import RENAMED_VERBS, Command, grouped
from mmedge.errors import MmedgeError, Notice, printable
from mmedge.machine import wait_briefly

VERBS: dict[str, dict[str, Callable[..., None]]] = {
    "Make a student": {
        "quickstart": chain.quickstart,
        "synthesize": synthesizing.synthesize,
        "annotate": collecting.annotate,
        "review": collecting.review,
        "distill": chain.distill,
        "ablate": chain.ablate,
        "export": chain.export,
    },
    "Measure": {"bench": measuring.bench, "compare": measuring.compare, "evaluate": measuring.evaluate},
    "Use": {
        "run": asking.run,
        "serve": serving.serve,
        "inspect": looking.inspect,
        "doctor": looking.doctor,
        "schema": looking.schema,
    },
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmedge {__version__}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def app(words: Sequence[str]) -> typer.Typer:
    """Return the command line: with every verb, or with the one that these words name, which begins sooner."""
    found = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        help="Distil a large teacher into a small student that knows when it is wrong, and run it at the edge.\n\n"
        "A recipe goes in; annotations, a student, int8 bundles and their measurements come out. "
        "Run an interrupted command again, and it continues where it stopped.",
    )
    found.callback()(_options)
    every = [*itertools.chain.from_iterable(VERBS.values()), *RENAMED_VERBS]
    first = next((word for word in words if word != "--debug"), "")
    wanted = {first} if first in every else set(every)
    for panel, verbs in VERBS.items():
        for name, verb in verbs.items():
            if name in wanted:
                found.command(name, cls=Command, rich_help_panel=panel)(grouped(verb))
    for old, new in RENAMED_VERBS.items():
        if old in wanted:
            verb = next(verbs[new] for verbs in VERBS.values() if new in verbs)
            found.command(old, cls=Command, hidden=True)(grouped(verb))
    return found


def _show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """Show our own notices, such as of renamed fields, as one line; hide those of libraries."""
    if issubclass(category, Notice):
        typer.echo(f"notice: {printable(str(message))}", err=True)


def main() -> None:
    """Start from the command line: one-line errors, exit code 1; a traceback only with --debug."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that a terminal cannot show become question marks
            stream.reconfigure(errors="replace")
    wait_briefly()
    warnings.showwarning = _show_warning
    try:
        app(sys.argv[1:])()
    except BrokenPipeError:
        _discard_output()
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer turns the former into exit code 130, without a word
        if isinstance(ended, SystemExit) and ended.code != 130:
            raise
        typer.echo("interrupted; run the same command again to continue", err=True)
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    """Print what is wrong and what to do about it, and exit."""
    if isinstance(error, MmedgeError):
        said = printable(str(error))
    elif isinstance(error, MemoryError):
        said = "out of memory\n  → close other programs, or use a smaller student or batch"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _discard_output()
        said = "no space left to write to\n  → free some, or send the output elsewhere; then run the same command again"
    else:
        first = next(iter(str(error).strip().splitlines()), "")
        said = f"{type(error).__name__}: {first}\n  → this is a bug in mmedge; rerun with --debug and report it"
    typer.echo(f"error: {said}", err=True)
    sys.exit(1)


def _discard_output() -> None:
    """Discard what is still to be flushed: standard output is closed or full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
