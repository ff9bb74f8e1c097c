"""How a client's request is read and its answer is written: HTTP's way; gRPC has its own.

What lies between, admission, deadline, budget, metrics and the query itself, is the same
(`erless.serve.protocol.app`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from erless.http.messages import Request, Response, problem
from erless.serve.protocol.infer import InferRequest, decode, encode
from erless.serve.protocol.served import InferAnswer, Served

__all__ = ["HTTP", "RETRY_AFTER", "Failure", "Wire"]

RETRY_AFTER = ((b"retry-after", b"1"),)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer: HTTP's status, the kind that metrics count, the reason.

    state: of a function that is not ready; else empty.
    """

    status: int
    kind: str
    message: str
    state: str = ""


class Wire(Protocol):
    """A protocol of clients."""

    def decode(self, request: Request, served: Served) -> InferRequest:
        """The query in `request`. Raises QueryError."""

    def encode(self, served: Served, inputs: InferRequest, answer: InferAnswer) -> Response:
        """The response with `answer`. Raises QueryError."""

    def refuse(self, failure: Failure) -> Response:
        """The response to a query that failed."""


class _Http:
    """JSON, and tensors behind it."""

    def decode(self, request: Request, served: Served) -> InferRequest:
        """See `Wire`."""
        return decode(
            request.body,
            request.headers,
            served.inputs,
            served.outputs,
            served.request_parameters,
        )

    def encode(self, served: Served, inputs: InferRequest, answer: InferAnswer) -> Response:
        """See `Wire`."""
        version = served.digest[:12]
        return encode(served.model, version, inputs, answer.outputs, answer.parameters)

    def refuse(self, failure: Failure) -> Response:
        """See `Wire`."""
        status, message = failure.status, failure.message
        if status == 503:
            more = {"state": failure.state} if failure.state else {}
            return problem(status, message, headers=RETRY_AFTER, **more)
        if status == 401:
            return problem(status, message, headers=((b"www-authenticate", b"Bearer"),))
        return problem(status, message)


HTTP = _Http()
