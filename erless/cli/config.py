"""`erless init` and `erless config`: write and check erless.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erless.cli.options import CONFIG_FILE, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

app = typer.Typer(no_args_is_help=True, help="Check erless.yaml, or print its JSON schema.")


@verb
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = CONFIG_FILE,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write a commented erless.yaml with every key at its default.

    Example: `erless init`
    """
    from erless.errors import ExistsError
    from erless.specs.template import config_template
    from erless.storage.atomic import os_errors, staged_file

    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists already")
    with staged_file(path) as stage, os_errors(stage):
        stage.write_text(config_template(), encoding="utf-8")
    emit(output, {"config": str(path)}, lambda console: console.print(f"wrote {path}"))


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
    emit(output, document, lambda console: console.print(f"{path}: valid"))


@app.command()
@verb
def schema(output: OutputOption = Output.TEXT) -> None:
    """Print the JSON schema of erless.yaml, for editors.

    Example: `erless config schema > erless.schema.json`
    """
    import json

    from erless.specs.schema import SCHEMA_FILE

    text = SCHEMA_FILE.read_text(encoding="utf-8")
    emit(output, json.loads(text), lambda console: console.print(text, markup=False, end=""))
