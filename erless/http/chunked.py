"""Bodies in chunks (RFC 9112, 7.1), read to where they end: the next request begins there."""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["ChunkedBody"]

MAX_LINE_BYTES = 4096  # a chunk's size with its extensions, or a trailer
MAX_TRAILERS = 64
# A size and its extensions, without control characters; spaces behind the size are tolerated.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
# A trailer, of the form of any header: a token, a colon, text without control characters.
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class _Expect(Enum):
    SIZE = 0
    DATA = 1
    END = 2  # the line end behind a chunk's data
    TRAILER = 3


class ChunkedBody:
    """Collects one body.

    Args:
        limit: bytes that it may have.

    >>> body = ChunkedBody(100)
    >>> body.feed(memoryview(b"3;x=y\\r\\nabc\\r\\n0\\r\\n\\r\\nGET /")), body.done, body.data
    (17, True, bytearray(b'abc'))
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data = bytearray()
        self.done = self.too_large = False
        self._line = bytearray()
        self._left = self._trailers = 0
        self._expect = _Expect.SIZE

    def feed(self, data: memoryview) -> int:
        """Take what belongs to the body; returns how many bytes that were.

        Raises:
            ValueError: it is not in chunks.
        """
        at = 0
        while at < len(data) and not self.done and not self.too_large:
            if self._expect is _Expect.DATA:
                part = data[at : at + self._left]
                self.data += part
                at += len(part)
                self._left -= len(part)
                if not self._left:
                    self._expect = _Expect.END
            else:
                at = self._read_line(data, at)
        return at

    def _read_line(self, data: memoryview, at: int) -> int:
        """Read on in the current line, and act where it ends."""
        piece = bytes(data[at : at + MAX_LINE_BYTES + 2])
        end = piece.find(b"\n")
        length = len(piece) if end < 0 else end + 1
        self._line += piece[:length]
        if len(self._line) > MAX_LINE_BYTES:
            raise ValueError("a line is too long")
        if end >= 0:
            line, self._line = bytes(self._line), bytearray()
            if not line.endswith(b"\r\n"):
                raise ValueError("a line does not end in CR LF")
            self._act(line[:-2])
        return at + length

    def _act(self, line: bytes) -> None:
        """Act on a whole line: a chunk's size, the end of its data, or a trailer."""
        if self._expect is _Expect.END:
            if line:
                raise ValueError("a chunk is longer than its size")
            self._expect = _Expect.SIZE
        elif self._expect is _Expect.TRAILER:
            self.done = not line
            self._trailers += 1
            if line and not _TRAILER.fullmatch(line):
                raise ValueError(f"{line[:20]!r} is not a trailer")
            if self._trailers > MAX_TRAILERS:
                raise ValueError("too many trailers")
        else:
            size = _SIZE.fullmatch(line)
            if size is None:
                raise ValueError(f"{line[:20]!r} is not a chunk's size")
            self._left = int(size.group(1), 16)
            self.too_large = len(self.data) + self._left > self.limit
            self._expect = _Expect.DATA if self._left else _Expect.TRAILER
