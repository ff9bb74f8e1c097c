"""A query as a shard's kernels pool it: checked arrays, and the array that its answer goes to.

Shards whose rows lie in memory (`erless.dlrm.embedding`) and shards whose rows lie on a disk
(`erless.dlrm.disk`) take the same queries and give the same answers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.query_arrays import (
    Floats,
    Ids,
    Lengths,
    as_ids,
    as_lengths,
    as_weights,
    check_weights,
    query_error,
)
from erless.errors import ArtifactError, QueryError
from erless.specs.model import Pooling, TableSpec

__all__ = ["PoolCall", "ShardTables"]


@dataclass(frozen=True, slots=True)
class PoolCall:
    """The arguments of the kernels' `pool` and `begin`.

    Args:
        out: what they fill in: (B, width), or flat where the answer is packed.
        columns: where each table's vectors begin in a row of `out`; None: packed.
        begins: (tables + 1,) where each table's bags begin; None: all have as many.
    """

    values: Ids
    weights: Floats | None
    lengths: Lengths
    out: Floats
    columns: NDArray[np.int64] | None
    begins: NDArray[np.int64] | None

    @property
    def arguments(
        self,
    ) -> tuple[
        Ids, Floats | None, Lengths, Floats, NDArray[np.int64] | None, NDArray[np.int64] | None
    ]:
        """In the kernels' order."""
        return (self.values, self.weights, self.lengths, self.out, self.columns, self.begins)


class ShardTables:
    """The tables of one shard: which queries they take.

    Args:
        tables: in the order of the shard's lengths.
        name: of the shard, for error messages.
    """

    def __init__(self, tables: Sequence[TableSpec], name: str) -> None:
        self.tables, self.name = tuple(tables), name
        self.width = sum(table.dim for table in tables)
        self._columns = np.cumsum([0, *(table.dim for table in tables)])[:-1]
        self._dims = np.array([table.dim for table in tables], np.int64)

    def check_holds(self, names: Collection[str]) -> None:
        """Raise ArtifactError where one of `names` is none of the shard's tables."""
        strange = set(names) - {table.name for table in self.tables}
        if strange:
            raise ArtifactError(f"{self.name} has no table {min(strange)}")

    def dense(self, values: Ids, lengths: Lengths, weights: Floats | None) -> PoolCall:
        """The call that answers (B, width). Arguments and errors as `EmbeddingShard.pool`."""
        values, lengths, weights = self._check(values, lengths, weights)
        out = np.empty((lengths.shape[1], self.width), np.float32)
        return PoolCall(values, weights, lengths, out, self._columns, None)

    def packed(
        self,
        values: Ids,
        lengths: Lengths,
        weights: Floats | None,
        bags: NDArray[np.int32] | None,
    ) -> PoolCall:
        """The call that answers packed. Arguments and errors as `EmbeddingShard.pool_packed`."""
        if bags is not None and lengths.ndim == 1:
            return self._ragged(values, lengths, weights, bags)
        values, lengths, weights = self._check(values, lengths, weights)
        out = np.empty(lengths.shape[1] * self.width, np.float32)
        return PoolCall(values, weights, lengths, out, None, None)

    def _ragged(
        self,
        values: Ids,
        lengths: Lengths,
        weights: Floats | None,
        bags: NDArray[np.int32],
    ) -> PoolCall:
        values, lengths, weights = as_ids(values), as_lengths(lengths), as_weights(weights, values)
        if len(bags) != len(self.tables) or bags.min() < 0 or int(bags.sum()) != len(lengths):
            raise QueryError(
                f"bags {bags.tolist()} do not sum to the {len(lengths):,} lengths of "
                f"{len(self.tables)} tables"
            )
        begins = np.concatenate([[0], np.cumsum(bags, dtype=np.int64)])
        filled = np.add.reduceat(np.append(lengths > 0, 0), begins[:-1]) * (bags > 0)
        out = np.empty(int(filled @ self._dims), np.float32)
        return PoolCall(values, weights, lengths, out, None, begins)

    def _check(
        self, values: Ids, lengths: Lengths, weights: Floats | None
    ) -> tuple[Ids, Lengths, Floats | None]:
        values, lengths, weights = as_ids(values), as_lengths(lengths), as_weights(weights, values)
        if lengths.ndim != 2 or len(lengths) != len(self.tables):
            raise QueryError(
                f"lengths has shape {lengths.shape}, expected ({len(self.tables)}, B): "
                f"{self.name} holds {', '.join(table.name for table in self.tables)}"
            )
        return values, lengths, weights

    def answer(self, call: PoolCall, written: int | tuple[int, int, int, int, int]) -> Floats:
        """What the kernels made of `call`: `written` is what they returned.

        Raises:
            QueryError: naming table, sample and value of what does not fit.
        """
        if isinstance(written, tuple):
            raise query_error(written, self.tables, self.name)
        if call.weights is not None and call.begins is None:
            check_weights(self.tables, call.weights, call.lengths)
        return call.out if call.columns is not None else call.out[:written]

    @property
    def has_weights(self) -> bool:
        """Whether a table pools by weighted sum."""
        return any(table.pooling is Pooling.WEIGHTED_SUM for table in self.tables)
