"""Criteo display ads (TSV or CSV), parsed by Arrow in blocks of whole lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from numpy.typing import NDArray

from erless.errors import LogError
from erless.profile.blocks import BLOCK_BYTES, Block, first_line, read_blocks
from erless.profile.logs import Chunk, arrow_errors, unknown_table
from erless.progress import Step, Unit

__all__ = ["CriteoLog", "hash_hex", "looks_like_criteo"]

CATEGORIES = tuple(f"C{index}" for index in range(1, 27))
CRITEO = ("label", *(f"I{index}" for index in range(1, 14)), *CATEGORIES)
HEX_DIGITS = 16

_NIBBLE = np.full(256, 255, np.uint8)
for _value, _digits in enumerate(zip("0123456789abcdef", "0123456789ABCDEF", strict=True)):
    for _digit in _digits:
        _NIBBLE[ord(_digit)] = _value


def _delimiter(line: str) -> str:
    return "\t" if "\t" in line else ","


def looks_like_criteo(line: str) -> bool:
    """Whether the first line has Criteo's columns: by name, or 40 of them (39 in a test set)."""
    fields = line.split(_delimiter(line))
    return bool(set(fields) & set(CATEGORIES)) or len(fields) in (len(CRITEO) - 1, len(CRITEO))


def hash_hex(values: Any, rows: int) -> NDArray[np.int64]:
    """Row ids of Criteo's hexadecimal category values: the number modulo `rows`.

    The values are 32-bit hashes already; the modulo is what facebookresearch/dlrm
    (`--max-ind-range`) and torchrec's Criteo loaders apply, so ids agree with their checkpoints.

    Args:
        values: Arrow strings of 1 to 16 hexadecimal digits, no nulls.
        rows: rows of the table.

    Returns:
        (n,) int64 ids; -1 where the value is not hexadecimal.

    >>> hash_hex(pa.array(["68fd1e64", "a", "oops"]), 1000).tolist()
    [852, 10, -1]
    """
    count = len(values)
    if not count:
        return np.empty(0, np.int64)
    longest = int(pc.max(pc.binary_length(values)).as_py())
    if longest > HEX_DIGITS:
        values = pc.if_else(pc.greater(pc.binary_length(values), HEX_DIGITS), "-", values)
    width = min(max(longest, 1), HEX_DIGITS)
    padded = pc.ascii_lpad(values, width, "0").cast(pa.binary(width))
    text = np.frombuffer(padded.buffers()[1], np.uint8, count * width, padded.offset * width)
    digits = _NIBBLE[text].reshape(count, width)
    number = np.zeros(count, np.uint64)
    for place in range(width):
        number <<= np.uint64(4)
        number |= digits[:, place]
    ids = (number % np.uint64(rows)).astype(np.int64)
    wrong = digits.max(axis=1) == 255
    wrong |= pc.equal(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    ids[wrong] = -1
    return ids


class CriteoLog:
    """Criteo display ads: 26 categorical columns of hexadecimal values, one sample per line.

    With a header, columns are found by their names C1 … C26; without one there are 40 columns
    (label, I1 … I13, C1 … C26), or 39 without the label. Columns go to the tables of the same
    name, or in order where the model has 26 tables of other names. An empty value is no access, a
    blank line no sample.
    """

    unit: Unit = "bytes"

    def __init__(
        self, path: Path, table_rows: dict[str, int], only: str | None, block_bytes: int = 0
    ) -> None:
        self.path = path
        self._block_bytes = block_bytes or BLOCK_BYTES
        self.samples: int | None = 0
        line = first_line(path)
        self._delimiter = _delimiter(line)
        self._header = bool(set(line.split(self._delimiter)) & set(CATEGORIES))
        self._names = self._column_names(line)
        self._rows = table_rows
        self._columns = self._match(tuple(table_rows), only)
        self.tables = tuple(self._columns)
        size = path.stat().st_size
        self.total: int | None = size if path.suffix in (".csv", ".tsv", ".txt") else None

    def _column_names(self, line: str) -> list[str]:
        fields = line.split(self._delimiter)
        if self._header:
            twice = [name for name, count in Counter(fields).items() if count > 1]
            if twice:
                raise LogError(f"{self.path}: line 1 names column {twice[0]} twice")
            return fields
        if len(fields) not in (len(CRITEO), len(CRITEO) - 1):
            raise LogError(
                f"{self.path}: line 1 has {len(fields)} columns; Criteo has {len(CRITEO)} "
                f"(label, I1 … I13, C1 … C26), or {len(CRITEO) - 1} without the label"
            )
        return list(CRITEO[-len(fields) :])

    def _match(self, tables: tuple[str, ...], only: str | None) -> dict[str, str]:
        """Table → column."""
        by_name = {name: name for name in tables if name in CATEGORIES}
        if not by_name and len(tables) == len(CATEGORIES):
            by_name = dict(zip(tables, CATEGORIES, strict=True))
        if not by_name:
            raise LogError(
                f"{self.path}: Criteo's columns C1 … C26 fit the model's {len(tables)} tables "
                f"neither by name nor by number"
            )
        if only is not None:
            if only not in by_name:
                raise unknown_table(self.path, only, by_name)
            by_name = {only: by_name[only]}
        present = {table: column for table, column in by_name.items() if column in self._names}
        if not present:
            raise LogError(f"{self.path}: none of the columns {', '.join(by_name.values())}")
        missing = [column for column in by_name.values() if column not in self._names]
        unknown = [name for name in self._names if name not in CRITEO]
        if missing and unknown:
            raise LogError(
                f"{self.path}: line 1 has no column {missing[0]}, but an unknown {unknown[0]!r}"
            )
        return present

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """Blocks of lines, each cut into its tables."""
        with arrow_errors(self.path):
            for block in read_blocks(self.path, self._block_bytes):
                skipped = int(self._header and block.first == 1)
                columns = self._parse(block, skipped)
                if columns is not None:
                    for table, column in self._columns.items():
                        strings = columns[column].combine_chunks()
                        yield self._chunk(table, strings, block, skipped)
                    self.samples = (self.samples or 0) + columns.num_rows
                step.advance(len(block.data))

    def _parse(self, block: Block, skipped: int) -> Any:
        """The block's columns; None where it has no sample."""
        if not block.data.split(b"\n", skipped)[-1].strip():
            return None
        columns = list(self._columns.values())
        try:
            return pcsv.read_csv(
                pa.BufferReader(block.data),
                pcsv.ReadOptions(
                    column_names=self._names, skip_rows=skipped, block_size=len(block.data) + 1
                ),
                pcsv.ParseOptions(delimiter=self._delimiter),
                pcsv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(columns, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )
        except pa.ArrowInvalid:
            self._blame(block, skipped)
            raise

    def _blame(self, block: Block, skipped: int) -> None:
        """Name the line that Arrow could not read, where it can be found."""
        block.check_utf8(self.path)
        for number, line in enumerate(block.data.split(b"\n"), block.first):
            fields = line.rstrip(b"\r").split(self._delimiter.encode())
            if line.rstrip(b"\r") and len(fields) != len(self._names) and number > skipped:
                raise LogError(
                    f"{self.path}: line {number} has {len(fields)} columns, "
                    f"expected {len(self._names)}"
                )

    def _chunk(self, table: str, column: Any, block: Block, skipped: int) -> Chunk:
        def locate(position: int) -> str:
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            return f"line {block.line_of_sample(int(rows[position]) + skipped)}"

        values = column.drop_null()
        ids = hash_hex(values, self._rows[table])
        if len(ids) and int(ids.min()) < 0:
            position = int(np.flatnonzero(ids < 0)[0])
            raise LogError(
                f"{self.path}: {locate(position)}: {self._columns[table]} is "
                f"{values[position].as_py()[:40]!r}, not a hexadecimal value"
            )
        return Chunk(table, ids, locate)
