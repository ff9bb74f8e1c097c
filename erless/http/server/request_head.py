"""The head of a request: parsed by llhttp (httptools), held against RFC 9112."""

from __future__ import annotations

from typing import Any

import httptools

__all__ = ["HeadError", "RequestHead", "read_head"]


class HeadError(Exception):
    """The request cannot be read on from.

    Args:
        status: of the answer.
        message: what is wrong.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestHead:
    """What llhttp calls while it parses a head, and what it has found."""

    __slots__ = ("headers", "keep", "method", "parser", "path", "target")

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.target = self.path = self.method = b""
        self.keep = True
        self.parser: Any = None

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self.target += url

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.keep = self.parser.should_keep_alive()  # forgotten once the message is complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; values of one name are joined."""
        name = name.lower()
        old = self.headers.get(name)
        self.headers[name] = value if old is None else old + b", " + value


def read_head(text: memoryview) -> RequestHead:
    """The head that `text` is, from the request line to the empty line.

    Raises:
        HeadError: it is none of HTTP/1.1.
    """
    head = RequestHead()
    parser = head.parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # an offer that we do not take up (RFC 9110, 7.8)
    except httptools.HttpParserError as error:
        raise HeadError(400, f"not an HTTP/1.1 request: {error}") from None
    head.parser = None
    head.method = parser.get_method()
    head.path = head.target.partition(b"?")[0]
    if not head.target:
        raise HeadError(400, "not an HTTP/1.1 request: its head is incomplete")
    if not head.path.startswith(b"/"):
        try:
            head.path = httptools.parse_url(head.target).path or b"/"
        except httptools.HttpParserError:
            raise HeadError(400, "the request's target is not a URL") from None
    return head
