"""A text file as blocks of whole lines, decompressed; and where in a block something stands.

Lines are counted from 1 over the whole file, bytes from 1 within their line, as editors count them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from erless.errors import LogError
from erless.profile.logs import arrow_errors

__all__ = ["BLOCK_BYTES", "Block", "first_line", "open_text", "read_blocks"]

BLOCK_BYTES = 16 << 20
MOST_LINE_BYTES = 64 << 20
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a file: `first` is the number of the first one."""

    data: bytes
    first: int

    @property
    def lines(self) -> int:
        """Lines in the block, blank ones included."""
        return self.data.count(b"\n") + (not self.data.endswith(b"\n"))

    def check_utf8(self, path: Path) -> None:
        """Check that the block is text.

        Raises:
            LogError: naming the line and the byte that is not.
        """
        try:
            self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            before = self.data[: error.start]
            line = self.first + before.count(b"\n")
            column = error.start - (before.rfind(b"\n") + 1) + 1
            raise LogError(
                f"{path}: line {line}, byte {column}: 0x{self.data[error.start]:02x} is not UTF-8"
            ) from error

    def line_of_sample(self, sample: int) -> int:
        """The number of the line that is the sample-th, from 0, of those that are not empty."""
        count = -1
        for number, line in enumerate(self.data.split(b"\n"), self.first):
            count += bool(line.rstrip(b"\r"))
            if count == sample:
                return number
        raise IndexError(sample)


def open_text(path: Path) -> Any:
    """The file as a stream of bytes, decompressed where its name says how.

    The name goes to Arrow as bytes, which works in any locale.
    """
    codec = CODECS.get(path.suffix.lower())
    return pa.input_stream(pa.OSFile(os.fsencode(path)), compression=codec)


def first_line(path: Path) -> str:
    """The first line of a text file.

    Raises:
        LogError: unreadable, or not UTF-8.
    """
    with arrow_errors(path):
        block = next(read_blocks(path, 1 << 16), Block(b"", 1))
    line = Block(block.data.split(b"\n", 1)[0], 1)
    line.check_utf8(path)
    return line.data.decode("utf-8").rstrip("\r")


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The file cut after newlines, without a byte order mark.

    Raises:
        LogError: unreadable, or a line is longer than any log has.
    """
    remainder, line = b"", 1
    with arrow_errors(path), open_text(path) as stream:
        while chunk := stream.read(block_bytes):
            if line == 1 and not remainder and chunk.startswith(BOM):
                chunk = chunk[len(BOM) :]
            cut = chunk.rfind(b"\n") + 1
            if cut:
                block = Block(remainder + chunk[:cut], line)
                remainder = chunk[cut:]
                line += block.lines
                yield block
            else:
                remainder += chunk
            if len(remainder) > MOST_LINE_BYTES:
                raise LogError(
                    f"{path}: line {line} is longer than {MOST_LINE_BYTES >> 20} MiB: not a log"
                )
    if remainder:
        yield Block(remainder, line)
