"""What every verb shares: output as text or JSON, errors in one voice, exit codes.

Exit codes: 0 done, 1 an `ErlessError`, 2 usage, 130 interrupted (Ctrl-C), 143 terminated.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from erless import errors
from erless.cli.hints import FailedVerb, hint_for

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Output", "OutputOption", "emit", "note", "verb", "write_error"]

P = ParamSpec("P")
R = TypeVar("R")
EXTRAS = {"torch": "torch", "locust": "loadtest", "gevent": "loadtest"}  # package → erless's extra
WIDE = 160  # columns where nobody's terminal sets them


class Output(StrEnum):
    """How a verb prints its result."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="json: one document on stdout, the rest on stderr."),
]


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Run a verb: short messages for our errors, tracebacks for bugs, the right exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except errors.ErlessError as error:
            _fail(error, FailedVerb(function.__doc__ or "", kwargs))
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            missing = errors.MissingPackageError(f"{error.name} is not installed")
            missing.add_note(f"pip install 'erless[{EXTRAS[error.name]}]'")
            _fail(missing, FailedVerb(function.__doc__ or "", kwargs))
        except KeyboardInterrupt as interrupt:
            message = f"interrupted; {str(interrupt) or 'nothing half-written was kept'}"
            note(message)
            if kwargs.get("output") is Output.JSON:
                write_error("Interrupted", message)
            raise SystemExit(130) from None

    return run


def _fail(error: errors.ErlessError, failed: FailedVerb) -> NoReturn:
    """Print the facts, then the next thing to try."""
    hint = hint_for(error, failed)
    details = list(error.violations) if isinstance(error, errors.InfeasibleError) else []
    for line in [f"error: {error}", *(f"  - {detail}" for detail in details)]:
        note(line)
    if hint:
        note(f"try: {hint}")
    if failed.options.get("output") is Output.JSON:
        write_error(type(error).__name__, str(error), details, hint)
    raise SystemExit(1) from error


def write_error(kind: str, message: str, details: Sequence[str] = (), hint: str = "") -> None:
    """The one document of a verb that failed under `-o json`; `try` is the next thing to do."""
    document = {"type": kind, "message": message, "details": list(details), "try": hint}
    _write_json({"error": document})


def note(line: str) -> None:
    """A line for people, on stderr whatever the output is."""
    print(line, file=sys.stderr)


def emit(
    output: Output,
    document: Mapping[str, Any],
    text: Callable[[Console], None],
    *,
    then: str,
) -> None:
    """Print a verb's result once: `document` as JSON, or what `text` draws.

    `then` is the command that usually comes next: a line `next: …` on stderr, `next` in the JSON;
    empty where a verb goes on by itself.
    """
    if output is Output.JSON:
        _write_json({**document, "next": then} if then else document)
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    text(console)
    if then:
        sys.stdout.flush()
        note(f"next: {then}")


def _write_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()
