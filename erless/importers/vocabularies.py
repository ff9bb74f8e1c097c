"""Vocabularies from outside: which row each id has.

From parquet with columns `id` (strings, bytes or integers) and `row`; or from the state of
torchrec's managed collision (`MCHManagedCollisionModule`), where ids without a row of their own
stand for the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from erless.errors import CheckpointError, OptionError
from erless.importers.checkpoint import open_checkpoint, whole
from erless.storage.atomic import os_errors

__all__ = ["KnownIds", "read_vocabulary"]

SORTED, MAPPING = "_mch_sorted_raw_ids", "_mch_remapped_ids_mapping"
_EMPTY = np.iinfo(np.int64).max  # torchrec's mark of a place without an id


@dataclass(frozen=True, slots=True)
class KnownIds:
    """Ids and their rows.

    Args:
        ids: (n,) int64, or objects: bytes.
        rows: (n,) int64.
        unknown: the row that other ids stand for, where the source says so.
    """

    ids: NDArray[Any]
    rows: NDArray[np.int64]
    unknown: int | None = None


def read_vocabulary(source: str) -> KnownIds:
    """The vocabulary at `source`: PATH, or PATH#MODULE for one of several modules of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or holds no vocabulary.
        OptionError: a checkpoint has several, and none is named.
    """
    path, _, module = source.partition("#")
    if Path(path).suffix == ".parquet":
        return _read_parquet(Path(path))
    return _read_collisions(Path(path), module)


def _read_parquet(path: Path) -> KnownIds:
    try:
        with os_errors(path, "read"):
            table = pq.read_table(path, columns=["id", "row"])
    except (pa.ArrowException, KeyError) as error:
        raise CheckpointError(
            f"{path}: not a parquet file with the columns id and row: {error}"
        ) from error
    names = set(table.column_names)
    if names != {"id", "row"}:
        raise CheckpointError(f"{path}: has no column {min({'id', 'row'} - names)}")
    ids, rows = (table.column(name).combine_chunks() for name in ("id", "row"))
    if ids.null_count or rows.null_count:
        raise CheckpointError(f"{path}: an id or a row is null")
    if not pa.types.is_integer(rows.type):
        raise CheckpointError(f"{path}: rows are {rows.type}, not integers")
    kind = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return KnownIds(ids.to_numpy(zero_copy_only=False).astype(np.int64), _rows(rows))
    texts = (pa.types.is_string, pa.types.is_large_string)
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    if not any(test(kind) for test in (*texts, *binary)):
        raise CheckpointError(f"{path}: ids are {kind}, not strings or 64-bit integers")
    found = np.empty(len(ids), object)
    found[:] = [each.encode() if isinstance(each, str) else each for each in ids.to_pylist()]
    return KnownIds(found, _rows(rows))


def _rows(column: Any) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = column.to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def _read_collisions(path: Path, module: str) -> KnownIds:
    tensors = open_checkpoint(path).tensors
    found = [name.removesuffix(SORTED) for name in tensors if name.endswith(SORTED)]
    if module:
        found = [prefix for prefix in found if module in prefix.split(".")]
    if not found:
        named = f" of a module {module}" if module else ""
        raise CheckpointError(f"{path}: no {SORTED}{named}, torchrec's managed collision state")
    if len(found) > 1:
        raise OptionError(
            f"{path} has {len(found)} vocabularies: name one as PATH#MODULE; there are "
            f"{', '.join(prefix.rstrip('.') for prefix in found)}"
        )
    ids, rows = (_integers(path, tensors, found[0] + name) for name in (SORTED, MAPPING))
    if len(ids) != len(rows) or not len(ids):
        raise CheckpointError(f"{path}: {len(ids):,} ids have {len(rows):,} rows")
    there = ids != _EMPTY
    return KnownIds(ids[there], rows[there], unknown=len(ids) - 1)


def _integers(path: Path, tensors: Any, name: str) -> NDArray[np.int64]:
    if name not in tensors:
        raise CheckpointError(f"{path}: has no {name}")
    array: NDArray[Any] = whole(tensors[name]).numpy()
    if array.ndim != 1 or array.dtype != np.int64:
        raise CheckpointError(f"{path}: {name} is {array.dtype} {list(array.shape)}, not int64 (n)")
    return array
