"""An access log as the profile reads it: a stream of row ids per table, in any file format.

Each reader (`parquet.py`, `criteo.py`, `interactions.py`, `querylog.py`) turns one file into
`Chunk`s of a few million ids, so that memory does not depend on the size of the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from erless.errors import LogError
from erless.progress import Step, Unit
from erless.storage.arrow import translate_arrow_errors

__all__ = ["AccessLog", "Chunk", "arrow_errors", "as_ids", "unknown_table"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Accesses of one table, in the order of the log.

    Args:
        table: a table of the model.
        ids: (n,) integers as the log has them, not yet checked against the table.
        locate: position in `ids` → where that is in the file, such as `row 17`.
        counts: (n,) int64 accesses of each id; None is one access each.
    """

    table: str
    ids: NDArray[Any]
    locate: Callable[[int], str]
    counts: NDArray[np.int64] | None = None


class AccessLog(Protocol):
    """One file being read.

    `total` counts `unit`s for a progress bar (None: not known). `samples` is how many samples the
    log covers: it is complete when `chunks` has run dry, and None where the format cannot say.
    `tables` are the tables that the log is about, touched or not.
    """

    path: Path

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that the log speaks of."""
        ...

    total: int | None
    unit: Unit
    samples: int | None

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """Read the file once, front to back.

        Raises:
            LogError: the file is damaged or holds something else than row ids; says where.
        """


def unknown_table(path: Path, name: str, tables: Collection[str]) -> LogError:
    """The fact that `path` speaks of a table that the model lacks, and what is nearest."""
    near = difflib.get_close_matches(name, list(tables), n=1, cutoff=0.0)
    return LogError(f"{path}: the model has no table {name!r}; the nearest is {near[0]!r}")


def arrow_errors(path: Path) -> AbstractContextManager[None]:
    """Translate what pyarrow raises while it reads `path`.

    Raises:
        LogError: truncated, damaged, or not what the format says.
    """
    return translate_arrow_errors(path, LogError)


def as_ids(values: Any, locate: Callable[[int], str], path: Path, name: str) -> NDArray[Any]:
    """An Arrow integer array as numpy, without a copy where there are no nulls.

    Raises:
        LogError: a value is missing.
    """
    if values.null_count:
        position = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise LogError(f"{path}: {locate(position)}: {name} is null, not a row id")
    ids: NDArray[Any] = values.to_numpy(zero_copy_only=True)
    return ids
