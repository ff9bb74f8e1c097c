"""Ids become rows: exactly, modulo, by a hash, or by a vocabulary; and what an unknown one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.hashing import hash_ids
from erless.dlrm.vocabulary import Vocabulary
from erless.specs.features import ExactIds, FeatureSpec, HashedIds, ModuloIds, VocabularyIds
from erless.specs.model import TableSpec

__all__ = ["IdRows", "OpenFile"]

Array = NDArray[Any]
Rows = NDArray[np.int64]
OpenFile = Callable[[str], Path]  # a file's path in its manifest → where it lies


class IdRows:
    """Turns a feature's ids into rows of its table.

    Args:
        feature: whose ids.
        table: its table.
        open_file: finds a vocabulary's file; it is mapped.

    `exact` is true where ids are rows, those below `most`.

    Raises:
        ArtifactError: the vocabulary is damaged, or does not fit the table.
    """

    def __init__(self, feature: FeatureSpec, table: TableSpec, open_file: OpenFile) -> None:
        self.feature, self.table = feature, table
        rule = feature.rule
        self.exact = isinstance(rule, ExactIds)
        self.most = rule.rows or table.rows if isinstance(rule, ExactIds) else table.rows
        self._vocabulary = (
            Vocabulary.open(open_file(rule.file.path), rule, table.rows)
            if isinstance(rule, VocabularyIds)
            else None
        )

    def rows(self, ids: Array) -> tuple[Array, NDArray[np.bool_] | None]:
        """The row of each of `ids` (n,), and which ids are unknown; None: none of them.

        An unknown id's row is 0, or the row that the feature has for it.
        """
        rule = self.feature.rule
        if isinstance(rule, HashedIds):
            hashes = hash_ids(ids, rule.function, rule.seed)
            return (hashes % np.uint64(rule.rows)).astype(np.int64), None
        if self._vocabulary is not None:
            rows = self._vocabulary.rows(ids)
            return self._settle(rows, rows < 0)
        if isinstance(rule, ModuloIds):
            return ids % rule.rows, None
        return self._settle(ids, _outside(ids, self.most))

    def _settle(
        self, rows: Array, unknown: NDArray[np.bool_] | None
    ) -> tuple[Array, NDArray[np.bool_] | None]:
        if unknown is None or not unknown.any():
            return rows, None
        stand_in = self.feature.unknown if isinstance(self.feature.unknown, int) else 0
        return np.where(unknown, stand_in, rows).astype(np.int64), unknown


def _outside(ids: Array, rows: int) -> NDArray[np.bool_] | None:
    """Which ids are no rows of a table of `rows`; None where all are."""
    if not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < rows):
        return None
    return (ids < 0) | (ids >= rows)
