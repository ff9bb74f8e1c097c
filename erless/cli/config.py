"""`erless init` and `erless config`: write and check erless.yaml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.options import CONFIG_FILE, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.specs.config import Config

app = typer.Typer(
    no_args_is_help=True,
    help="Check erless.yaml, or print its JSON schema.",
    epilog="Example: `erless config check`",
)


@verb
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = CONFIG_FILE,
    bundle: Annotated[
        Path | None, typer.Option("--from", metavar="BUNDLE", help="The model to serve.")
    ] = None,
    ask: Annotated[
        bool | None,
        typer.Option("--ask/--no-ask", help="Ask for the few that matter [on a terminal]."),
    ] = None,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write a commented erless.yaml, and its schema for editors; on a terminal it asks first.

    Example: `erless init`, `erless init --from m --no-ask`
    """
    from erless.errors import ExistsError
    from erless.specs.bundle import BundleManifest
    from erless.specs.config import Config
    from erless.specs.schema import SCHEMA_FILE
    from erless.specs.template import config_template
    from erless.storage.atomic import os_errors, staged_file

    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists already")
    config = Config()
    if bundle is not None:
        BundleManifest.open(bundle)  # a bundle it must be
        config = config.model_copy(update={"model": bundle})
    if ask if ask is not None else output is Output.TEXT and sys.stdin.isatty():
        config = _asked(config)
    schema_file = path.with_name(SCHEMA_FILE.name)
    with os_errors(path):
        for file, text in (
            (schema_file, SCHEMA_FILE.read_text(encoding="utf-8")),
            (path, config_template(config)),
        ):
            with staged_file(file) as stage:
                stage.write_text(text, encoding="utf-8")
    emit(
        output,
        {"config": str(path), "schema": str(schema_file)},
        lambda console: console.print(f"wrote {path}, and {schema_file} for editors"),
        then=f"erless config check {path}",
    )


def _asked(config: Config) -> Config:
    """`config` with the answers to what no default can know.

    Raises:
        OptionError: an answer does not fit.
    """
    from pydantic import ValidationError

    from erless.errors import OptionError

    traffic, targets = config.traffic, config.targets

    def ask(question: str, default: object) -> str:
        return str(typer.prompt(question, default=str(default), err=True))

    answers = {
        "model": ask("Model bundle (folder; `erless import` makes one)", config.model),
        "profile": ask("Profile of its access log (folder to make)", config.profile),
        "store": ask("Releases go to (folder, or s3://bucket/prefix)", config.store),
        "traffic": {
            "qps": ask("Queries per second at peak", f"{traffic.qps:g}"),
            "batch": ask("Samples per query", traffic.batch),
            "sla_p95_ms": ask("p95 latency allowed, ms", f"{traffic.sla_p95_ms:g}"),
        },
        "targets": {"default": ask("Deploy to (local, knative or kubernetes)", targets.default)},
    }
    try:
        return type(config).model_validate(answers)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise OptionError(f"{name} {first['input']!r}: {first['msg']}") from error


@app.command()
@verb
def check(
    path: Annotated[Path, typer.Argument(help="File to check.")] = CONFIG_FILE,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check every key and value.

    Example: `erless config check erless.yaml`
    """
    from erless.specs.config import load_config

    config = load_config(path)
    document = {"config": str(path), "value": config.model_dump(mode="json")}
    then = "erless profile" if config.model.exists() else "erless import inspect CHECKPOINT"
    emit(output, document, lambda console: console.print(f"{path}: valid"), then=then)


@app.command()
@verb
def schema(output: OutputOption = Output.TEXT) -> None:
    """Print the JSON schema of erless.yaml, for editors.

    Example: `erless config schema > erless.schema.json`
    """
    import json

    from erless.specs.schema import SCHEMA_FILE

    text = SCHEMA_FILE.read_text(encoding="utf-8")
    emit(
        output,
        json.loads(text),
        lambda console: console.print(text, markup=False, end=""),
        then="erless config check",
    )
