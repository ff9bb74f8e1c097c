"""gRPC's calls over HTTP/2, in front of the HTTP API: `inference.GRPCInferenceService`.

A call is a POST to /inference.GRPCInferenceService/<Method> with one message behind five bytes, its
answer one message and the trailers `grpc-status` and `grpc-message` (github.com/grpc/grpc,
doc/PROTOCOL-HTTP2.md). ModelInfer goes the way of HTTP's infer, with another `Wire`; the other
calls are requests to the HTTP API, and answer what that says. So a deadline (`grpc-timeout`), a
token and a trace context mean the same, and a fault has the same words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from google.protobuf.message import DecodeError

from erless.errors import QueryError
from erless.http.messages import DEADLINE, Request, Response, problem
from erless.serve.protocol.app import App
from erless.serve.protocol.fast_lane import LONGEST_MS
from erless.serve.protocol.grpc.messages import message_class
from erless.serve.protocol.grpc.tensors import ModelInferRequest, infer_request, infer_response
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.served import InferAnswer, Served
from erless.serve.protocol.wire import Failure

__all__ = ["GrpcApi"]

TYPE = b"application/grpc"
SERVICE = b"/inference.GRPCInferenceService/"
PREFIX_BYTES = 5  # whether it is compressed, and a message's length
# Codes of gRPC (doc/statuscodes.md), and the HTTP statuses that mean the same here.
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 8, 12, 13, 14
_CODES = {
    400: INVALID_ARGUMENT,
    401: 16,  # UNAUTHENTICATED
    404: 5,  # NOT_FOUND
    408: 4,  # DEADLINE_EXCEEDED
    413: RESOURCE_EXHAUSTED,
    499: 1,  # CANCELLED
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: 4,
}
Method = Callable[[Request], Response | Awaitable[Response]]
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_MS = {b"H": 3_600_000.0, b"M": 60_000.0, b"S": 1e3, b"m": 1.0, b"u": 1e-3, b"n": 1e-6}
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}  # of a message; the rest is percent-encoded


def _code(failure: Failure) -> int:
    """gRPC's code of a failure; a queue that is full is told from a function that is not there."""
    if failure.status == 503 and failure.kind == "overload" and not failure.state:
        return RESOURCE_EXHAUSTED
    return _CODES.get(failure.status, INTERNAL)


def _status(code: int, message: str = "") -> tuple[tuple[bytes, bytes], ...]:
    text = b"".join(
        b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in message.encode()
    )
    more = ((b"grpc-message", text),) if text else ()
    return ((b"grpc-status", b"%d" % code), *more)


def _answer(message: bytes) -> Response:
    prefix = b"\0" + len(message).to_bytes(4, "big")
    return Response(200, (prefix + message,), TYPE, trailers=_status(OK))


def _fault(code: int, message: str) -> Response:
    return Response(200, (), TYPE, headers=_status(code, message))


class _ModelInfer:
    """The wire of one ModelInfer call; see `Wire`.

    Args:
        message: the ModelInferRequest.
    """

    def __init__(self, message: Any) -> None:
        self._message = message

    def decode(self, request: Request, served: Served) -> InferRequest:
        """See `Wire`."""
        return infer_request(self._message, served)

    def encode(self, served: Served, inputs: InferRequest, answer: InferAnswer) -> Response:
        """See `Wire`."""
        return _answer(infer_response(served, inputs, answer))

    def refuse(self, failure: Failure) -> Response:
        """See `Wire`."""
        return _fault(_code(failure), failure.message)


class _CallError(Exception):
    """The call is not answered, with gRPC's `code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _read(kind: Any, body: memoryview) -> Any:
    """The one message of `body`. Raises QueryError or _CallError."""
    if len(body) and body[0] == 1:
        raise _CallError(UNIMPLEMENTED, "compressed messages are not taken: use identity")
    if len(body) < PREFIX_BYTES or int.from_bytes(body[1:PREFIX_BYTES], "big") != (
        len(body) - PREFIX_BYTES
    ):
        raise QueryError("the call does not consist of one message")
    try:
        return kind.FromString(body[PREFIX_BYTES:])
    except DecodeError as error:
        raise QueryError(f"not a {kind.DESCRIPTOR.name}: {error}") from None


def _set_deadline(request: Request) -> None:
    """Let the HTTP API know the call's deadline. Raises _CallError."""
    timeout = request.headers.get(b"grpc-timeout")
    if timeout is None:
        return
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        raise _CallError(INVALID_ARGUMENT, "grpc-timeout is not a number and a unit")
    left_ms = min(int(found[1]) * _UNIT_MS[found[2]], LONGEST_MS)
    if left_ms <= 0:
        raise _CallError(_CODES[504], "the deadline had passed when the call arrived")
    request.headers[DEADLINE] = b"%.6f" % left_ms


class GrpcApi:
    """Handles gRPC's calls, and leaves every other request to the HTTP API.

    Args:
        app: the HTTP API.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._methods: dict[bytes, Method] = {
            b"ModelInfer": self._infer,
            b"ServerLive": self._server_live,
            b"ServerReady": self._server_ready,
            b"ServerMetadata": self._server_metadata,
            b"ModelReady": self._model_ready,
            b"ModelMetadata": self._model_metadata,
        }

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer `request`."""
        if not is_grpc(request.headers):
            return self._app(request)
        try:
            _set_deadline(request)
            return self._method(request)(request)
        except _CallError as error:
            return _fault(error.code, str(error))
        except QueryError as error:
            return _fault(INVALID_ARGUMENT, str(error))

    def _method(self, request: Request) -> Method:
        name = request.path.removeprefix(SERVICE)
        if request.method != b"POST" or not request.path.startswith(SERVICE):
            raise _CallError(UNIMPLEMENTED, "this is inference.GRPCInferenceService only")
        method = self._methods.get(name)
        if method is None:
            raise _CallError(UNIMPLEMENTED, f"there is no {name[:80].decode('latin-1')}")
        return method

    def refuse(self, headers: Mapping[bytes, bytes], status: int, message: str) -> Response:
        """The answer to a request whose body is not taken."""
        if is_grpc(headers):
            return _fault(_CODES.get(status, INTERNAL), message)
        return problem(status, message)

    def _infer(self, request: Request) -> Response | Awaitable[Response]:
        message = _read(ModelInferRequest, request.body)
        path = _path(message.model_name, message.model_version) + b"/infer"
        served = self._app.served_at(path)
        if served is not None:
            return self._app.infer(request, served, _ModelInfer(message))
        status, document = self._ask(request, path, b"POST")  # why there is nothing
        return self._refused(status, document)

    def _ask(
        self, request: Request, path: bytes, method: bytes = b"GET"
    ) -> tuple[int, dict[str, Any]]:
        """What the HTTP API says to a request without a body: status, and its JSON."""
        asked = Request(
            method,
            path,
            request.headers,
            memoryview(b""),
            request.arrived,
            request.private,
            request.peer,
        )
        response = self._app(asked)
        assert isinstance(response, Response)  # noqa: S101 - infer calls take the other way
        document: dict[str, Any] = json.loads(b"".join(response.body))
        return response.status, document

    def _refused(self, status: int, document: Mapping[str, Any]) -> Response:
        return _fault(_CODES.get(status, INTERNAL), str(document.get("error", "")))

    def _server_live(self, request: Request) -> Response:
        _read(message_class("ServerLiveRequest"), request.body)
        return _answer(message_class("ServerLiveResponse")(live=True).SerializeToString())

    def _server_ready(self, request: Request) -> Response:
        _read(message_class("ServerReadyRequest"), request.body)
        status, _ = self._ask(request, b"/v2/health/ready")
        message = message_class("ServerReadyResponse")(ready=status == 200)
        return _answer(message.SerializeToString())

    def _server_metadata(self, request: Request) -> Response:
        _read(message_class("ServerMetadataRequest"), request.body)
        _, document = self._ask(request, b"/v2")
        message = message_class("ServerMetadataResponse")(
            name=document["name"],
            version=document["version"],
            extensions=document["extensions"],
        )
        return _answer(message.SerializeToString())

    def _model_ready(self, request: Request) -> Response:
        asked = _read(message_class("ModelReadyRequest"), request.body)
        status, document = self._ask(request, _path(asked.name, asked.version) + b"/ready")
        if status not in (200, 503):
            return self._refused(status, document)
        message = message_class("ModelReadyResponse")(ready=status == 200)
        return _answer(message.SerializeToString())

    def _model_metadata(self, request: Request) -> Response:
        asked = _read(message_class("ModelMetadataRequest"), request.body)
        status, document = self._ask(request, _path(asked.name, asked.version))
        if status != 200:
            return self._refused(status, document)
        message = message_class("ModelMetadataResponse")(
            name=document["name"],
            versions=document["versions"],
            platform=document["platform"],
            inputs=document["inputs"],
            outputs=document["outputs"],
            properties={
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in document["parameters"].items()
            },
        )
        return _answer(message.SerializeToString())


def is_grpc(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request is a gRPC call."""
    return headers.get(b"content-type", b"").startswith(TYPE)


def _path(name: str, version: str) -> bytes:
    """Where the HTTP API has a model, or one of its versions."""
    more = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(name, safe='')}{more}".encode()
