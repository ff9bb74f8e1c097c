"""Row id → shard, local index: the only definition.

`Routing` turns row ids into shards, for the gateway. `RowIndex` turns row ids into local indexes,
for the function that stores the rows; local order is ascending row id. Ranks, which plans refer to,
are turned into row ids by `erless.pack.ranks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
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
from erless.errors import ArtifactError, PlanError, QueryError
from erless.specs.model import TableSpec
from erless.specs.routes import TableRoute

__all__ = [
    "INDEX_ROWS",
    "MAX_SHARDS",
    "Bucket",
    "Buckets",
    "Home",
    "Ids",
    "Routing",
    "RowIndex",
    "index_blocks",
]

CHUNK_ROWS = 1 << 20  # ids in memory at a time: 8 MB
INDEX_ROWS = _kernels.INDEX_ROWS  # rows per block of the index
INDEX_WORDS = _kernels.INDEX_WORDS
MAX_SHARDS = _kernels.MAX_SHARDS


class RowIndex:
    """Turns row ids into local indexes of the rows of one table that one shard stores.

    It is a bitmap with a rank per block of 192 rows: 0.167 byte per row of the table. The local
    index of a row is the number of stored rows with a smaller id.

    Args:
        rows: rows of the whole table.
        blocks: (ceil(rows / 192), 4) uint64 as written by `array`, or (0, 4): every row is stored.

    Raises:
        ArtifactError: `blocks` does not fit a table of `rows` rows.

    >>> RowIndex.build(10, np.array([7, 2, 3])).local(np.array([2, 3, 4, 7])).tolist()
    [0, 1, -1, 2]
    """

    def __init__(self, rows: int, blocks: NDArray[np.uint64]) -> None:
        shape = (_blocks(rows), INDEX_WORDS)
        if blocks.dtype != np.uint64 or blocks.shape not in (shape, (0, INDEX_WORDS)):
            raise ArtifactError(
                f"the row index has shape {blocks.shape} of {blocks.dtype}, "
                f"expected {shape} of uint64"
            )
        self.rows = rows
        # Behind rows of an odd size a mapped index is not aligned; the kernels read whole words.
        self.blocks = None if len(blocks) == 0 else np.require(blocks, requirements=["C", "A"])
        self.stored = rows
        if self.blocks is not None:
            last = self.blocks[-1]
            self.stored = int(last[0] >> np.uint64(16)) + int(np.bitwise_count(last[1:]).sum())

    @classmethod
    def build(cls, rows: int, ids: Ids | Iterable[Ids]) -> RowIndex:
        """Index the distinct `ids`, an array or chunks of it, in any order.

        Raises:
            PlanError: an id is outside the table.
        """
        blocks = np.zeros((_blocks(rows), INDEX_WORDS), np.uint64)
        for chunk in [ids] if isinstance(ids, np.ndarray) else ids:
            bad = _kernels.index_mark(blocks, rows, as_ids(chunk))
            if bad >= 0:
                raise PlanError(f"row id {int(chunk[bad])} is outside 0 … {rows - 1}")
        if _kernels.index_rank(blocks) == rows:
            blocks = blocks[:0]
        return cls(rows, blocks)

    @property
    def array(self) -> NDArray[np.uint64]:
        """The array to store: `RowIndex(rows, array)` is this index again."""
        return np.empty((0, INDEX_WORDS), np.uint64) if self.blocks is None else self.blocks

    def local(self, ids: Ids) -> NDArray[np.int64]:
        """Local index of each id, -1 where the shard does not store the row.

        Raises:
            QueryError: an id is outside the table.
        """
        ids = as_ids(ids)
        local_ids = np.empty(len(ids), np.int64)
        bad, _ = _kernels.index_find(self.blocks, self.rows, ids, local_ids)
        if bad >= 0:
            raise QueryError(f"row id {int(ids[bad])} is outside 0 … {self.rows - 1}")
        return local_ids

    def ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row ids of local indexes `start` … `stop - 1`: ascending.

        Raises:
            IndexError: beyond the stored rows.
        """
        if not 0 <= start <= stop <= self.stored:
            raise IndexError(f"local {start} … {stop - 1} are not all in 0 … {self.stored - 1}")
        if self.blocks is None or start == stop:
            return np.arange(start, stop)
        ranks = self.blocks[:, 0]
        keys = np.array([start, stop - 1], np.uint64) << np.uint64(16) | np.uint64(0xFFFF)
        first, last = (int(block) - 1 for block in np.searchsorted(ranks, keys, side="right"))
        words = np.ascontiguousarray(self.blocks[first : last + 1, 1:]).astype("<u8", copy=False)
        rows = np.flatnonzero(np.unpackbits(words.reshape(-1).view(np.uint8), bitorder="little"))
        begin = start - int(ranks[first] >> np.uint64(16))
        return rows[begin : begin + stop - start] + first * INDEX_ROWS

    def chunks(self, chunk_rows: int = CHUNK_ROWS) -> Iterator[NDArray[np.int64]]:
        """All stored row ids, ascending, at most `chunk_rows` at a time."""
        for begin in range(0, self.stored, chunk_rows):
            yield self.ids(begin, min(self.stored, begin + chunk_rows))


def index_blocks(rows: int, ids: Ids, stored_before: int = 0) -> NDArray[np.uint64]:
    """Index a stretch of `rows` rows of a table that begins at a multiple of 192.

    Args:
        rows: rows of the stretch.
        ids: the distinct ones that are stored, from the stretch's begin, in any order.
        stored_before: rows stored before the stretch.

    Returns:
        (ceil(rows / 192), 4) uint64; those of consecutive stretches make up the table's index.

    Raises:
        PlanError: an id is outside the stretch.
    """
    blocks = np.zeros((_blocks(rows), INDEX_WORDS), np.uint64)
    bad = _kernels.index_mark(blocks, rows, as_ids(ids))
    if bad >= 0:
        raise PlanError(f"row id {int(ids[bad])} is outside 0 … {rows - 1}")
    _kernels.index_rank(blocks)
    blocks[:, 0] += np.uint64(stored_before) << np.uint64(16)
    return blocks


def _blocks(rows: int) -> int:
    return -(-rows // INDEX_ROWS)


class Bucket(NamedTuple):
    """The part of a query that goes to one shard: read-only views, C-contiguous.

    `lengths` is (tables of the shard, bags), in the order of `Routing.holdings[shard]`; where
    tables differ in bags it is flat, and `Buckets.bags` says how many each has.
    """

    values: Ids
    lengths: Lengths
    weights: Floats | None


class Home(NamedTuple):
    """Where a table's rows lie in this process: in slice `slice` of the shard numbered `shard`."""

    shard: int
    pooler: _kernels.Pooler
    slice: int


# starts, lengths, values, weights, bag_starts
_Arrays = tuple[NDArray[np.int64], Lengths, Ids, Floats | None, NDArray[np.int64]]


class Buckets:
    """A query's ids by shard; inside a shard they are table-major, and bags are in order.

    Ids are int32 where all tables' ids fit. `kept` of them lie in their table's home, and no shard
    gets them.

    Args:
        split: the ids by shard, as the kernels hold them.
        batch: samples B, where all tables have as many bags.
        ragged: shard → the bags of each of its tables, where not.
    """

    __slots__ = ("_arrays", "_ragged", "batch", "split")

    def __init__(
        self,
        split: _kernels.Split,
        batch: int,
        ragged: Callable[[int], NDArray[np.int32]] | None = None,
    ) -> None:
        self.split, self.batch, self._ragged = split, batch, ragged
        self._arrays: _Arrays | None = None

    @property
    def kept(self) -> int:
        """Ids whose rows lie at home."""
        return self.split.kept

    def touched(self) -> tuple[int, ...]:
        """The shards that get at least one id."""
        return self.split.touched()

    def gathers(self, shard: int) -> int:
        """Ids that `shard` gets."""
        return len(self[shard].values)

    def __getitem__(self, shard: int) -> Bucket:
        starts, lengths, values, weights, bag_starts = self._views()
        span = slice(starts[shard], starts[shard + 1])
        shard_lengths = lengths[bag_starts[shard] : bag_starts[shard + 1]]
        bags = self.bags(shard)
        if bags is None:
            shard_lengths = (
                shard_lengths.reshape(-1, self.batch) if self.batch else shard_lengths.reshape(0, 0)
            )
        elif (bags == bags[0]).all():
            shard_lengths = shard_lengths.reshape(len(bags), -1)
        return Bucket(values[span], shard_lengths, None if weights is None else weights[span])

    @property
    def ragged(self) -> bool:
        """Whether the tables are lanes."""
        return self._ragged is not None

    def bags(self, shard: int) -> NDArray[np.int32] | None:
        """How many bags each table of `shard` has; None: all have as many as there are samples."""
        return None if self._ragged is None else self._ragged(shard)

    def _views(self) -> _Arrays:
        if self._arrays is None:
            starts, lengths, values, weights, bag_starts = self.split.arrays()
            ids: Ids = np.frombuffer(values, np.int32)
            if self.split.wide:
                ids = np.frombuffer(values, np.int64)
            self._arrays = (
                np.frombuffer(starts, np.int64),
                np.frombuffer(lengths, np.int32),
                ids,
                None if weights is None else np.frombuffer(weights, np.float32),
                np.frombuffer(bag_starts, np.int64),
            )
        return self._arrays


class Routing:
    """Turns row ids into shards for every table, and splits queries by shard.

    Args:
        tables: the model's, in order.
        routes: per table the shard of each row; beside a home, of the rows that are not there.
        holdings: per shard the indexes of the tables it stores rows of, ascending.
        homes: per table None, or where its rows lie in this process. That index is searched first;
            most ids are in it, so that only the others need routing.
        names: what errors call each table, where it is a lane (`erless.dlrm.lanes`).

    Raises:
        ArtifactError: a route does not fit its table, or there are too many shards.
    """

    def __init__(
        self,
        tables: Sequence[TableSpec],
        routes: Sequence[TableRoute],
        holdings: Sequence[Sequence[int]],
        homes: Sequence[Home | None] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.tables, self._names = tuple(tables), names
        self.holdings = tuple(tuple(indexes) for indexes in holdings)
        if len(routes) != len(self.tables):
            raise ArtifactError(f"{len(routes)} routes for {len(self.tables)} tables")
        if not 0 < len(self.holdings) <= MAX_SHARDS:
            raise ArtifactError(f"{len(self.holdings)} shards, allowed are 1 … {MAX_SHARDS}")
        for table, route in zip(self.tables, routes, strict=True):
            if route.rows != table.rows:
                raise ArtifactError(
                    f"table {table.name}: its routing is of {route.rows:,} rows, expected "
                    f"{table.rows:,}"
                )
        slots = np.full((len(self.holdings), len(self.tables)), -1, np.int32)
        for shard, indexes in enumerate(self.holdings):
            slots[shard, list(indexes)] = np.arange(len(indexes))
        widths = np.array([len(indexes) for indexes in self.holdings], np.int64)
        at_home = tuple(homes) if homes is not None and any(homes) else None
        try:
            self._router = _kernels.Router(
                tuple((r.codes, r.bits, r.rows, bytes(r.holders)) for r in routes),
                slots,
                widths,
                at_home,
            )
        except ValueError as error:
            raise ArtifactError(f"routing and shards do not fit together: {error}") from error
        self._grouped: dict[int, NDArray[np.int64]] = {}

    def repatched(self, homes: Sequence[Home | None]) -> Routing:
        """The same routing, with rows at home that are patched otherwise (`SlicePatch`).

        Args:
            homes: per table, as many and as large as those of this routing.

        Raises:
            ArtifactError: they are others.
        """
        other = copy(self)
        try:
            other._router = self._router.repatched(tuple(homes))
        except ValueError as error:
            raise ArtifactError(f"routing and shards do not fit together: {error}") from error
        return other

    def bucketize(self, values: Ids, lengths: Lengths, weights: Floats | None = None) -> Buckets:
        """Sort a query's ids by shard, keeping the order of bags: one pass to count, one to place.

        Rows at home are looked up on the way; `Combiner.keep` adds them to the query's result.

        Args:
            values: (n,) row ids, table-major, int32 or int64.
            lengths: (T, B) ids per bag.
            weights: (n,) float32, carried along.

        Raises:
            QueryError: lengths and values disagree, or an id is not a row of its table; names
                table, sample and value.
        """
        values, lengths, weights = as_ids(values), as_lengths(lengths), as_weights(weights, values)
        if lengths.ndim != 2 or len(lengths) != len(self.tables):
            raise QueryError(
                f"lengths has shape {lengths.shape}, expected ({len(self.tables)} tables, B)"
            )
        split = self._router.bucketize(values, weights, lengths, None)
        if isinstance(split, tuple):
            raise query_error(split, self.tables)
        if weights is not None:
            check_weights(self.tables, weights, lengths)
        return Buckets(split, lengths.shape[1])

    def bucketize_lanes(
        self, values: Ids, lengths: Lengths, begins: NDArray[np.int64], weights: Floats | None
    ) -> Buckets:
        """`bucketize` where the tables are lanes, which differ in bags or share a table.

        Args:
            values, weights: (n,), lane by lane.
            lengths: of all bags, lane by lane.
            begins: (lanes + 1,) where each lane's bags begin.

        Raises:
            QueryError: as `bucketize`; names the feature.
        """
        split = self._router.bucketize(as_ids(values), weights, as_lengths(lengths), begins)
        if isinstance(split, tuple):
            raise query_error(split, self.tables, names=self._names)
        counts = np.diff(begins)
        return Buckets(split, 0, lambda shard: self._bags(shard, counts))

    def _bags(self, shard: int, counts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Bags of each table of `shard`: those of its lanes together."""
        lanes = list(self.holdings[shard])
        if shard not in self._grouped:
            names = [self.tables[lane].name for lane in lanes]
            first = [at for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
            self._grouped[shard] = np.array(first, np.int64)
        return np.add.reduceat(counts[lanes], self._grouped[shard]).astype(np.int32)
