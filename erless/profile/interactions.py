"""Interactions: `user item item …` per line, parsed by Arrow in blocks of whole lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from erless.errors import LogError
from erless.profile.blocks import BLOCK_BYTES, Block, read_blocks
from erless.profile.logs import Chunk, arrow_errors
from erless.progress import Step, Unit

__all__ = ["InteractionLog"]

LIMITS = (-(2**63), 2**63 - 1)


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
        for block in read_blocks(self.path, self._block_bytes):
            block.check_utf8(self.path)
            with arrow_errors(self.path):
                chunk, samples = self._chunk(block)
            self.samples = (self.samples or 0) + samples
            yield chunk
            step.advance(len(block.data))

    def _chunk(self, block: Block) -> tuple[Chunk, int]:
        """The items of a block, and its samples."""
        lines = block.lines
        newlines = np.frombuffer(block.data, np.uint8) == ord("\n")
        ends = np.flatnonzero(newlines).astype(np.int32) + 1
        offsets = np.zeros(lines + 1, np.int32)
        offsets[1 : 1 + len(ends)] = ends
        offsets[-1] = len(block.data)
        strings = pa.StringArray.from_buffers(
            lines, pa.py_buffer(offsets), pa.py_buffer(block.data)
        )
        trimmed = pc.ascii_trim_whitespace(strings)
        samples = int(pc.sum(pc.greater(pc.binary_length(trimmed), 0)).as_py() or 0)
        items = pc.list_slice(pc.ascii_split_whitespace(trimmed), 1)

        def locate(position: int) -> str:
            lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False)
            ends = np.cumsum(lengths, dtype=np.int64)
            return f"line {block.first + int(np.searchsorted(ends, position, side='right'))}"

        tokens = items.flatten()
        try:
            ids = tokens.cast(pa.int64())
        except pa.ArrowInvalid as error:
            position = _first_non_integer(tokens)
            raise LogError(
                f"{self.path}: {locate(position)}: {tokens[position].as_py()[:40]!r} "
                f"is not an integer row id"
            ) from error
        return Chunk(self.tables[0], ids.to_numpy(), locate), samples


def _first_non_integer(tokens: Any) -> int:
    """Position of the first token that is no int64."""
    plain = pc.match_substring_regex(tokens, r"^-?[0-9]{1,18}$")
    for position in np.flatnonzero(~plain.to_numpy(zero_copy_only=False)).tolist():
        text = tokens[position].as_py()
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and LIMITS[0] <= int(text) <= LIMITS[1]):
            return int(position)
    return 0
