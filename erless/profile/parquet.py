"""Parquet logs: one list-of-int column per table, or rows already aggregated as (table, id, count).

Row groups are decoded column by column in batches, so that a log of any size takes a few hundred
megabytes. Only the columns that the model's tables need are read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from erless.errors import LogError
from erless.profile.logs import Chunk, arrow_errors, as_ids, unknown_table
from erless.progress import Step, Unit

__all__ = ["SAMPLES_KEY", "CountLog", "ListLog", "id_columns", "open_parquet", "row_group_bytes"]

BATCH_IDS = 4_000_000  # ids in one batch, about: 32 MB
MIN_BATCH_ROWS = 1024
MOST_ACCESSES = 2**53  # of one log of counts
COUNT_COLUMNS = {"id", "count"}
SAMPLES_KEY = b"samples"  # schema metadata of an aggregated log: samples it covers, as text


def open_parquet(
    path: Path,
    tables: Sequence[str],
    only: str | None,
    columns: Mapping[str, str] | None = None,
    groups: range | None = None,
) -> ListLog | CountLog:
    """The log at `path`, by its schema: columns `id` and `count` make it an aggregated one.

    Args:
        path: a parquet file.
        tables: the model's tables.
        only: the one table that the log is of, where the user said so.
        columns: of tables whose column has another name.
        groups: row groups to read; all if None.

    Raises:
        LogError: not parquet, truncated, or its columns fit no table.
    """
    if not columns and set(_open(path).schema_arrow.names) >= COUNT_COLUMNS:
        return CountLog(path, tables, only, groups)
    return ListLog(path, tables, only, columns, groups)


def row_group_bytes(path: Path) -> list[int]:
    """The size of each row group of the parquet file at `path`, in its order.

    Raises:
        LogError: not parquet, or truncated.
    """
    meta = _open(path).metadata
    return [meta.row_group(number).total_byte_size for number in range(meta.num_row_groups)]


class _RowGroups:
    """Which rows of a file are read, and how one of them is named."""

    def __init__(self, file: Any, groups: range | None) -> None:
        sizes = [
            file.metadata.row_group(number).num_rows
            for number in range(file.metadata.num_row_groups)
        ]
        self.groups = range(len(sizes)) if groups is None else groups
        self._named = groups is not None
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.first = sum(sizes[: self.groups.start])
        self.rows = sum(sizes[number] for number in self.groups)

    def name(self, row: int) -> str:
        """Row number `row` of the file; with its row group where others read the others."""
        if not self._named:
            return f"row {row}"
        group = int(np.searchsorted(self._ends, row, side="right"))
        return f"row {row} in row group {group}"


def id_columns(path: Path) -> list[str]:
    """Columns of ids of a parquet log, or the tables that an aggregated one counts; else none.

    Raises:
        LogError: it is parquet, but damaged.
    """
    with arrow_errors(path), path.open("rb") as file:
        if file.read(4) != b"PAR1":
            return []
    opened = _open(path)
    schema = opened.schema_arrow
    if set(schema.names) >= {*COUNT_COLUMNS, "table"}:
        with arrow_errors(path):
            names = opened.read(columns=["table"]).column("table").unique().to_pylist()
        return sorted(str(name) for name in names if name is not None)
    return [field.name for field in schema if _is_ids(field.type)]


def _open(path: Path) -> Any:
    """The file; its name goes to Arrow as bytes, which works in any locale.

    Raises:
        LogError: not parquet, truncated, or two columns have one name.
    """
    with arrow_errors(path):
        file = pq.ParquetFile(pa.OSFile(os.fsencode(path)))
        names = Counter(file.schema_arrow.names)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise LogError(f"{path}: {names[twice[0]]} columns are named {twice[0]!r}")
    return file


def _is_ids(arrow_type: pa.DataType) -> bool:
    """Whether these are bags of integers; a part whose bags are all empty may not say of what."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(arrow_type) for is_kind in lists) and (
        bool(pa.types.is_integer(arrow_type.value_type))
        or bool(pa.types.is_null(arrow_type.value_type))
    )


class ListLog:
    """One row per sample; column `<table>` holds the ids of that table's bag.

    A column is a list of integers, or plain integers (bags of one id); null is an empty bag.
    Columns of other types (labels, dense features, times) are not looked at. `columns` names those
    of tables that are called otherwise; what it leaves out is then not looked at either.
    """

    unit: Unit = "rows"

    def __init__(
        self,
        path: Path,
        tables: Sequence[str],
        only: str | None,
        columns: Mapping[str, str] | None = None,
        groups: range | None = None,
    ) -> None:
        self.path = path
        self.samples: int | None = 0
        self._file = _open(path)
        self._schema = self._file.schema_arrow
        self._rows = _RowGroups(self._file, groups)
        self.total: int | None = self._rows.rows
        self._columns = self._renamed(tables, columns) if columns else self._match(tables, only)
        self.tables = tuple(self._columns)

    def _renamed(self, tables: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
        """Table → column, for tables that are named and those whose column has their name."""
        for table, column in columns.items():
            if table not in tables:
                raise unknown_table(self.path, table, tables)
            if column not in self._schema.names:
                has = ", ".join(self._schema.names[:8])
                raise LogError(f"{self.path}: no column {column!r}; it has {has}")
        names = {name: columns.get(name, name) for name in tables}
        return {table: column for table, column in names.items() if column in self._schema.names}

    def _match(self, tables: Sequence[str], only: str | None) -> dict[str, str]:
        """Table → column."""
        lists = [field.name for field in self._schema if _is_ids(field.type)]
        if only is not None:
            if only in self._schema.names:
                return {only: only}
            if len(lists) != 1:
                raise LogError(
                    f"{self.path}: no column {only!r} and {len(lists)} list-of-int columns: "
                    f"which one holds the ids of table {only} is not clear"
                )
            return {only: lists[0]}
        for name in lists:
            if name not in tables:
                raise unknown_table(self.path, name, tables)
        columns = {name: name for name in tables if name in self._schema.names}
        if not columns:
            has = ", ".join(self._schema.names[:8])
            raise LogError(f"{self.path}: no column is named as a table of the model; it has {has}")
        return columns

    def _batch_rows(self) -> int:
        """Rows that hold about `BATCH_IDS` ids, from the file's own value counts."""
        meta = self._file.metadata
        roots = set(self._columns.values())
        values = sum(
            group.column(index).num_values
            for group in (meta.row_group(number) for number in range(meta.num_row_groups))
            for index in range(group.num_columns)
            if group.column(index).path_in_schema.split(".")[0] in roots
        )
        per_row = max(1.0, values / max(1, meta.num_rows))
        return max(MIN_BATCH_ROWS, int(BATCH_IDS / per_row))

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """Batches of rows, each cut into its tables."""
        with arrow_errors(self.path):
            for name in self._columns.values():
                self._check_type(name)
            begin = self._rows.first
            batches = self._file.iter_batches(
                self._batch_rows(), list(self._rows.groups), columns=list(self._columns.values())
            )
            for batch in batches:
                for table, column in self._columns.items():
                    yield self._chunk(table, batch.column(batch.schema.names.index(column)), begin)
                begin += batch.num_rows
                self.samples = begin - self._rows.first
                step.advance(batch.num_rows)

    def _check_type(self, column: str) -> None:
        arrow_type = self._schema.field(column).type
        if (
            not _is_ids(arrow_type)
            and not pa.types.is_integer(arrow_type)
            and not pa.types.is_null(arrow_type)
        ):
            raise LogError(
                f"{self.path}: column {column} has type {arrow_type}, expected list of int"
            )

    def _chunk(self, table: str, column: Any, begin: int) -> Chunk:
        if pa.types.is_null(column.type):  # a part in which every bag is null
            return Chunk(table, np.empty(0, np.int64), lambda position: self._rows.name(begin))
        if pa.types.is_integer(column.type):
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            values = column.drop_null()

            def locate(position: int) -> str:
                return self._rows.name(begin + int(rows[position]))

        else:
            values = column.flatten()
            if not len(values):
                values = pa.array([], pa.int64())
            locate = _locate_in_lists(column, begin, self._rows)  # type: ignore[assignment]
        return Chunk(table, as_ids(values, locate, self.path, f"an id of {table}"), locate)


def _locate_in_lists(column: Any, begin: int, file_rows: _RowGroups) -> Callable[[int], str]:
    def locate(position: int) -> str:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(lengths, dtype=np.int64)
        return file_rows.name(begin + int(np.searchsorted(ends, position, side="right")))

    return locate


class CountLog:
    """Aggregated accesses: columns `table` (text), `id`, `count`, as a warehouse hands them over.

    The same (table, id) may occur more than once, as in partial aggregates. The log of one table
    needs no column `table`. The samples covered are read from the schema metadata `samples`.
    """

    unit: Unit = "rows"

    def __init__(
        self, path: Path, tables: Sequence[str], only: str | None, groups: range | None = None
    ) -> None:
        self.path = path
        self._file = _open(path)
        schema = self._file.schema_arrow
        self._rows = _RowGroups(self._file, groups)
        self.total: int | None = self._rows.rows
        self.samples = _samples(path, schema.metadata or {})
        if self.samples is not None and self._rows.groups.start:
            self.samples = 0  # whoever reads the first row group has them
        self._only, self._model_tables = only, tuple(tables)
        self._total = 0.0
        self._has_table = "table" in schema.names
        if not self._has_table and only is None:
            raise LogError(f"{path}: no column table: say which one it is of, as TABLE:{path}")
        allowed = {*COUNT_COLUMNS, "table"}
        for name in sorted(COUNT_COLUMNS - set(schema.names)):
            raise LogError(f"{path}: no column {name}; it has {', '.join(schema.names[:8])}")
        for name in sorted(set(schema.names) - allowed):
            raise LogError(
                f"{path}: has a column {name!r}; counts have {', '.join(sorted(allowed))}"
            )
        for name in sorted(COUNT_COLUMNS):
            if not pa.types.is_integer(schema.field(name).type):
                raise LogError(
                    f"{path}: column {name} has type {schema.field(name).type}, expected int"
                )
        self._seen = {only} if only is not None else set[str]()

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables found so far, in the model's order."""
        return tuple(name for name in self._model_tables if name in self._seen)

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """Batches of rows, each grouped by table."""
        columns = ["table", "id", "count"] if self._has_table else ["id", "count"]
        begin = self._rows.first
        groups = list(self._rows.groups)
        with arrow_errors(self.path):
            for batch in self._file.iter_batches(BATCH_IDS // 4, groups, columns=columns):
                column = {name: batch.column(batch.schema.names.index(name)) for name in columns}
                yield from self._grouped(column, begin)
                begin += batch.num_rows
                step.advance(batch.num_rows)

    def _grouped(self, column: dict[str, Any], begin: int) -> Iterator[Chunk]:
        def row(position: int) -> str:
            return self._rows.name(begin + position)

        ids = as_ids(column["id"], row, self.path, "id")
        counts = as_ids(column["count"], row, self.path, "count")
        if counts.dtype == np.uint64:
            counts = np.minimum(counts, np.uint64(2**62))  # too many either way
        counts = counts.astype(np.int64, copy=False)
        if len(counts) and int(counts.min()) < 0:
            position = int(np.flatnonzero(counts < 0)[0])
            raise LogError(f"{self.path}: {row(position)}: count {counts[position]} is negative")
        self._check_total(counts, row)
        if not self._has_table:
            if self._only is not None and len(ids):
                yield Chunk(self._only, ids, row, counts)
            return
        for name, rows in self._by_table(column["table"], row):
            if self._only is None or name == self._only:
                self._seen.add(name)
                locate = _locate_rows(rows, begin, self._rows)
                yield Chunk(name, ids[rows], locate, counts[rows])

    def _check_total(self, counts: NDArray[np.int64], row: Callable[[int], str]) -> None:
        """Sums of counts stay far from the limit of int64, also over many logs."""
        totals = self._total + np.cumsum(counts, dtype=np.float64)
        if len(totals) and totals[-1] > MOST_ACCESSES:
            position = int(np.flatnonzero(totals > MOST_ACCESSES)[0])
            raise LogError(
                f"{self.path}: {row(position)}: with count {counts[position]} the log has more "
                "than 2^53 accesses"
            )
        self._total = float(totals[-1]) if len(totals) else self._total

    def _by_table(
        self, names: Any, row: Callable[[int], str]
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each table of the batch with its rows in it."""
        if names.null_count:
            position = int(np.flatnonzero(names.is_null().to_numpy(zero_copy_only=False))[0])
            raise LogError(f"{self.path}: {row(position)}: table is null")
        encoded = names if pa.types.is_dictionary(names.type) else names.dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        used, starts = np.unique(codes[order], return_index=True)
        for code, rows in zip(used, np.split(order, starts[1:]), strict=True):
            name = str(encoded.dictionary[int(code)].as_py())
            if name not in self._model_tables:
                raise unknown_table(self.path, name, self._model_tables)
            yield name, rows


def _locate_rows(
    rows: NDArray[np.int64], begin: int, file_rows: _RowGroups
) -> Callable[[int], str]:
    return lambda position: file_rows.name(begin + int(rows[position]))


def _samples(path: Path, metadata: dict[bytes, bytes]) -> int | None:
    text = metadata.get(SAMPLES_KEY)
    if text is None:
        return None
    if not text.isdigit():
        raise LogError(
            f"{path}: metadata samples is {text.decode(errors='replace')!r}, not a count"
        )
    return int(text)
