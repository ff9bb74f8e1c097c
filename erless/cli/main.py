"""The command line's root: verbs in the order in which a user meets them.

Verb modules import only typer at the top and the rest inside their functions, so that
`erless --help` answers without torch, pyarrow or pydantic.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Annotated

import typer

from erless.cli import (
    bundle,
    cluster,
    config,
    deploy,
    destroy,
    doctor,
    example,
    history,
    image,
    import_,
    loadtest,
    logs,
    pack,
    plan,
    predict,
    profile,
    releases,
    render,
    report,
    simulate,
    status,
)
from erless.cli.demo import verb as demo
from erless.cli.run import write_error
from erless.cli.signals import unwind_on_signals
from erless.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="erless",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
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


app.command("demo")(demo.demo)
app.command("init")(config.init)
app.add_typer(config.app, name="config")
app.add_typer(example.app, name="example")
app.add_typer(import_.app, name="import")
app.add_typer(bundle.app, name="bundle")
app.command("profile")(profile.profile)
app.command("plan")(plan.plan)
app.command("pack")(pack.pack)
app.add_typer(releases.app, name="releases")
app.add_typer(image.app, name="image")
app.add_typer(cluster.app, name="cluster")
app.command("doctor")(doctor.doctor)
app.command("render")(render.render)
app.command("deploy")(deploy.deploy)
app.command("status")(status.status)
app.command("predict")(predict.predict)
app.command("logs")(logs.logs)
app.command("history")(history.history)
app.command("rollback")(history.rollback)
app.command("destroy")(destroy.destroy)
app.command("loadtest")(loadtest.loadtest)
app.command("report")(report.report)
app.command("simulate")(simulate.simulate)


def main() -> None:
    """Entry point of the console script."""
    unwind_on_signals()
    try:
        app()
    except BrokenPipeError:
        # the reader of our stdout (head, less) went away: not an error, and nothing left to flush
        sys.stderr.close()
        raise SystemExit(141) from None
    except SystemExit as error:
        wrong_usage = getattr(error.__context__, "format_message", None)  # of click's exceptions
        if wrong_usage is not None and _json_wanted(sys.argv[1:]):
            write_error("UsageError", wrong_usage())
        raise


def _json_wanted(words: list[str]) -> bool:
    """Whether `-o json` stands in a command line that could not be parsed."""
    if {"-ojson", "--output=json"} & set(words):
        return True
    return any(pair in (("-o", "json"), ("--output", "json")) for pair in pairwise(words))
