"""The gateway's routing: which shard answers for each row of each table, in a few bits a row.

A table's *holders* are the shards of the release that have it, in the release's order. A row's code
is the place of its shard among them, so it takes as many bits as there are holders to tell apart:
0, 1, 2 or 4; beside more than 16 holders it is a byte, the number of the shard itself.

On disk that is a safetensors file with one uint8 tensor for each table, named for it. A byte holds
the codes of several rows, that of the lowest row in its lowest bits. The metadata says `layout`:
`packed`; a file without it is of an earlier erless, and has a byte for every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError
from erless.specs.model import TableSpec
from erless.specs.release import ReleaseShard
from erless.storage.tensors import TensorFile

__all__ = [
    "PACKED",
    "RoutingFile",
    "TableRoute",
    "holders_of",
    "pack_codes",
    "packed_tensors",
    "route_bits",
    "route_bytes",
]

PACKED = {"layout": "packed"}  # metadata of the file
NOWHERE = 255  # a shard that there is none of

Bytes = NDArray[np.uint8]


def holders_of(shards: Iterable[ReleaseShard], table: str) -> tuple[int, ...]:
    """The numbers of those of a release's `shards` that have rows of `table`."""
    return tuple(number for number, shard in enumerate(shards) if table in shard.tables)


def route_bits(holders: int) -> int:
    """Bits of a row's code where so many shards have rows of its table.

    >>> [route_bits(holders) for holders in (1, 2, 3, 4, 5, 16, 17)]
    [0, 1, 2, 2, 4, 4, 8]
    """
    return next((bits for bits in (0, 1, 2, 4) if holders <= 1 << bits), 8)


def route_bytes(rows: int, bits: int) -> int:
    """Bytes of the codes of so many rows."""
    return -(-rows * bits // 8)


def packed_tensors(
    tables: Iterable[TableSpec], holders: Mapping[str, Sequence[int]]
) -> dict[str, tuple[type[np.uint8], tuple[int]]]:
    """The tensors of a file of routing, as of `TensorWriter`."""
    return {
        table.name: (np.uint8, (route_bytes(table.rows, route_bits(len(holders[table.name]))),))
        for table in tables
    }


def pack_codes(numbers: Bytes, holders: Sequence[int]) -> Bytes:
    """Codes of consecutive rows, the first of which begins a byte.

    Args:
        numbers: (n,) uint8 the number of each row's shard.
        holders: of the table.

    Raises:
        ArtifactError: a row's shard is no holder of its table.

    >>> [f"{code:08b}" for code in pack_codes(np.array([3, 7, 7, 9, 3], np.uint8), [3, 7, 9])]
    ['10010100', '00000000']
    """
    places = np.full(256, NOWHERE, np.uint8)
    places[list(holders)] = np.arange(len(holders))
    codes = places[numbers]
    if len(codes) and int(codes.max()) == NOWHERE:
        number = int(numbers[codes == NOWHERE][0])
        raise ArtifactError(f"a row is routed to shard {number}, which has none of its table")
    bits = route_bits(len(holders))
    if bits in (0, 8):
        return numbers if bits else codes[:0]
    each = 8 // bits
    packed = np.zeros(route_bytes(len(codes), bits), np.uint8)
    for place in range(each):
        column = codes[place::each]
        packed[: len(column)] |= column << np.uint8(place * bits)
    return packed


def _unpack(codes: Bytes, bits: int, holders: Sequence[int], rows: int) -> Bytes:
    """(rows,) shard numbers of the rows whose codes begin with the first byte."""
    if bits == 8:
        return codes[:rows]
    if bits == 0:
        return np.full(rows, holders[0], np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = np.full(1 << bits, NOWHERE, np.uint8)
    numbers[: len(holders)] = holders
    places = (codes[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    unpacked: Bytes = numbers[places.reshape(-1)[:rows]]
    return unpacked


@dataclass(frozen=True, slots=True, eq=False)
class TableRoute:
    """The shard of each row of one table.

    Args:
        rows: of the table.
        bits: of each row's code.
        holders: the shards that the codes stand for; with 8 bits a code is the shard's number.
        codes: (ceil(rows · bits / 8),) uint8.

    Raises:
        ArtifactError: `codes` are not those of so many rows.
    """

    rows: int
    bits: int
    holders: tuple[int, ...]
    codes: Bytes

    def __post_init__(self) -> None:
        shape = (route_bytes(self.rows, self.bits),)
        if self.codes.dtype != np.uint8 or self.codes.shape != shape:
            raise ArtifactError(
                f"its routing has shape {self.codes.shape} of {self.codes.dtype}, expected "
                f"{shape} of uint8: {self.bits} bits for each of {self.rows:,} rows"
            )

    @classmethod
    def of(cls, numbers: Bytes, holders: Sequence[int] | None = None) -> TableRoute:
        """The route of a table whose rows lie in the shards `numbers` (rows,) uint8.

        Args:
            numbers: as they are kept, a byte each, unless there are `holders`.
            holders: of the table, where codes are to be packed.
        """
        if holders is None:
            return cls(len(numbers), 8, (), numbers)
        codes = pack_codes(numbers, holders)
        return cls(len(numbers), route_bits(len(holders)), tuple(holders), codes)

    def shards(self, ids: NDArray[np.int64]) -> Bytes:
        """(n,) the shard number of each row of `ids`, all of which are rows of the table."""
        if self.bits == 8:
            return self.codes[ids]
        if self.bits == 0:
            return np.full(len(ids), self.holders[0], np.uint8)
        each = 8 // self.bits
        shifts = (ids % each * self.bits).astype(np.uint8)
        places = (self.codes[ids // each] >> shifts) & np.uint8((1 << self.bits) - 1)
        numbers: Bytes = np.array(self.holders, np.uint8)[places]
        return numbers

    def all_shards(self) -> Bytes:
        """(rows,) the shard number of each row."""
        return _unpack(self.codes, self.bits, self.holders, self.rows)

    def grown(self, added: Bytes) -> TableRoute:
        """The route with more rows behind its own: `added` are the numbers of their shards.

        Raises:
            ArtifactError: one of them is no holder of the table.
        """
        if self.bits == 8:
            return TableRoute.of(np.concatenate([self.codes, added]))
        codes = pack_codes(added, self.holders)
        if self.bits:
            each = 8 // self.bits
            whole = self.rows // each  # bytes that no added row shares
            last = _unpack(self.codes[whole:], self.bits, self.holders, self.rows - whole * each)
            behind = pack_codes(np.concatenate([last, added]), self.holders)
            codes = np.concatenate([self.codes[:whole], behind])
        return TableRoute(self.rows + len(added), self.bits, self.holders, codes)

    def elsewhere(self, home: int | None) -> TableRoute:
        """The route of the rows that are not in shard `home`: no codes, where one shard has them.

        What it says of rows in `home` is not to be asked.
        """
        others = tuple(number for number in self.holders if number != home)
        if len(others) != 1:
            return self
        return TableRoute(self.rows, 0, others, self.codes[:0])


class RoutingFile:
    """The routing of a release, opened; of this layout or the one before.

    Args:
        path: of the file.
        rows: table → its rows.
        shards: of the release.

    Raises:
        ArtifactError: the file is damaged, or of a layout that a newer erless writes.
    """

    def __init__(self, path: Path, rows: Mapping[str, int], shards: Sequence[ReleaseShard]) -> None:
        self._file = TensorFile(path)
        layout = self._file.metadata.get("layout")
        if layout not in (None, PACKED["layout"]):
            raise ArtifactError(f"{path}: routing of layout {layout!r}: a newer erless wrote it")
        self._packed, self._rows = layout is not None, dict(rows)
        self._holders = {table: holders_of(shards, table) for table in rows}

    def route(self, table: str, *, populate: bool = False) -> TableRoute:
        """The route of a table, mapped; with `populate` it is brought into memory at once.

        Raises:
            ArtifactError: it is not that of the table's rows.
        """
        codes = self._file.map(table, populate=populate)
        try:
            return TableRoute(self._rows[table], self._bits(table), self._holders[table], codes)
        except ArtifactError as error:
            raise ArtifactError(f"table {table}: {error}") from error

    def read(self, table: str, begin: int, stop: int) -> Bytes:
        """(stop - begin,) shard numbers of rows, read and not mapped; `begin` is a multiple of 8.

        Raises:
            ArtifactError: as of `route`.
        """
        bits = self._bits(table)
        bytes_ = slice(route_bytes(begin, bits), route_bytes(stop, bits))
        codes = self._file.read_rows(table, bytes_.start, bytes_.stop)
        return _unpack(codes, bits, self._holders[table], stop - begin)

    def _bits(self, table: str) -> int:
        return route_bits(len(self._holders[table])) if self._packed else 8
