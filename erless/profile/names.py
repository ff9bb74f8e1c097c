"""What the columns of a log are called: tables, or the features that read them.

A feature's ids become rows by its own rule, as a gateway applies it; a table's are rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from erless.dlrm.id_rules import IdRows
from erless.errors import LogError
from erless.profile.logs import AccessLog, Chunk
from erless.specs.features import ExactIds
from erless.specs.model import ModelSpec

__all__ = ["LogNames"]


class LogNames:
    """The names that a log of `model`, whose bundle is at `folder`, may have.

    `rows` are the rows of each name's table, for readers; `table_rows` those of each table.
    """

    def __init__(self, model: ModelSpec, folder: Path) -> None:
        tables = {table.name: table for table in model.tables}
        self._tables = {name: name for name in tables}
        self._tables |= {feature.name: feature.table for feature in model.features}
        self._rules = {
            feature.name: IdRows(feature, tables[feature.table], folder.joinpath)
            for feature in model.features
            if not isinstance(feature.rule, ExactIds) or feature.unknown != "reject"
        }
        self.table_rows = {name: table.rows for name, table in tables.items()}
        names = [*(feature.name for feature in model.features), *tables]
        self.rows = {name: tables[self._tables[name]].rows for name in names}

    def tables(self, names: Iterable[str]) -> set[str]:
        """The tables of those names."""
        return {self._tables[name] for name in names}

    def resolve(self, chunk: Chunk, log: AccessLog) -> Chunk:
        """`chunk` with the rows of a table.

        Raises:
            LogError: an id that is no row, and nothing stands in for it.
        """
        table, rows = self._tables[chunk.table], self.rows[chunk.table]
        rule = self._rules.get(chunk.table)
        if rule is None:
            _check_rows(chunk, rows, table, log.path)
            return Chunk(table, chunk.ids, chunk.locate, chunk.counts)
        ids, unknown = rule.rows(chunk.ids)
        counts = chunk.counts
        if unknown is not None:
            feature = rule.feature
            if feature.unknown == "reject":
                position = int(np.flatnonzero(unknown)[0])
                raise LogError(
                    f"{log.path}: {chunk.locate(position)}: feature {feature.name} does not know "
                    f"id {chunk.ids[position]}"
                )
            if not isinstance(feature.unknown, int):
                ids, counts = ids[~unknown], None if counts is None else counts[~unknown]
        return Chunk(table, ids, chunk.locate, counts)


def _check_rows(chunk: Chunk, rows: int, table: str, path: Path) -> None:
    """Every id must be a row of its table."""
    ids = chunk.ids
    if not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < rows):
        return
    position = int(np.flatnonzero((ids < 0) | (ids >= rows))[0])
    raise LogError(
        f"{path}: {chunk.locate(position)}: id {int(ids[position])} is outside table "
        f"{table}, whose rows are 0 … {rows - 1}"
    )
