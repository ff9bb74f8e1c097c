"""The command line's root.

Verb modules import only typer at the top and the rest inside their functions, so that a verb's help
needs neither torch nor pyarrow nor pydantic; only `plan`, whose options are drawn from a model of
pydantic's, needs that.
"""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from typing import Annotated

import typer

from erless.cli.hints import example
from erless.cli.run import write_error
from erless.cli.signals import unwind_on_signals
from erless.cli.verbs import MARKUP, Verbs
from erless.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="erless",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    help="Serve deep learning recommendation models elastically: one function per embedding shard.",
    epilog="Start with: `erless demo`",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"erless {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, exit."),
    ] = False,
) -> None:
    """Options of erless itself."""


def main() -> None:
    """Entry point of the console script."""
    unwind_on_signals()
    _replace_unprintable()
    try:
        app()
    except BrokenPipeError:
        # the reader of our stdout (head, less) went away: not an error, and nothing left to flush
        sys.stderr.close()
        raise SystemExit(141) from None
    except SystemExit as error:
        wrong_usage = getattr(error.__context__, "format_message", None)  # of click's exceptions
        if wrong_usage is not None and _asks_for_json(sys.argv[1:]):
            context = getattr(error.__context__, "ctx", None)
            path = context.command_path if context else "erless"
            hint = example(f"{context.command.help}\n{context.command.epilog}") if context else ""
            write_error("UsageError", wrong_usage(), hint=hint or f"`{path} --help`")
        raise


def _replace_unprintable() -> None:
    """Write "?" for characters that the terminal's encoding lacks (`LC_ALL=C`): never a traceback.

    JSON has none of them: it is written in ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _asks_for_json(words: list[str]) -> bool:
    """Whether `-o json` stands in a command line that could not be parsed."""
    if {"-ojson", "--output=json"} & set(words):
        return True
    return any(pair in (("-o", "json"), ("--output", "json")) for pair in pairwise(words))
