"""Options that several verbs take, and what stands in for those left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from erless.specs.config import Config

__all__ = [
    "CONFIG_FILE",
    "CaOption",
    "EndpointOption",
    "InfraOption",
    "OutOption",
    "OverwriteOption",
    "StoreOption",
    "project",
    "store_of",
]

CONFIG_FILE = Path("erless.yaml")

OutOption = Annotated[Path, typer.Option("--out", help="Folder to make.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", "-s", help="A folder, or s3://bucket/prefix [default: erless.yaml's]."),
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint-url", help="Of an S3 API other than AWS's.")
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        exists=True,
        dir_okay=False,
        help="Authorities of an https gateway's certificate (PEM).",
    ),
]
InfraOption = Annotated[
    Path | None,
    typer.Option(
        "--infra", help="Terraform folder, or a saved `terraform output -json`: bucket, cluster."
    ),
]


def project() -> Config:
    """What `erless.yaml` in the current folder says, or every default where there is none.

    Raises:
        ConfigError: the file has a mistake.
    """
    from erless.specs.config import Config, load_config

    return load_config(CONFIG_FILE) if CONFIG_FILE.exists() else Config()


def store_of(store: str | None, infra: Path | None, config: Config) -> str:
    """The store that options and config name: `--store`, else `--infra`'s, else erless.yaml's.

    Raises:
        InfraError, ArtifactError: `infra` cannot be read.
    """
    if store or infra is None:
        return store or config.store
    from erless.deploy.infra import read_infra

    return read_infra(infra).store_url
