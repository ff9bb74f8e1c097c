"""What checkpoints do not record about their models, so that users state it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from erless.errors import CheckpointError, OptionError
from erless.importers.poolings import Poolings
from erless.progress import Progress

__all__ = ["ImportOptions", "Quantization", "order_tables", "parse_features"]


class Quantization(StrEnum):
    """The precision of a quantized table's rows; see `erless.importers.quantized`."""

    INT8 = "int8"
    INT4 = "int4"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options that all importers share.

    Args:
        poolings: how each table pools.
        tables: the tables in the model's order; None takes that of the checkpoint, if it has one.
        samples: a query file with the predictions of the original, which the bundle must repeat.
        features: table → names of the features that read it; one of its own name if not listed.
        quantized: the precision of tables that hold bytes.
        overwrite: replace an existing bundle.
        endpoint_url: of the service of a checkpoint's bucket, where it is not AWS's.
        progress: shown while it runs; None: nothing is.
    """

    poolings: Poolings = field(default_factory=Poolings)
    tables: Sequence[str] | None = None
    samples: Path | None = None
    features: Mapping[str, Sequence[str]] = field(default_factory=dict)
    quantized: Quantization | None = None
    overwrite: bool = False
    endpoint_url: str | None = None
    progress: Progress | None = None


def parse_features(options: Sequence[str]) -> dict[str, list[str]]:
    """From options like `items=clicked,bought`: the features that read a table, in order.

    >>> parse_features(["items=clicked,bought"])
    {'items': ['clicked', 'bought']}

    Raises:
        OptionError: not of that form, or a table is named twice.
    """
    features: dict[str, list[str]] = {}
    for option in options:
        table, equals, names = option.partition("=")
        listed = [name.strip() for name in names.split(",")]
        if not equals or not all(listed):
            raise OptionError(f"features {option!r}: must be TABLE=FEATURE,FEATURE")
        if table in features:
            raise OptionError(f"the features of table {table} are given twice")
        features[table] = listed
    return features


def order_tables(
    names: Sequence[str], order: Sequence[str] | None, ordered: bool, where: str
) -> list[str]:
    """The tables in the model's order, which is that of queries and of the tower's `pooled`.

    Args:
        names: the tables in the order in which they were found.
        order: their order as the user gives it, or None.
        ordered: whether the order of `names` is the model's own.
        where: the checkpoint, for errors.

    Raises:
        OptionError: the order is not known, or `order` names other tables.
        CheckpointError: two tables have one name.
    """
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"{where}: two tables are called {twice}")
    if order is None:
        if len(names) > 1 and not ordered:
            raise OptionError(
                f"{where} does not record the order of its tables: it is not given which of "
                f"{', '.join(names)} comes first in the model"
            )
        return list(names)
    if sorted(order) != sorted(names):
        raise OptionError(
            f"the order names tables {', '.join(order)}; {where} has {', '.join(names)}"
        )
    return list(order)
