"""The head of a request: parsed by llhttp (httptools), held against RFC 9112."""

from __future__ import annotations

import re
from typing import Any

import httptools

__all__ = ["HeadError", "RequestHead", "read_head"]

# RFC 9110, 7.2: uri-host [ ":" port ]; empty where the target has no authority.
_HOST = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[A-Za-z0-9\-._~!$&'()*+,;=%:]+\])(?::[0-9]{0,5})?"
)
_SPACES = b" \t"
SPACE = ord(" ")


class HeadError(Exception):
    """The request cannot be read on from.

    Args:
        status: of the answer.
        message: the fault, for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestHead:
    """What llhttp calls while it parses a head, and what it has found.

    `chunked` and `size` say how the body comes; `continues` whether the client waits for
    "100 Continue" before it sends one.
    """

    __slots__ = (
        "chunked",
        "continues",
        "headers",
        "hosts",
        "keep",
        "method",
        "parser",
        "path",
        "size",
        "target",
    )

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.target = self.path = self.method = b""
        self.keep = True
        self.hosts = self.size = 0
        self.chunked = self.continues = False
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
        self.hosts += name == b"host"
        old = self.headers.get(name)
        self.headers[name] = value if old is None else old + b", " + value


def read_head(text: memoryview) -> RequestHead:
    """The head that `text` is, from the request line to the empty line.

    Raises:
        HeadError: it is none of HTTP/1.1, or announces a body that cannot be read.
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
    if not head.target:
        raise HeadError(400, "not an HTTP/1.1 request: its head is incomplete")
    version = parser.get_http_version()
    if not version.startswith("1."):
        raise HeadError(505, f"HTTP/{version} is not spoken here, but HTTP/1.1")
    head.method = parser.get_method()
    if text[len(head.method) + 1] == SPACE:
        raise HeadError(400, "not an HTTP/1.1 request: two spaces in its first line")
    _check_host(head, version)
    _read_target(head)
    _read_framing(head, version)
    return head


def _check_host(head: RequestHead, version: str) -> None:
    """RFC 9112, 3.2: exactly one valid Host in HTTP/1.1, at most one before."""
    if head.hosts > 1 or (not head.hosts and version != "1.0"):
        raise HeadError(400, f"the request has {head.hosts} Host headers, expected 1")
    if not _HOST.fullmatch(head.headers.get(b"host", b"").strip(_SPACES)):
        raise HeadError(400, "the Host header is not a host")


def _read_target(head: RequestHead) -> None:
    """The path of a target in origin form or absolute form (RFC 9112, 3.2)."""
    head.path = head.target.partition(b"?")[0]
    if not head.path.startswith(b"/"):
        try:
            head.path = httptools.parse_url(head.target).path or b"/"
        except httptools.HttpParserError:
            raise HeadError(400, "the request's target is not a URL") from None


def _read_framing(head: RequestHead, version: str) -> None:
    """How the body comes (RFC 9112, 6.3), and what the client expects before it."""
    headers = head.headers
    codings = headers.get(b"transfer-encoding")
    if codings is not None:
        if version == "1.0":
            raise HeadError(400, "HTTP/1.0 has no Transfer-Encoding")
        names = [name.strip(_SPACES).lower() for name in codings.split(b",")]
        if names[-1] != b"chunked" or names.count(b"chunked") > 1:
            raise HeadError(400, "the body's end is unknown: its last coding is not chunked")
        if len(names) > 1:
            raise HeadError(501, "this transfer encoding is not supported: use chunked")
        head.chunked = True
    else:
        head.size = int(headers.get(b"content-length", b"0"))
    if b"expect" in headers and version != "1.0":
        if headers[b"expect"].lower() != b"100-continue":
            raise HeadError(417, "only Expect: 100-continue is known")
        head.continues = True
