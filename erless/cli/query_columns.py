"""`--column NAME=COLUMN`, and queries that come as a table of samples instead of a query file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from erless.dlrm.query_tables import QueryShape

__all__ = ["QueryColumnOption", "column_pairs", "query_file"]

QueryColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=COLUMN",
        help="A table or input whose column in queries of parquet or CSV has another name; "
        "dense=COLUMN for each feature. Repeatable.",
    ),
]


def column_pairs(given: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """NAME=COLUMN options as pairs.

    Raises:
        typer.BadParameter: one is not written so.
    """
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, column in pairs:
        if not (name and equals and column):
            raise typer.BadParameter(f"--column {name}{equals}{column}: expected NAME=COLUMN")
    return tuple((name, column) for name, _, column in pairs)


@contextmanager
def query_file(
    path: Path, columns: Sequence[str] | None, shape: Callable[[], QueryShape], batch: int | None
) -> Iterator[Path]:
    """A query file with what `path` holds, inside the block: itself, or made of its table.

    Raises:
        QueryError: the table does not fit the model.
        typer.BadParameter: --column with a query file, which has names of its own.
    """
    import tempfile

    from erless.dlrm.query_tables import convert_query_table, is_query_table

    pairs = column_pairs(columns)
    if not is_query_table(path):
        if pairs:
            raise typer.BadParameter(f"--column names columns of parquet or CSV, not of {path}")
        yield path
        return
    named: dict[str, tuple[str, ...]] = {}
    for name, column in pairs:
        named[name] = (*named.get(name, ()), column)
    with tempfile.TemporaryDirectory(prefix="erless-queries-") as folder:
        made = Path(folder) / "queries.safetensors"
        convert_query_table(path, made, shape(), named, batch)
        yield made
