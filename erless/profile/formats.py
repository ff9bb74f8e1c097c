"""Which reader a log needs: by the format that was given, else by the file's content."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from erless.errors import LogError
from erless.profile.blocks import first_line
from erless.profile.criteo import CriteoLog, looks_like_criteo
from erless.profile.interactions import InteractionLog
from erless.profile.logs import AccessLog, arrow_errors, unknown_table
from erless.profile.parquet import CountLog, ListLog, open_parquet

__all__ = [
    "LogFile",
    "LogFormat",
    "LogSource",
    "format_of",
    "log_files",
    "open_log",
    "open_log_file",
]

PARQUET_MAGIC = b"PAR1"


class LogFormat(StrEnum):
    """How a log is laid out."""

    AUTO = "auto"
    QUERIES = "queries"
    PARQUET = "parquet"
    CRITEO = "criteo"
    INTERACTIONS = "interactions"
    COUNTS = "counts"


@dataclass(frozen=True, slots=True)
class LogSource:
    """A log as the user named it: `PATH`, or `TABLE:PATH` for the log of one table.

    columns: (table, column) of tables whose column in it has another name.
    """

    text: str
    path: Path
    table: str | None = None
    columns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> LogSource:
        """Split `TABLE:PATH`; a file whose own name has the colon wins.

        >>> LogSource.parse("amazon-book:logs/amazon-book.txt").table
        'amazon-book'
        """
        table, colon, path = text.partition(":")
        if not colon or not table or not path or "/" in table or Path(text).exists():
            return cls(text, Path(text))
        return cls(text, Path(path), table)


def open_log(
    source: LogSource, table_rows: Mapping[str, int], log_format: LogFormat = LogFormat.AUTO
) -> Iterator[AccessLog]:
    """The readers of `source`, one per file.

    Args:
        source: the log.
        table_rows: the model's tables and their rows, in order.
        log_format: how it is laid out; AUTO goes by content.

    Raises:
        LogError: unreadable, of no known format, or about tables that the model lacks.
    """
    for file in log_files(source, table_rows):
        yield open_log_file(source, file, table_rows, log_format)


class LogFile(NamedTuple):
    """One file of a log; the table that it is of, where one is known; row groups, if not all."""

    path: Path
    table: str | None = None
    groups: range | None = None


def log_files(source: LogSource, table_rows: Collection[str]) -> Iterator[LogFile]:
    """The files of `source`; of a directory its parquet files, as Spark writes it.

    Raises:
        LogError: there are none, or they are about tables that the model lacks.
    """
    if source.table is not None and source.table not in table_rows:
        raise unknown_table(source.path, source.table, table_rows)
    if not source.path.exists():
        raise LogError(f"{source.path}: no such file")
    if not source.path.is_dir():
        yield LogFile(source.path, source.table)
        return
    parts = list(_parts(source.path))
    if not parts:
        raise LogError(f"{source.path}: the folder holds no parquet files")
    for path in parts:
        table = _partition_table(source.path, path)
        if table is not None and source.table not in (None, table):
            continue  # as rows of other tables in one file
        if table is not None and table not in table_rows:
            raise unknown_table(path, table, table_rows)
        yield LogFile(path, table or source.table)


def _parts(folder: Path) -> Iterator[Path]:
    """The parquet files below a folder, as Spark, Hive and Delta Lake write it, in order.

    What begins with "." or "_" is theirs: files still being written, markers, checksums, the
    table's history. Only `_column=value` names a partition.

    Raises:
        LogError: a file that is no parquet file, or has no bytes.
    """
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") or (path.name.startswith("_") and "=" not in path.name)
        if hidden:
            continue
        if path.is_dir():
            yield from _parts(path)
            continue
        with arrow_errors(path), path.open("rb") as file:
            magic = file.read(4)
        if not magic:
            raise LogError(f"{path}: the log is empty: the file has 0 bytes")
        if magic != PARQUET_MAGIC:
            raise LogError(f"{path}: not a parquet file, in a folder that is read as one log")
        yield path


def _partition_table(folder: Path, path: Path) -> str | None:
    """The table that a part is of, where the folders are partitioned by `table`."""
    for name in path.relative_to(folder).parts[:-1]:
        if name.startswith("table="):
            return unquote(name.removeprefix("table="))
    return None


def open_log_file(
    source: LogSource,
    file: LogFile,
    table_rows: Mapping[str, int],
    log_format: LogFormat = LogFormat.AUTO,
) -> AccessLog:
    """The reader of one file of `source`.

    Raises:
        LogError: unreadable, of no known format, or about tables that the model lacks.
    """
    path, table, groups = file
    tables, columns = tuple(table_rows), dict(source.columns)
    with arrow_errors(path):
        size = path.stat().st_size
        if not size:
            raise LogError(f"{path}: the log is empty: the file has 0 bytes")
    actual = format_of(path) if log_format is LogFormat.AUTO else log_format
    if columns and actual is not LogFormat.PARQUET:
        raise LogError(f"{path}: columns are those of parquet, this is read as {actual}")
    if actual is LogFormat.QUERIES:
        from erless.profile.querylog import QueryLog  # C kernels, which no zip on a path can hold

        return QueryLog(path, tables, table)
    if actual is LogFormat.CRITEO:
        return CriteoLog(path, dict(table_rows), table)
    if actual is LogFormat.INTERACTIONS:
        return InteractionLog(path, _one_table(path, table, tables))
    if actual is LogFormat.COUNTS:
        return CountLog(path, tables, table, groups)
    return (
        open_parquet(path, tables, table, columns, groups)
        if log_format is LogFormat.AUTO
        else ListLog(path, tables, table, columns, groups)
    )


def format_of(path: Path) -> LogFormat:
    """The format by the first bytes, where the name does not decide it.

    Raises:
        LogError: unreadable.
    """
    if path.suffix == ".safetensors":
        return LogFormat.QUERIES
    with arrow_errors(path), path.open("rb") as file:
        magic = file.read(4)
    if path.suffix == ".parquet" or magic == PARQUET_MAGIC:
        return LogFormat.PARQUET
    return LogFormat.CRITEO if looks_like_criteo(first_line(path)) else LogFormat.INTERACTIONS


def _one_table(path: Path, table: str | None, tables: tuple[str, ...]) -> str:
    """Interactions are of one table: the one named, or the model's only one."""
    if table is not None:
        return table
    if len(tables) == 1:
        return tables[0]
    raise LogError(
        f"{path}: interactions are accesses of one table and the model has {len(tables)}: "
        f"say which one, as TABLE:{path}"
    )
