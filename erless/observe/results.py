"""Write and read result directories (`erless.specs.result`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError
from erless.specs.artifact import FileEntry
from erless.specs.result import EVENTS, FUNCTIONS, MANIFEST, TIMELINE, RunResult
from erless.storage.atomic import os_errors, staged_directory
from erless.storage.digests import digest_file

__all__ = [
    "Event",
    "Series",
    "StoredResult",
    "fill_result",
    "read_result",
    "staged_result",
    "write_result",
]

Column = NDArray[Any]
_DTYPES = {"f": np.float64, "i": np.int64, "s": np.object_}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened `t_s` seconds into the run."""

    t_s: float
    kind: str
    function: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Series:
    """The columns of a result's three tables, by name; each table's columns are equally long."""

    timeline: Mapping[str, Column]
    functions: Mapping[str, Column] = field(default_factory=dict)
    events: Sequence[Event] = ()


@dataclass(frozen=True)
class StoredResult:
    """A result as read: the document, its tables as numpy columns, and where it lies."""

    folder: Path
    document: RunResult
    timeline: dict[str, Column]
    functions: dict[str, Column]
    events: tuple[Event, ...]

    def of_function(self, name: str) -> dict[str, Column]:
        """The rows of one function."""
        of_function = self.functions["function"] == name
        return {key: column[of_function] for key, column in self.functions.items()}


def write_result(
    folder: Path, fields: Mapping[str, Any], series: Series, *, overwrite: bool = False
) -> RunResult:
    """Write a result directory, whole or not at all.

    Args:
        folder: where.
        fields: `RunResult`'s, all but the files.
        series: the tables; columns left out are zero (NaN where they are latencies).
        overwrite: replace a result that is there.

    Raises:
        ArtifactError: `folder` exists and may not be replaced.
        StorageError: the disk refused.
    """
    with staged_result(folder, overwrite=overwrite) as stage:
        return fill_result(stage, fields, series)


def staged_result(folder: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """A directory that becomes the result `folder` when the block ends; `fill_result` writes it.

    Whether `folder` may be written is known before the block begins, which may take long.
    """
    return staged_directory(folder, marker=MANIFEST, overwrite=overwrite)


def fill_result(stage: Path, fields: Mapping[str, Any], series: Series) -> RunResult:
    """Write a result's files into `stage`; arguments as those of `write_result`."""
    events: dict[str, Column] = {
        name: np.array([getattr(event, name) for event in series.events], _DTYPES[kind])
        for name, kind in EVENTS.items()
    }
    document = RunResult.create(
        **fields,
        timeline=_write(stage, "timeline", series.timeline, TIMELINE),
        per_function=_write(stage, "functions", series.functions, FUNCTIONS),
        events=_write(stage, "events", events, EVENTS),
    )
    document.save(stage / MANIFEST)
    return document


def _write(
    stage: Path, name: str, columns: Mapping[str, Column], schema: Mapping[str, str]
) -> FileEntry:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = len(next(iter(columns.values()))) if columns else 0
    kinds = {"f": pa.float64(), "i": pa.int64(), "s": pa.string()}
    arrays = []
    for column, kind in schema.items():
        filler = np.nan if column.endswith("_ms") else 0
        values = columns.get(column, np.full(rows, filler if kind != "s" else ""))
        arrays.append(pa.array(np.asarray(values).tolist(), kinds[kind]))
    path = stage / f"{name}.parquet"
    with os_errors(path):
        pq.write_table(pa.table(dict(zip(schema, arrays, strict=True))), path, compression="zstd")
    size, sha256 = digest_file(path)
    return FileEntry(path=path.name, size_bytes=size, sha256=sha256)


def read_result(folder: Path) -> StoredResult:
    """Read and check the result at `folder`.

    Raises:
        ArtifactError: no result there, a file is missing, cut short or altered.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a result: no such directory")
    document = RunResult.load(folder / MANIFEST)
    timeline = _read(folder, document.timeline, TIMELINE)
    functions = _read(folder, document.per_function, FUNCTIONS)
    columns = _read(folder, document.events, EVENTS)
    events = tuple(
        Event(float(t), str(kind), str(function), str(detail))
        for t, kind, function, detail in zip(*columns.values(), strict=True)
    )
    return StoredResult(folder, document, timeline, functions, events)


def _read(folder: Path, entry: FileEntry, schema: Mapping[str, str]) -> dict[str, Column]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / entry.path
    actual = digest_file(path)
    if (actual.size_bytes, actual.sha256) != (entry.size_bytes, entry.sha256):
        raise ArtifactError(f"{path}: cut short or altered: it does not match {MANIFEST}")
    try:
        table = pq.read_table(path)
        return {
            name: np.asarray(table.column(name).to_pylist(), _DTYPES[kind])
            for name, kind in schema.items()
        }
    except (pa.ArrowException, KeyError) as error:
        raise ArtifactError(f"{path}: not a table of a result ({error})") from error
