"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["OutOption", "OverwriteOption"]

OutOption = Annotated[Path, typer.Option("--out", help="Folder to make.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
