"""What a checkpoint does not tell about its model, and a user must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from erless.errors import CheckpointError, OptionError
from erless.importers.poolings import Poolings
from erless.progress import Progress

__all__ = ["ImportOptions", "order_tables"]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options that all importers share.

    Args:
        poolings: how each table pools.
        tables: the tables in the model's order; None takes that of the checkpoint, if it has one.
        samples: a query file with the predictions of the original, which the bundle must repeat.
        overwrite: replace an existing bundle.
        progress: who listens.
    """

    poolings: Poolings = field(default_factory=Poolings)
    tables: Sequence[str] | None = None
    samples: Path | None = None
    overwrite: bool = False
    progress: Progress | None = None


def order_tables(
    names: Sequence[str], wanted: Sequence[str] | None, ordered: bool, where: str
) -> list[str]:
    """The tables in the model's order, which is that of queries and of the tower's `pooled`.

    Args:
        names: the tables in the order in which they were found.
        wanted: their order as the user says it.
        ordered: whether the order of `names` is the model's own.

    Raises:
        OptionError: the order is not known, or `wanted` names other tables.
        CheckpointError: two tables have one name.
    """
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"{where}: two tables are called {twice}")
    if wanted is None:
        if len(names) > 1 and not ordered:
            raise OptionError(
                f"{where} does not tell the order of its tables: it is not given which of "
                f"{', '.join(names)} comes first in the model"
            )
        return list(names)
    if sorted(wanted) != sorted(names):
        raise OptionError(
            f"the order names tables {', '.join(wanted)}; {where} has {', '.join(names)}"
        )
    return list(wanted)
