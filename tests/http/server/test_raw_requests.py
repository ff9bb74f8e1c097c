"""The server against every way to write a request, with h11 as the second opinion."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import h11
import pytest

from erless.http.messages import Request, Response, ServerLimits
from tests.http.server.raw_requests import CASES
from tests.http.server.test_server import serving

LIMITS = ServerLimits(body_bytes=100_000)

# Where we are stricter than h11, and why; h11 accepts these.
STRICTER = {
    "HTTP/0.9": "there are no headers in HTTP/0.9",
    "HTTP/2.0": "HTTP/2 is no text (RFC 9110, 2.5: 505 for another major version)",
    "HTTP/2 preface": "as above",
    "HTTP/1.2": "llhttp knows no such version, and nobody speaks it",
    "HTTP/3.0": "as HTTP/2.0",
    "a small method": "no method is written so, and we know them all",
    "an unknown method": "as above",
    "CONNECT": "the server is no proxy",
    "a host with a word for a port": "RFC 9110, 7.2: a port is digits",
    "a host with a long port": "a port has five digits at most",
    "an IPv6 host without brackets": "RFC 3986, 3.2.2",
    "a host with a space": "RFC 9112, 3.2: 400 for an invalid host",
    "a list of hosts": "as above",
    "a host with a user": "as above",
    "a host with a path": "as above",
    "a quoted host": "as above",
    "a host with a high byte": "as above",
    "lines that end in LF": "RFC 9112, 2.2 allows to take LF for a line's end, and we do not",
    "one line that ends in LF": "as above",
    "a head that ends in LF": "as above",
    "a folded line": "RFC 9112, 5.2: refused or replaced by spaces",
    "a line folded by a tab": "as above",
    "a bell in a value": "RFC 9110, 5.5: control characters are invalid",
    "DEL in a value": "as above",
    "the same length twice": "RFC 9112, 6.3: may be refused",
    "a list of the same length": "as above",
    "chunked and a length": "RFC 9112, 6.1: may be refused, and is how requests are smuggled",
    "a length and chunked": "as above",
    "chunks in HTTP/1.0": "RFC 9112, 6.1: the framing is faulty",
    "a head beyond the limit": "431",
    "CR in an extension": "RFC 9112, 2.2: a bare CR is invalid",
    "NUL in an extension": "RFC 9112, 7.1.1: no control characters",
    "a trailer that ends in LF": "as lines that end in LF",
    "a longer body": "what follows begins with an unknown method",
    "a folded trailer": "as a folded line",
    "100 trailers": "trailers are bounded",
    "Expect of something else": "417",
}
# Where we accept what h11 refuses, and why.
LAXER = {
    "an empty line before": "RFC 9112, 2.2: an empty line before a request is ignored",
    "three empty lines before": "as above",
    "an empty line between": "as above",
    "a space before an extension": "RFC 9112, 7.1.1: BWS",
    "keep-alive in HTTP/1.0": "RFC 9112, 9.3: may be kept",
}


def answer(request: Request) -> Response:
    return Response(200, (request.path, b" ", bytes(request.body)), b"text/plain")


async def answer_later(request: Request) -> Response:
    return answer(request)


@pytest.fixture(scope="module", params=["at once", "later"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    with serving(answer if request.param == "at once" else answer_later, LIMITS) as port:
        yield port


def send(port: int, message: bytes, pieces: int = 1) -> bytes:
    """Everything that the server writes until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = -(-len(message) // pieces) or 1
        try:
            for begin in range(0, len(message), step):
                client.sendall(message[begin : begin + step])
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was refused before all was sent
        received = b""
        try:
            while data := client.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    return received


def read_answers(text: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer."""
    answers = []
    while text:
        head, _, text = text.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        length = re.search(rb"content-length: (\d+)", head)
        size = int(length.group(1)) if length else 0
        answers.append((status, text[:size]))
        text = text[size:]
    return answers


def accepted_by_h11(message: bytes) -> list[bytes]:
    """Target and body of each request that h11 accepts, until it refuses one or closes."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(message)
    connection.receive_data(b"")
    accepted: list[bytes] = []
    method = target = body = b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return accepted
        if isinstance(event, h11.Request):
            method, target, body = bytes(event.method), bytes(event.target), b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            path = re.sub(rb"^http://[^/]*", b"", target).partition(b"?")[0] or b"/"
            accepted.append(path + b" " + body)
            if method == b"CONNECT":  # h11 would have it switch
                return accepted
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return accepted
            connection.start_next_cycle()
        else:
            return accepted


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize(("name", "message", "statuses"), CASES, ids=[c[0] for c in CASES])
def test_a_request_is_answered_as_rfc_9112_says(
    port: int, name: str, message: bytes, statuses: tuple[int, ...], pieces: int
) -> None:
    answers = read_answers(send(port, message, pieces))
    found = [status for status, _ in answers if pieces == 1 or status != 100]
    assert found == [status for status in statuses if pieces == 1 or status != 100], name


@pytest.mark.parametrize(("name", "message", "statuses"), CASES, ids=[c[0] for c in CASES])
def test_h11_accepts_the_same_requests(
    name: str, message: bytes, statuses: tuple[int, ...], port: int
) -> None:
    ours = [body for status, body in read_answers(send(port, message)) if status == 200]
    theirs = accepted_by_h11(message)
    if name in STRICTER:
        assert len(ours) < len(theirs)
        assert ours == theirs[: len(ours)]
    elif name in LAXER:
        assert len(ours) > len(theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("kind", ["plain", "chunked"])
def test_every_pipelined_request_of_a_client_that_half_closes_is_answered(
    port: int, kind: str
) -> None:
    end = {"plain": b"content-length: 3\r\n\r\nabc", "chunked": b"3\r\nabc\r\n0\r\n\r\n"}[kind]
    head = b"POST /p%d HTTP/1.1\r\nhost: x\r\n"
    if kind == "chunked":
        head += b"transfer-encoding: chunked\r\n\r\n"
    count = 2000  # beyond what one buffer holds, and what Python's stack does
    answers = read_answers(send(port, b"".join(head % n + end for n in range(count))))
    assert answers == [(200, b"/p%d abc" % n) for n in range(count)]
