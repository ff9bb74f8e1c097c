"""Whole requests that the owner knows at first sight: answered together, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from erless.http.budget import MemoryBudget
from erless.http.messages import Buffer, Request, Response, ServerLimits
from erless.http.server.connection import TOGETHER_BYTES, ServerConnection
from erless.http.server.state import ServerState

GENERAL = b"GET /general HTTP/1.1\r\nhost: x\r\n\r\n"


class Writes(asyncio.Transport):
    """Keeps what each call would have written."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []

    def write(self, data: Buffer) -> None:
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        self.calls.append(b"".join(map(bytes, list_of_data)))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take all."""

    def is_closing(self) -> bool:
        return False


def written(answer_bytes: int, *pieces: bytes) -> list[bytes]:
    """What is written for requests `<n>;`, which come in `pieces`."""

    def answer_whole(
        buffer: bytearray, begin: int, end: int, date: bytes
    ) -> tuple[bytes, int] | None:
        stop = buffer.find(b";", begin, end)
        if stop < 0 or buffer.startswith(b"GET", begin):
            return None
        return bytes(buffer[begin:stop]) * answer_bytes, stop + 1

    def general(request: Request) -> Response:
        return Response(200, (request.path,))

    state = ServerState(general, ServerLimits(), lambda status: None, MemoryBudget(1 << 30))
    state.answer_whole = answer_whole
    connection, writes = ServerConnection(state), Writes()
    connection.connection_made(writes)
    for piece in pieces:
        connection.get_buffer(-1)[: len(piece)] = piece
        connection.buffer_updated(len(piece))
    return writes.calls


def test_requests_that_came_together_are_answered_in_one_write() -> None:
    assert written(2, b"1;2;3;") == [b"112233"]


def test_each_read_is_answered_when_it_comes() -> None:
    assert written(1, b"1;", b"2;3;4", b";5;") == [b"1", b"23", b"45"]


def test_a_request_between_them_that_is_read_as_any_other_keeps_its_place() -> None:
    first, general, last = written(1, b"1;2;" + GENERAL + b"3;")
    assert (first, last) == (b"12", b"3")
    assert general.endswith(b"/general")


def test_large_answers_leave_before_all_are_made() -> None:
    sizes = [len(each) for each in written(TOGETHER_BYTES // 2, b"1;2;3;")]
    assert sizes == [TOGETHER_BYTES, TOGETHER_BYTES // 2]
