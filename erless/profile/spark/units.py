"""A log cut into units that one task each can read: a file, or some row groups of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from erless.profile.formats import LogFile, LogFormat, LogSource, format_of, log_files
from erless.profile.parquet import row_group_bytes

__all__ = ["LogUnit", "log_units", "shares"]

UNIT_BYTES = 128 << 20  # of column data: a task reads several


class LogUnit(NamedTuple):
    """A part of log number `source`, about `size_bytes` of it."""

    source: int
    file: LogFile
    size_bytes: int


def log_units(
    sources: Sequence[LogSource],
    tables: Collection[str],
    log_format: LogFormat,
    unit_bytes: int = UNIT_BYTES,
) -> Iterator[LogUnit]:
    """The units of all logs, in the order in which one machine would read them.

    Only parquet is cut within a file: text has no places to begin at whose line is known.

    Raises:
        LogError: a log is absent, or about tables that the model lacks.
    """
    for number, source in enumerate(sources):
        for file in log_files(source, tables):
            kind = format_of(file.path) if log_format is LogFormat.AUTO else log_format
            if kind in (LogFormat.PARQUET, LogFormat.COUNTS) and file.path.stat().st_size:
                for groups, size in _gathered(row_group_bytes(file.path), unit_bytes):
                    yield LogUnit(number, file._replace(groups=groups), size)
            else:
                yield LogUnit(number, file, file.path.stat().st_size)


def _gathered(sizes: Sequence[int], unit_bytes: int) -> Iterator[tuple[range, int]]:
    """Row groups of these sizes in runs of at most about `unit_bytes`."""
    begin = total = 0
    for number, size in enumerate(sizes):
        if number > begin and total + size > unit_bytes:
            yield range(begin, number), total
            begin, total = number, 0
        total += size
    yield range(begin, len(sizes)), total


def shares(units: Sequence[LogUnit], tasks: int) -> list[list[tuple[int, LogUnit]]]:
    """The units with their numbers, dealt to at most `tasks` tasks of about the same size."""
    dealt: list[list[tuple[int, LogUnit]]] = [[] for _ in range(min(tasks, len(units)))]
    loads = [0] * len(dealt)
    for number, unit in sorted(enumerate(units), key=lambda item: -item[1].size_bytes):
        least = loads.index(min(loads))
        dealt[least].append((number, unit))
        loads[least] += unit.size_bytes
    return [sorted(share) for share in dealt]
