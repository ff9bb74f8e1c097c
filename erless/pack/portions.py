"""A pack cut into portions that processes, or pods, make on their own.

    1. cut: each portion is whole tables, or a range of one table's rows, read once
    2. join: the pieces of tables that were cut in ranges become slices
    3. the packer writes what is left, and the release's manifest last

Portions follow from the inputs and `PortionSizes` alone, so that everybody numbers them alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from erless.errors import OptionError, StoreError
from erless.pack.inputs import PackInputs, PackSlice
from erless.pack.keys import Keys
from erless.pack.pieces import Piece, cut_range, join_pieces, piece_key
from erless.pack.table import PackedSlice, pack_table
from erless.progress import Progress
from erless.storage.store import Store

__all__ = ["PackStep", "Portion", "PortionRunner", "PortionSizes", "Portions", "make_portion"]

T = TypeVar("T")

MIB = 1 << 20
LEAST_USUAL_BYTES = 128 * MIB  # of a table's rows: starting a process takes longer than less
LEAST_SPLIT_BYTES = 1024 * MIB  # joining writes the rows once more
THREADS = 4  # that one process keeps busy at most: its busiest takes a quarter of the CPU time


class PackStep(StrEnum):
    """What is done with a portion, in this order."""

    CUT = "cut"
    JOIN = "join"


@dataclass(frozen=True)
class PortionSizes:
    """Bytes of source rows: small tables are gathered to `usual`, larger than `split` are cut."""

    usual_bytes: int
    split_bytes: int

    @classmethod
    def for_workers(cls, inputs: PackInputs, workers: int) -> PortionSizes:
        """So that `workers` processes of one machine end at about the same time.

        A table is not cut where one process makes all its slices before others are done with the
        rest: cutting has its rows hashed three times and written twice.
        """
        total = sum(table.table_bytes for table in inputs.model.tables)
        return cls(
            usual_bytes=max(LEAST_USUAL_BYTES, total // (4 * workers)),
            split_bytes=max(LEAST_SPLIT_BYTES, THREADS * total // workers),
        )


class RowRange(NamedTuple):
    """Rows of one table, all or a range, and the slices that they go to."""

    slices: tuple[PackSlice, ...]
    rows: range

    @property
    def whole(self) -> bool:
        """Whether these are all rows of the table."""
        return len(self.rows) == self.slices[0].table.rows


class Portion(NamedTuple):
    """What one worker does: rows to cut, or slices to join. `size_bytes` of source rows."""

    size_bytes: int
    rows: tuple[RowRange, ...] = ()
    slices: tuple[PackSlice, ...] = ()


class Portions:
    """All portions of a pack.

    Args:
        inputs: what is packed.
        sizes: how large portions should be.
    """

    def __init__(self, inputs: PackInputs, sizes: PortionSizes) -> None:
        self._inputs = inputs
        by_table: dict[int, list[PackSlice]] = {}
        for part in inputs.slices:
            by_table.setdefault(part.table_number, []).append(part)
        self._ranges = [
            list(_ranges(tuple(slices), inputs.window_rows, sizes.split_bytes))
            for slices in by_table.values()
        ]
        cuts = [rows for ranges in self._ranges for rows in ranges]
        joins = [part for ranges in self._ranges if len(ranges) > 1 for part in ranges[0].slices]
        self._of = {
            PackStep.CUT: tuple(
                Portion(sum(map(_bytes, group)), rows=tuple(group))
                for group in _gathered(cuts, _bytes, sizes.usual_bytes)
            ),
            PackStep.JOIN: tuple(
                Portion(sum(map(_slice_bytes, group)), slices=tuple(group))
                for group in _gathered(joins, _slice_bytes, sizes.usual_bytes)
            ),
        }

    def of(self, step: PackStep) -> tuple[Portion, ...]:
        """The portions of `step`, in the order of their numbers."""
        return self._of[step]

    def pieces(self, part: PackSlice) -> list[str]:
        """The keys of the pieces of `part`, in the order of rows."""
        ranges = next(ranges for ranges in self._ranges if part in ranges[0].slices)
        return [piece_key(part, each.rows) for each in ranges]

    def keys(self, portion: Portion) -> list[str]:
        """The keys of all that `portion` makes, and of the slices that its pieces are for."""
        made = [part.key for part in portion.slices]
        for each in portion.rows:
            made += [part.key for part in each.slices]
            if not each.whole:
                made += [piece_key(part, each.rows) for part in each.slices]
        return made

    def is_made(self, portion: Portion, keys: Keys) -> bool:
        """Whether `keys` has all of the portion, or what it is for."""
        return not any(_lacking(each, keys) for each in portion.rows) and all(
            part.key in keys for part in portion.slices
        )

    def cut_tables(self, keys: Keys) -> list[int]:
        """The numbers of the tables that are cut in ranges of which some are to be read yet."""
        return [
            ranges[0].slices[0].table_number
            for ranges in self._ranges
            if len(ranges) > 1 and any(_lacking(each, keys) for each in ranges)
        ]

    def keys_of(self, table_number: int) -> list[str]:
        """The keys of all slices and pieces of a table."""
        slices = [part for part in self._inputs.slices if part.table_number == table_number]
        return [key for part in slices for key in (part.key, *self.pieces(part))]

    def piece_keys(self) -> list[str]:
        """The keys of all pieces."""
        return [
            key
            for portion in self.of(PackStep.JOIN)
            for part in portion.slices
            for key in self.pieces(part)
        ]


class PortionRunner(Protocol):
    """Who makes portions: processes of this machine, or pods."""

    def run(self, step: PackStep, numbers: Sequence[int], done: Callable[[int], None]) -> None:
        """Make the portions `numbers` of `step`, in any order; `done` is told each that is made.

        Raises:
            WorkerError: one of them failed, again and again.
        """


def make_portion(
    inputs: PackInputs,
    store: Store,
    sizes: PortionSizes,
    step: PackStep,
    number: int,
    progress: Progress,
) -> int:
    """Make what the store lacks of portion `number`; returns how many slices and pieces that was.

    Raises:
        OptionError: there is no such portion.
        ArtifactError: a table or its counts are damaged.
        ModelError: a row that its precision cannot hold.
        StoreError: the store is being pruned, or pieces to join are missing.
        StorageError: the disk or bucket refused.
    """
    portions = Portions(inputs, sizes)
    if not 0 <= number < len(portions.of(step)):
        raise OptionError(f"there is no portion {number} to {step}: {len(portions.of(step))} are")
    portion = portions.of(step)[number]
    with store.locked(exclusive=False), store.staging() as stage:
        keys = Keys(store, progress=progress)
        maker = _Maker(inputs, store, keys, portions, stage, progress)
        keys.take_stock(portions.keys(portion))
        for rows in portion.rows:
            maker.cut(rows)
        for part in portion.slices:
            maker.join(part)
        return maker.made


class _Maker:
    """Makes what a store lacks."""

    def __init__(
        self,
        inputs: PackInputs,
        store: Store,
        keys: Keys,
        portions: Portions,
        stage: Path,
        progress: Progress,
    ) -> None:
        self._inputs, self._store, self._keys = inputs, store, keys
        self._portions, self._stage, self._progress = portions, stage, progress
        self.made = 0

    def cut(self, part: RowRange) -> None:
        """Read the rows once, for all slices that lack them."""
        missing = _lacking(part, self._keys)
        if missing and part.whole:
            windows = self._inputs.windows(missing[0].table, self._stage)
            pack_table(self._inputs, missing, windows, self._stage, self._progress, self._keep)
        elif missing:
            keep = self._keep_piece(part.rows)
            cut_range(self._inputs, missing, part.rows, self._stage, self._progress, keep)

    def join(self, part: PackSlice) -> None:
        """Make the slice of its pieces."""
        if part.key in self._keys:
            return
        pieces = self._portions.pieces(part)
        self._keys.take_stock(pieces)
        missing = [key for key in pieces if key not in self._keys]
        if missing and not self._keys.recall(part.key, late=True):
            raise StoreError(
                f"{self._store.url}: {len(missing)} of {len(pieces)} pieces of table "
                f"{part.table.name} in shard {part.shard} are missing"
            )
        if not missing:
            self._keep(
                join_pieces(
                    self._inputs, part, self._keys, pieces, self._store, self._stage, self._progress
                )
            )

    def _keep(self, packed: PackedSlice) -> None:
        self._keys.keep_slice(packed)
        self.made += 1

    def _keep_piece(self, rows: range) -> Callable[[Piece], None]:
        def keep(piece: Piece) -> None:
            self._keys.adopt(piece.path, piece.file)
            self._keys.remember(piece_key(piece.slice, rows), piece.file, **piece.record)
            self.made += 1

        return keep


def _lacking(part: RowRange, keys: Keys) -> list[PackSlice]:
    """The slices that need these rows still."""
    return [
        each
        for each in part.slices
        if each.key not in keys and (part.whole or piece_key(each, part.rows) not in keys)
    ]


def _ranges(
    slices: tuple[PackSlice, ...], window_rows: int, split_bytes: int
) -> Iterator[RowRange]:
    """The table of `slices` in ranges of at most about `split_bytes`, which begin with windows."""
    table = slices[0].table
    windows = -(-table.rows // window_rows)
    ranges = min(windows, math.ceil(table.table_bytes / split_bytes))
    step = -(-windows // ranges) * window_rows
    for begin in range(0, table.rows, step):
        yield RowRange(slices, range(begin, min(begin + step, table.rows)))


def _bytes(part: RowRange) -> int:
    return len(part.rows) * part.slices[0].table.row_bytes


def _slice_bytes(part: PackSlice) -> int:
    return part.rows * part.precision.row_bytes(part.table.dim)


def _gathered(
    parts: Sequence[T], size_of: Callable[[T], int], usual_bytes: int
) -> Iterator[list[T]]:
    """`parts` in order, in groups of at most `usual_bytes` where one alone is not larger."""
    group: list[T] = []
    size = 0
    for part in parts:
        if group and size + size_of(part) > usual_bytes:
            yield group
            group, size = [], 0
        group.append(part)
        size += size_of(part)
    if group:
        yield group
