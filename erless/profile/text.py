"""Text logs: Criteo display ads (TSV or CSV) and interactions (`user item item …` per line).

Both are parsed by Arrow in blocks; gzip and the other codecs that Arrow knows are read through.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
from numpy.typing import NDArray

from erless.errors import LogError
from erless.profile.logs import Chunk, arrow_errors, unknown_table
from erless.progress import Step, Unit

__all__ = ["CriteoLog", "InteractionLog", "first_line", "hash_hex", "looks_like_criteo"]

BLOCK_BYTES = 16 << 20
MAX_LINE_BYTES = 1 << 20
CATEGORIES = tuple(f"C{index}" for index in range(1, 27))
CRITEO = ("label", *(f"I{index}" for index in range(1, 14)), *CATEGORIES)
HEX_DIGITS = 16

_NIBBLE = np.full(256, 255, np.uint8)
for _value, _digits in enumerate(zip("0123456789abcdef", "0123456789ABCDEF", strict=True)):
    for _digit in _digits:
        _NIBBLE[ord(_digit)] = _value


def first_line(path: Path) -> str:
    """The first line of a text file, decompressed where its name says so.

    Raises:
        LogError: unreadable, or not UTF-8.
    """
    with arrow_errors(path), pa.input_stream(str(path), compression="detect") as stream:
        line = stream.read(MAX_LINE_BYTES).split(b"\n", 1)[0]
    try:
        return str(line.decode("utf-8-sig")).rstrip("\r")
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: byte {error.start}: neither text nor a known format") from error


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
    name, or in order where the model has 26 tables of other names. An empty value is no access.
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
        found = {table: column for table, column in by_name.items() if column in self._names}
        if not found:
            raise LogError(f"{self.path}: none of the columns {', '.join(by_name.values())}")
        return found

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """Blocks of lines, each cut into its tables."""
        columns = list(self._columns.values())
        reader = self._open(columns)
        begin = 0
        with arrow_errors(self.path):
            for batch in reader:
                for table, column in self._columns.items():
                    yield self._chunk(table, batch.column(batch.schema.names.index(column)), begin)
                begin += batch.num_rows
                self.samples = begin
                step.advance(batch.nbytes)

    def _open(self, columns: list[str]) -> Any:
        with arrow_errors(self.path):
            return pcsv.open_csv(
                pa.input_stream(str(self.path), compression="detect"),
                pcsv.ReadOptions(
                    column_names=self._names,
                    skip_rows=int(self._header),
                    block_size=self._block_bytes,
                ),
                pcsv.ParseOptions(delimiter=self._delimiter),
                pcsv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(columns, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )

    def _chunk(self, table: str, column: Any, begin: int) -> Chunk:
        def locate(position: int) -> str:
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            return f"row {begin + int(rows[position])}"

        values = column.drop_null()
        ids = hash_hex(values, self._rows[table])
        if len(ids) and int(ids.min()) < 0:
            position = int(np.flatnonzero(ids < 0)[0])
            raise LogError(
                f"{self.path}: {locate(position)}: {self._columns[table]} is "
                f"{values[position].as_py()[:40]!r}, not a hexadecimal value"
            )
        return Chunk(table, ids, locate)


class InteractionLog:
    """`user item item …` per line: the items are the rows that one sample accesses.

    The user may be any token; items are integers. Blank lines are not samples.
    """

    unit: Unit = "bytes"

    def __init__(self, path: Path, table: str, block_bytes: int = 0) -> None:
        self.path = path
        self.tables: tuple[str, ...] = (table,)
        self.samples: int | None = 0
        self._block_bytes = block_bytes or BLOCK_BYTES
        with arrow_errors(path):
            self.total: int | None = path.stat().st_size

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """Blocks of whole lines."""
        line = 1
        for block in self._blocks():
            with arrow_errors(self.path):
                chunk, samples, lines = self._chunk(block, line)
            self.samples = (self.samples or 0) + samples
            line += lines
            yield chunk
            step.advance(len(block))

    def _blocks(self) -> Iterator[bytes]:
        """The file cut after newlines."""
        rest = b""
        with (
            arrow_errors(self.path),
            pa.input_stream(str(self.path), compression="detect") as stream,
        ):
            while block := stream.read(self._block_bytes):
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield rest + block[:cut]
                    rest = block[cut:]
                else:
                    rest += block
        if rest:
            yield rest

    def _chunk(self, block: bytes, first: int) -> tuple[Chunk, int, int]:
        """The items of `block`, whose first line is line `first`; its samples and lines."""
        lines = block.count(b"\n") + (not block.endswith(b"\n"))
        text = pa.py_buffer(block)
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")).astype(np.int32) + 1
        offsets = np.zeros(lines + 1, np.int32)
        offsets[1 : 1 + len(ends)] = ends
        offsets[-1] = len(block)
        strings = pa.StringArray.from_buffers(lines, pa.py_buffer(offsets), text)
        strings.validate(full=True)  # UTF-8
        trimmed = pc.ascii_trim_whitespace(strings)
        samples = int(pc.sum(pc.greater(pc.binary_length(trimmed), 0)).as_py() or 0)
        items = pc.list_slice(pc.ascii_split_whitespace(trimmed), 1)

        def locate(position: int) -> str:
            lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False)
            ends = np.cumsum(lengths, dtype=np.int64)
            return f"line {first + int(np.searchsorted(ends, position, side='right'))}"

        tokens = items.flatten()
        try:
            ids = tokens.cast(pa.int64())
        except pa.ArrowInvalid as error:
            position = _first_non_integer(tokens)
            raise LogError(
                f"{self.path}: {locate(position)}: {tokens[position].as_py()[:40]!r} "
                f"is not an integer row id"
            ) from error
        return Chunk(self.tables[0], ids.to_numpy(), locate), samples, lines


def _first_non_integer(tokens: Any) -> int:
    """Position of the first token that is no int64."""
    plain = pc.match_substring_regex(tokens, r"^-?[0-9]{1,18}$")
    return int(np.flatnonzero(~plain.to_numpy(zero_copy_only=False))[0])
