"""Tables of a model that is not there yet: as its owner names them, or as its log has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from erless.errors import LogError, OptionError
from erless.profile.formats import LogFormat, LogSource, open_log
from erless.progress import Silent
from erless.specs.model import DlrmTower, ModelSpec, TableSpec

__all__ = ["DIM", "shape_of"]

DIM = 64  # of a table whose width nobody told
MOST_ROWS = 2**40  # what a log may claim
SHAPE = re.compile(r"([\w.-]+)=(\d+)x(\d+)")
DENSE_FEATURES, HIDDEN = 13, (256, 64)  # of the small tower that stands for the real one


def shape_of(tables: Sequence[str], logs: Sequence[LogSource]) -> ModelSpec:
    """A model of `tables`, or, without any, of the columns of `logs`.

    Args:
        tables: NAME=ROWSxDIM each.
        logs: without tables, each column of ids is one, as large as its largest id says.

    Raises:
        OptionError: a table is not written so, or named twice.
        LogError: a log has no columns of ids.
    """
    specs: dict[str, TableSpec] = {}
    for text in tables:
        match = SHAPE.fullmatch(text)
        if match is None or not int(match[2]) or not int(match[3]):
            raise OptionError(f"--table {text}: expected NAME=ROWSxDIM, such as item=91599x64")
        if match[1] in specs:
            raise OptionError(f"--table {text}: table {match[1]} is named twice")
        specs[match[1]] = TableSpec(name=match[1], rows=int(match[2]), dim=int(match[3]))
    if not specs:
        specs = {
            name: TableSpec(name=name, rows=rows, dim=DIM) for name, rows in _largest(logs).items()
        }
    dim = next(iter(specs.values())).dim
    return ModelSpec(
        name="model",
        dense_features=DENSE_FEATURES,
        tables=tuple(specs.values()),
        tower=DlrmTower(bottom_mlp=(HIDDEN[0], dim), top_mlp=(*HIDDEN, 1)),
    )


def _largest(logs: Iterable[LogSource]) -> dict[str, int]:
    """Rows of each table, one more than its largest id in the logs."""
    rows: dict[str, int] = {}
    for source in logs:
        names = [source.table] if source.table else _columns(source)
        for log in open_log(source, dict.fromkeys(names, MOST_ROWS), LogFormat.AUTO):
            for chunk in log.chunks(Silent()):
                if len(chunk.ids):
                    largest = int(np.max(chunk.ids)) + 1
                    rows[chunk.table] = max(rows.get(chunk.table, 0), largest)
    if not rows:
        raise LogError("the logs have no ids: name the tables, as --table item=91599x64")
    return rows


def _columns(source: LogSource) -> list[str]:
    """The columns of ids of a parquet log, or the tables that its counts name."""
    from erless.profile.parquet import id_columns

    names = id_columns(source.path)
    if not names:
        raise LogError(
            f"{source.path}: no columns of ids: name the tables, as --table item=91599x64, and a "
            f"log of one table, as item:{source.path}"
        )
    return names
