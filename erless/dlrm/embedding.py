"""Gather-pool over a shard's stored rows, and combine of the partials.

Rows are stored as `erless.dlrm.quantize` writes them. Those of fp32 and fp16 are plain arrays. A
row of int8 or int4 consists of a scale and a bias, both fp16, and then its codes; two codes of int4
share a byte, the first in the low nibble.

A partial is float32 (or float16), in one of two forms:

    dense    (B, W), W = Σ dim of the shard's tables, in their order; an empty bag is zeros
    packed   (Σ dim of the bags that are not empty,), table by table, sample by sample

Who combines partials knows the lengths that it sent, so an empty bag takes no part, whatever the
pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.patches import RowChanges, SlicePatch
from erless.dlrm.pool_call import PoolCall, ShardTables
from erless.dlrm.query_arrays import Floats, Ids, Lengths, as_lengths
from erless.dlrm.row_copies import RowCopy
from erless.dlrm.rows import Home, RowIndex
from erless.errors import ArtifactError
from erless.specs.model import Pooling, TableSpec
from erless.specs.plan import Precision

__all__ = [
    "POOLING_CODES",
    "PRECISION_CODES",
    "Combiner",
    "EmbeddingShard",
    "StoredSlice",
    "check_stored",
    "default_partial",
    "stored_dtype",
    "stored_width",
]

Float16s = NDArray[np.float16]

PRECISION_CODES = {
    Precision.FP32: _kernels.PRECISION_FP32,
    Precision.FP16: _kernels.PRECISION_FP16,
    Precision.INT8: _kernels.PRECISION_INT8,
    Precision.INT4: _kernels.PRECISION_INT4,
}
POOLING_CODES = {
    Pooling.SUM: _kernels.POOLING_SUM,
    Pooling.MAX: _kernels.POOLING_MAX,
    Pooling.WEIGHTED_SUM: _kernels.POOLING_WEIGHTED,
    Pooling.MEAN: _kernels.POOLING_MEAN,
}


def stored_dtype(precision: Precision) -> np.dtype[Any]:
    """The dtype of the array that stores rows."""
    names = {Precision.FP32: "<f4", Precision.FP16: "<f2"}
    return np.dtype(names.get(precision, "|u1"))


def stored_width(precision: Precision, dim: int) -> int:
    """Elements of one stored row: the second dimension of the array that stores rows.

    >>> [stored_width(precision, 33) for precision in Precision]
    [33, 33, 37, 21]
    """
    return precision.row_bytes(dim) // stored_dtype(precision).itemsize


@dataclass(frozen=True)
class StoredSlice:
    """The rows of one table that one shard stores.

    Args:
        table: the whole table's shape and pooling.
        precision: how `rows` are stored.
        rows: (stored, `stored_width`) of `stored_dtype`, by ascending row id.
        index: row id → position in `rows`.
        patch: rows that differ, where generations changed some; the table may have more rows then
            than the index.

    Raises:
        ArtifactError: rows, index and table do not fit together.
    """

    table: TableSpec
    precision: Precision
    rows: NDArray[Any]
    index: RowIndex
    patch: SlicePatch | None = None

    def __post_init__(self) -> None:
        shape = (self.index.stored, stored_width(self.precision, self.table.dim))
        dtype = stored_dtype(self.precision)
        if self.rows.shape != shape or self.rows.dtype != dtype:
            raise ArtifactError(
                f"table {self.table.name}: its stored rows have shape {self.rows.shape} of "
                f"{self.rows.dtype}, expected {shape} of {dtype}"
            )
        rows = self.index.rows if self.patch is None else self.patch.table_rows
        if rows != self.table.rows:
            raise ArtifactError(
                f"table {self.table.name} has {self.table.rows:,} rows, "
                f"its index {self.index.rows:,}"
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return int(self.rows.shape[1] * self.rows.itemsize)

    def changed(self, changes: RowChanges) -> StoredSlice:
        """This slice with changed rows beside its own.

        Raises:
            ArtifactError: an id is not this slice's, or rows have another shape or dtype.
        """
        try:
            check_stored(changes, self.precision, self.table.dim)
            before = self.patch or SlicePatch.none(self.table.rows)
            patch = before.changed(self.index, changes)
        except ArtifactError as error:
            raise ArtifactError(f"table {self.table.name}: {error}") from error
        table = self.table.model_copy(update={"rows": changes.table_rows})
        return replace(self, table=table, patch=patch)

    @property
    def rewritten_bytes(self) -> int:
        """Memory that `rewritten` takes."""
        changed = self.patch is not None and bool((self.patch.keys >= 0).any())
        return self.rows.nbytes if changed else 0

    def rewritten(self, copy: RowCopy | None = None) -> StoredSlice:
        """The same rows in a copy of all of them, those that differ in the places of the release's.

        Args:
            copy: of an earlier state, which nobody looks up any more; otherwise one is made.
        """
        if self.patch is None or not self.rewritten_bytes:
            return self
        rows = (copy or RowCopy(self.rows)).bring(self.patch)
        added = self.patch.added()
        grown = added.table_rows > self.index.rows
        return replace(self, rows=rows, patch=added if grown else None)


def check_stored(changes: RowChanges, precision: Precision, dim: int) -> None:
    """Raise ArtifactError unless the rows of `changes` are stored as those of a slice."""
    shape, dtype = (len(changes.ids), stored_width(precision, dim)), stored_dtype(precision)
    if changes.rows.shape != shape or changes.rows.dtype != dtype:
        raise ArtifactError(
            f"changed rows have shape {changes.rows.shape} of {changes.rows.dtype}, expected "
            f"{shape} of {dtype}"
        )


class EmbeddingShard:
    """The slices of one shard, ready to answer. Arrays may be memory-mapped; they are not copied.

    Args:
        slices: in the order of the shard's lengths.
        name: for error messages.
    """

    def __init__(self, slices: Sequence[StoredSlice], name: str = "this shard") -> None:
        self.name = name
        self.slices = tuple(slices)
        self.shape = ShardTables([stored.table for stored in slices], name)
        self.tables, self.width = self.shape.tables, self.shape.width
        self.has_weights = self.shape.has_weights

    @cached_property
    def _pooler(self) -> _kernels.Pooler:
        """Made when it is first needed: of a shard whose rows are rewritten it never is."""
        return _kernels.Pooler(
            tuple(
                (
                    np.ascontiguousarray(stored.rows).reshape(-1).view(np.uint8),
                    stored.index.blocks,
                    stored.table.rows,
                    stored.table.dim,
                    PRECISION_CODES[stored.precision],
                    POOLING_CODES[stored.table.pooling],
                    stored.patch.kernel(stored.row_bytes, len(stored.rows))
                    if stored.patch
                    else None,
                    stored.index.rows,
                )
                for stored in self.slices
            )
        )

    def pool(self, values: Ids, lengths: Lengths, weights: Floats | None = None) -> Floats:
        """Pool a query into the dense partial (B, W).

        It holds sums or maxima. Those of mean pooling are sums too, which the combiner divides.

        Args:
            values: (n,) original row ids, table-major.
            lengths: (tables of the shard, B).
            weights: (n,) float32; needed where a table pools by weighted sum.

        Raises:
            QueryError: naming table, sample and value of what does not fit.
        """
        return self.begin(self.shape.dense(values, lengths, weights))

    def pool_packed(
        self,
        values: Ids,
        lengths: Lengths,
        weights: Floats | None = None,
        bags: NDArray[np.int32] | None = None,
    ) -> Floats:
        """Pool a query into the packed partial. Arguments and errors are those of `pool`.

        Args:
            bags: how many each table has, where `lengths` is flat.
        """
        return self.begin(self.shape.packed(values, lengths, weights, bags))

    def fast_path(
        self,
        heads: tuple[bytes, ...],
        requests: tuple[bytes, ...],
        answers: tuple[bytes, ...],
        max_batch: int,
        max_body_bytes: int,
        longest_ms: int,
    ) -> _kernels.FastPath:
        """Build what turns requests into answers, `pool_packed` included.

        The forms are those of `erless.serve.protocol.fast_lane`. A shard with weighted-sum pooling
        answers none, since no form has weights.
        """
        return _kernels.FastPath(
            self._pooler, heads, requests, answers, max_batch, max_body_bytes, longest_ms
        )

    def grown(self, rows: Mapping[str, int]) -> EmbeddingShard:
        """This shard where its tables have `rows` (by name), none of the added ones being here."""
        if all(part.table.rows == rows[part.table.name] for part in self.slices):
            return self
        nothing = np.empty(0, np.int64)
        return self.changed(
            {
                part.table.name: RowChanges(nothing, part.rows[:0], rows[part.table.name])
                for part in self.slices
            }
        )

    def changed(self, changes: Mapping[str, RowChanges]) -> EmbeddingShard:
        """This shard with changed rows, by table. Errors as `StoredSlice.changed`."""
        self.shape.check_holds(changes)
        slices = [
            part.changed(changes[part.table.name]) if part.table.name in changes else part
            for part in self.slices
        ]
        return EmbeddingShard(slices, self.name)

    @property
    def rewritten_bytes(self) -> int:
        """Memory that `rewritten` takes; 0: it would be the shard itself."""
        return sum(part.rewritten_bytes for part in self.slices)

    def rewritten(self, copies: dict[int, RowCopy] | None = None) -> EmbeddingShard:
        """The same shard, changed rows in the places of the release's, in copies of its rows.

        Args:
            copies: by number of the slice those of an earlier state, which nobody looks up any
                more. What is missing is made, and put there.
        """
        copies = {} if copies is None else copies
        slices = list(self.slices)
        for number, part in enumerate(slices):
            if part.rewritten_bytes:
                copy = copies.get(number) or RowCopy(part.rows)
                slices[number] = part.rewritten(copy)
                copies[number] = copy
        return EmbeddingShard(slices, self.name)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All that lies in memory: the release's rows, and what generations changed."""
        patches = [part.patch for part in self.slices if part.patch]
        changed = [array for patch in patches for array in patch.arrays]
        return (*(part.rows for part in self.slices), *changed)

    def homes(self, shard: int) -> list[Home]:
        """What `Routing` needs to find each slice's rows here, in the shard numbered `shard`."""
        return [Home(shard, self._pooler, number) for number in range(len(self.slices))]

    def begin(self, call: PoolCall) -> Floats:
        """The answer to `call`, at once. Errors as `pool`."""
        return self.shape.answer(call, self._pooler.pool(*call.arguments))


class Combiner:
    """Turns the partials of all shards into pooled vectors (B, T, D).

    D is the largest dim; vectors of other dims are filled up with zeros.

    Args:
        tables: the model's, in order.
        holdings: per shard the indexes of its tables, as `Routing.holdings`.

    Use: `out = begin(B)`, `keep` what lies here and `add` each shard's partial, in any order,
    `finish(out, lengths)`.
    """

    def __init__(self, tables: Sequence[TableSpec], holdings: Sequence[Sequence[int]]) -> None:
        self.tables = tuple(tables)
        self.dim = max(table.dim for table in tables)
        places = [
            (index * self.dim, table.dim, POOLING_CODES[table.pooling], len(tables) * self.dim)
            for index, table in enumerate(tables)
        ]
        self._places = np.array(places, np.int64)
        self._held = tuple(np.ascontiguousarray(self._places[list(held)]) for held in holdings)

    def begin(self, batch: int) -> Floats:
        """An empty accumulator for `batch` samples."""
        out = np.empty((batch, len(self.tables), self.dim), np.float32)
        _kernels.combine_begin(batch, out, self._places)
        return out

    def add(
        self,
        out: Floats,
        shard: int,
        partial: Floats | Float16s,
        lengths: Lengths,
        *,
        packed: bool = False,
    ) -> None:
        """Add the partial that `shard` answered for `lengths` (its tables, B).

        Raises:
            ValueError: the partial does not have the size that `lengths` asks for.
        """
        places = self._held[shard]
        _kernels.combine(len(out), out, places, as_lengths(lengths), partial, packed)

    def keep(self, out: Floats, split: _kernels.Split) -> None:
        """Add the rows that `Routing.bucketize` found in this process."""
        split.pool(out, self._places)

    def places(self, shard: int) -> NDArray[np.int64]:
        """(tables of `shard`, 4): where its sums go, dim, pooling, floats from sample to sample."""
        return self._held[shard]

    def finish(self, out: Floats, lengths: Lengths) -> Floats:
        """Divide means by `lengths` (T, B) of the whole query; bags without a row become zero."""
        _kernels.combine_end(len(out), out, self._places, as_lengths(lengths))
        return out


def default_partial(
    tables: Sequence[TableSpec],
    defaults: Sequence[Floats],
    lengths: Lengths,
    weights: Floats | None = None,
    bags: NDArray[np.int32] | None = None,
) -> Floats:
    """Make the packed partial of a shard that did not answer, of default vectors instead of rows.

    Args:
        tables: the shard's.
        defaults: per table of the shard its default vector (dim,).
        lengths: (tables of the shard, B), or flat.
        weights: (n,) of the ids that the shard would have got.
        bags: how many each table has, where `lengths` is flat.
    """
    begins = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=begins[1:])
    counts = [lengths.shape[1]] * len(tables) if bags is None or lengths.ndim == 2 else bags
    flat, parts, at = lengths.reshape(-1), [], 0
    for table, default, count in zip(tables, defaults, counts, strict=True):
        mine = flat[at : at + count]
        factor = mine.astype(np.float32)
        if table.pooling is Pooling.MAX:
            factor = np.minimum(factor, 1)
        elif table.pooling is Pooling.WEIGHTED_SUM and weights is not None:
            running = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])
            factor = np.diff(running[begins[at : at + count + 1]]).astype(np.float32)
        parts.append((factor[mine > 0, None] * default.astype(np.float32)).reshape(-1))
        at += int(count)
    return np.concatenate(parts)
