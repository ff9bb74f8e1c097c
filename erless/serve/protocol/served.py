"""What a function serves, as the HTTP API calls it: tensors in, tensors out, at once or later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from erless.dlrm._kernels import FastPath
from erless.errors import ErlessError
from erless.http.messages import Request
from erless.serve.files import MappedFile
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.tensors import TensorSpec

if TYPE_CHECKING:
    from erless.serve.spans import QuerySpan

__all__ = ["CallsFunctions", "InferAnswer", "InferCall", "Served", "WatchesIds"]


@dataclass(slots=True)
class InferCall:
    """One `infer` call.

    Args:
        request: the decoded inputs, and the outputs to answer with.
        began: when the request arrived, in the loop's time.
        deadline: when its client stops waiting, in the loop's time.
        traceparent: the W3C trace context, to be passed on.
        span: of the query, where it is traced.
        origin: the client's request, where somebody looks at who asks what. It holds the body: let
            go of it before waiting.
    """

    request: InferRequest
    began: float
    deadline: float
    traceparent: bytes | None = None
    span: QuerySpan | None = None
    origin: Request | None = None


@dataclass(slots=True)
class InferAnswer:
    """Outputs by name, and response parameters.

    `fault`: why some outputs are not finite, in an answer to several queries (`coalescing`).
    """

    outputs: Mapping[str, NDArray[Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    fault: ErlessError | None = None


class Served(Protocol):
    """What a function serves, once it is loaded.

    Args:
        model: its name in the protocol's paths.
        digest: of the artifact that it answers for.
        inputs, outputs: its tensors.
        request_parameters: names of request parameters beside the protocol's.
        answers_synchronously: `infer` never answers later, so that arrays may lie in the
            connection's own buffer.
        decoy: nobody should ask it anything.
    """

    model: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    request_parameters: frozenset[str]
    answers_synchronously: bool
    decoy: bool

    @property
    def mapped(self) -> Sequence[MappedFile]:
        """The files that it has mapped while it serves, for the scrubber."""

    @property
    def version_path(self) -> str:
        """Its path below `/v2/models/`, without `/infer`: the model's, or one of its versions."""

    @property
    def open_version(self) -> Callable[[str], Served] | None:
        """Opens the version with a digest, in any thread; None: there are no others."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """The `parameters` of the model's metadata beside the digest."""

    @property
    def fast_path(self) -> FastPath | None:
        """Answers requests of the known form in C; None where the function has no such path."""

    def memory_bytes(self, request: InferRequest) -> int:
        """About how many bytes the query will hold until it is answered."""

    def infer(self, call: InferCall) -> InferAnswer | Awaitable[InferAnswer]:
        """Answer. Raises QueryError for what the client sent, ServeError for anything else."""

    def close(self) -> None:
        """Let go of files, threads and connections."""


@runtime_checkable
class CallsFunctions(Protocol):
    """What is served by calling other functions."""

    async def wait_for_functions(self) -> None:
        """Wait until they can be called, as far as nobody else has seen to that."""


@runtime_checkable
class WatchesIds(Protocol):
    """What is served by ids that clients send."""

    def watch_ids(self, tell: Callable[[Request, str], None]) -> None:
        """From now on have `tell` called with the request of who takes ids in order, and why."""
