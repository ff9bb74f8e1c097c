"""What every verb shares: output as text or JSON, errors in one voice, exit codes.

Exit codes: 0 done, 1 an `ErlessError`, 2 usage, 130 interrupted (Ctrl-C), 143 terminated.
"""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from erless import errors

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Output", "OutputOption", "emit", "note", "trying", "verb", "write_error"]

P = ParamSpec("P")
R = TypeVar("R")
FULL = {errno.ENOSPC, errno.EDQUOT}
EXTRAS = {"torch": "torch", "locust": "loadtest", "gevent": "loadtest"}  # package → erless's extra
WIDE = 160  # columns where nobody's terminal sets them

HINTS: dict[type[errors.ErlessError], str] = {
    errors.OptionError: "the command's --help lists its options",
    errors.KubeconfigError: "set KUBECONFIG, or pass --kubeconfig and --context",
    errors.ConfigError: "`erless init` writes one, commented; `erless config schema` has all keys",
    errors.ExistsError: "--overwrite replaces it",
    errors.ArtifactError: "check the path, or make the artifact again",
    errors.BucketError: (
        "check --endpoint-url (targets.knative.endpoint_url), the credentials and the region"
    ),
    errors.StorageError: "check the path and its permissions; nothing half-written was kept",
    errors.CheckpointError: "see `erless import --help` for what each importer reads",
    errors.ModelError: "compare with `erless bundle show`",
    errors.QueryError: "compare the query with `erless bundle show`: tables, rows, dense features",
    errors.LogError: "see `erless profile --help` for the log formats",
    errors.InfeasibleError: "relax the constraint named, or raise the limit beside it",
    errors.PlanError: "see `erless plan --help`",
    errors.TrafficError: "traffic is like step:50,150,50, or a table with columns t_s and qps",
    errors.LoadTestError: "see `erless status`, and `erless loadtest --help` for --host",
    errors.StoreError: "`erless pack --store STORE` makes a release, `erless releases list` lists",
    errors.BaseImageError: (
        "--base names one that is reached from here: a mirror's python:3.X-slim-bookworm, or a "
        "registry's on 127.0.0.1; it needs this Python and libstdc++"
    ),
    errors.DependencyError: (
        "where a package index is reached, with this Python: `pip freeze --exclude erless > "
        "pins.txt`, `pip download --only-binary=:all: -d wheels -c pins.txt -r FILE` with the file "
        "named above; then here --wheels wheels, or --no-dependencies over a base that has them"
    ),
    errors.ImageError: "see `erless image build --help`: --base, --wheels, --registry",
    errors.InfraError: "run `terraform -chdir=DIR init` and `terraform -chdir=DIR apply` first",
    errors.NotDeployedError: "`erless deploy` first",
    errors.SeveralModelsError: "name one by --model",
    errors.UnreachableError: "set KUBECONFIG, or pass --kubeconfig and --context",
    errors.ForbiddenError: "`erless doctor` lists every permission that is missing",
    errors.OtherModelError: "--model with its own name deploys it beside what serves; "
    "--replace-model in its place",
    errors.ConflictError: "whoever is named is at work or owns it: let them end, or give it up",
    errors.ClusterError: "mend what is named and run it again: it goes on from there",
    errors.DeployError: "see `erless status` and `erless logs`",
    errors.UntrustedError: "--ca FILE names the authorities, --url the host of the certificate",
    errors.ServeError: "see `erless status`",
}


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
            _fail(error, kwargs.get("output"))
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            missing = errors.MissingPackageError(f"{error.name} is not installed")
            missing.add_note(f"pip install 'erless[{EXTRAS[error.name]}]'")
            _fail(missing, kwargs.get("output"))
        except KeyboardInterrupt as interrupt:
            message = f"interrupted; {str(interrupt) or 'nothing half-written was kept'}"
            note(message)
            if kwargs.get("output") is Output.JSON:
                write_error("Interrupted", message)
            raise SystemExit(130) from None

    return run


def _fail(error: errors.ErlessError, output: object) -> NoReturn:
    """Print the facts, then the next thing to try."""
    hint = hint_for(error)
    details = list(error.violations) if isinstance(error, errors.InfeasibleError) else []
    for line in [f"error: {error}", *(f"  - {detail}" for detail in details)]:
        note(line)
    if hint:
        note(f"try: {hint}")
    if output is Output.JSON:
        write_error(type(error).__name__, str(error), details, hint)
    raise SystemExit(1) from error


def hint_for(error: errors.ErlessError) -> str:
    """The next thing to try, by what failed; empty where there is nothing to say."""
    own = getattr(error, "__notes__", None)
    if own:
        return str(own[0])
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in FULL:
        return "free space or choose another --out; nothing half-written was kept"
    return next((text for kind, text in HINTS.items() if isinstance(error, kind)), "")


@contextmanager
def trying(
    hint: str, kind: type[errors.ErlessError] | tuple[type[errors.ErlessError], ...]
) -> Iterator[None]:
    """Errors of `kind` inside the block have `hint` as the next thing to try.

    The innermost block's stands: it knows best what was asked for.
    """
    try:
        yield
    except kind as error:
        error.add_note(hint)
        raise


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
