"""A shard, or the dense function, as the gateway sees it: writes requests, checks answers.

Requests and answers are those of `erless.serve.protocol.fast_lane`: the JSON of an answer is
compared with the only one that would be right, and read only to find out what is wrong with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.infer_request import DATATYPES
from erless.dlrm.rows import Buckets
from erless.errors import QueryError, ServeError
from erless.http.client.endpoint import CallError, Endpoint, HttpCall, Reply
from erless.http.client.reply import ANSWER_GENERAL
from erless.http.messages import ALIGNMENT_BYTES, JSON_LENGTH, Buffer
from erless.serve.protocol.fast_lane import (
    ANSWER,
    REQUEST,
    answer_forms,
    head_forms,
    request_forms,
    request_head,
    tensor,
)
from erless.serve.protocol.tensors import TensorSpec, read_tensors

__all__ = ["RemoteDense", "RemoteShard"]

Floats = NDArray[np.float32]
Partial = NDArray[np.float32] | NDArray[np.float16]


FAILED = b'"state": "failed"'  # in a 503: it cannot start, or its rows are damaged
SAMPLES = 1024  # bags of each table that a shard surely takes as samples of one query
STATE_S = 5.0  # for a function to say whether it holds a state
WAKE_S = 60.0  # a function that does not start within it is called anew
# A request for all outputs, as bytes.
_ALL = b'{"inputs":[%b],"parameters":{"binary_data_output":true}}'
_FLOAT32 = (b"FP32", np.dtype("<f4"), 4)
_FLOAT16 = (b"FP16", np.dtype("<f2"), 2)


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _reason(reply: Reply) -> str:
    try:
        return str(json.loads(bytes(reply.body))["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no reason given"


class _Remote:
    """What a shard and the dense function have in common.

    Args:
        label: what an error calls it.
        model, output: names of the model that it serves, and of the output to ask for.
        digest: that its answers must carry.
        endpoint: where it is.
        secret: of the deployment, shown with every call.
    """

    def __init__(
        self,
        label: str,
        model: str,
        output: str,
        digest: str,
        endpoint: Endpoint,
        secret: bytes | None,
        path: str | None = None,
    ) -> None:
        self.label, self.digest, self.endpoint = label, digest, endpoint
        self._model, self._output = model, output
        self._authority = endpoint.authority.replace(b"%", b"%%")
        self.path = (path or model).encode()
        self._head = request_head(self.path, self._authority, secret)
        self._answer = ANSWER % (
            model.encode(),
            digest[:12].encode(),
            digest.encode(),
            output.encode(),
        )
        self._probe = b"GET /v2/health/ready HTTP/1.1\r\nhost: %b\r\n\r\n" % endpoint.authority
        line = b"erless-secret: %b\r\n" % secret if secret else b""
        self._state_probe = b"GET /v2/models/%b/ready HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (
            self.path,
            endpoint.authority,
            line,
        )
        self.waking = False

    async def holds_state(self) -> str:
        """Ask whether the function has its state; "" if it has, otherwise why not."""
        return await self._ask(self._state_probe, STATE_S)

    async def is_ready(self, limit_s: float) -> str:
        """Wake the function and ask whether it is ready; "" if it is, otherwise why not."""
        return await self._ask(self._probe, max(min(limit_s, WAKE_S), STATE_S))

    async def _ask(self, probe: bytes, limit_s: float) -> str:
        """Send `probe`; "" where 200 is the answer, otherwise why not."""
        answered: asyncio.Future[Reply | CallError] = asyncio.get_running_loop().create_future()

        def keep(result: Reply | CallError) -> None:
            if not answered.done():
                answered.set_result(result)

        call = self.endpoint.send([probe], keep)
        try:
            async with asyncio.timeout(limit_s):
                result = await answered
        except TimeoutError:
            call.abort()
            return f"no answer within {limit_s:g} s"
        if isinstance(result, CallError):
            return str(result)
        return "" if result.status == 200 else _reason(result)

    def touch(self) -> None:
        """Open a connection and ask whether it is ready: wakes a function that is at zero."""
        if not self.waking:
            self.woken_by(self.endpoint.send([self._probe], self._touched))

    def _touched(self, result: Reply | CallError) -> None:
        self.waking = False

    def woken_by(self, call: HttpCall) -> None:
        """`call` waits for the function to start; it is given up after a while."""
        self.waking = True
        asyncio.get_running_loop().call_later(WAKE_S, self._give_up, call)

    def _give_up(self, call: HttpCall) -> None:
        if call.open:
            call.abort()
            self.waking = False

    def _request(
        self,
        tensors: Sequence[tuple[bytes, NDArray[Any]]],
        parameters: bytes,
        left_ms: int,
        trace: bytes | None,
    ) -> list[Buffer]:
        inputs = b",".join(
            tensor(name, _NAMES[array.dtype], array.shape, array.nbytes) for name, array in tensors
        )
        text = REQUEST % (inputs, self._output.encode(), parameters)
        return self._with_head(text, [_bytes(array) for _, array in tensors], left_ms, trace)

    def _with_head(
        self, text: bytes, arrays: list[memoryview], left_ms: int, trace: bytes | None
    ) -> list[Buffer]:
        """The whole request; spaces behind the JSON align the tensors in the receiver's buffer."""
        size = len(text) + sum(map(len, arrays))
        more = b"" if trace is None else b"traceparent: %b\r\n" % trace
        pad = -(len(self._head % (len(text), size, left_ms, more)) + len(text)) % ALIGNMENT_BYTES
        head = self._head % (len(text) + pad, size + pad, left_ms, more)
        if (len(head) + len(text) + pad) % ALIGNMENT_BYTES:  # the padding took another digit
            pad += ALIGNMENT_BYTES - 1
            head = self._head % (len(text) + pad, size + pad, left_ms, more)
        return [head + text + b" " * pad, *arrays]

    def read(self, reply: Reply, elements: int, float16: bool = False) -> Partial:
        """The `elements` numbers of an answer.

        Raises:
            ServeError: it is an error, or not the answer to what was asked.
        """
        if reply.status != 200:
            raise self._failure(reply)
        length = reply.headers.get(JSON_LENGTH, b"")
        end = int(length) if length.isdigit() and len(length) < 10 else len(reply.body)
        text = bytes(reply.body[:end])
        size = len(reply.body) - end
        # sums beyond float16 come in float32 although float16 was asked for
        for datatype, dtype, width in (_FLOAT16, _FLOAT32) if float16 else (_FLOAT32,):
            expected = self._answer % (datatype, elements, elements * width)
            if size == elements * width and text == expected:
                return cast("Partial", np.frombuffer(reply.body, dtype, elements, end))
        raise self._mismatch(text, size, elements)

    def _failure(self, reply: Reply) -> ServeError:
        reason = _reason(reply)
        if reply.status == 503 and FAILED in bytes(reply.body):
            return ServeError(f"{self.label} has failed: {reason}", 503, "shard")
        if reply.status == 503:
            return ServeError(f"{self.label} is overloaded: {reason}", 503, "overload")
        if reply.status == 504:
            return ServeError(f"{self.label}: {reason}", 504, "deadline")
        return ServeError(f"{self.label} answered {reply.status}: {reason}", 502, "shard")

    def _mismatch(self, text: bytes, size: int, elements: int) -> ServeError:
        """Say what is wrong with an answer that is not the one expected."""
        try:
            document = json.loads(text)
            digest = document["parameters"]["digest"]
            output = document["outputs"][0]
            answered = f"{output['name']} {output['datatype']} {output['shape']}, {size:,} bytes"
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return ServeError(f"{self.label}: its answer makes no sense", 502, "shard")
        if digest != self.digest:
            return ServeError(
                f"{self.label} answered for {str(digest)[:12]}, expected {self.digest[:12]}",
                502,
                "digest",
            )
        return ServeError(
            f"{self.label} answered {answered}, expected {self._output} of {elements:,} elements",
            502,
            "shard",
        )


_NAMES = {dtype: name.encode() for dtype, name in DATATYPES.items()}


class RemoteShard(_Remote):
    """One sparse function, as its release or a generation has it.

    Args:
        number: of the shard in the release.
        name: of the shard, for errors.
        digest: of its manifest, or of the state it is in, which its answers must carry.
        endpoint: where it is.
        float16_partials: ask for partials in float16.
        places: of its tables (`Combiner.places`).
        secret: of the deployment, shown with every call.
        path: of the shard, or of its version in that state, below `/v2/models/`.
    """

    def __init__(
        self,
        number: int,
        name: str,
        digest: str,
        endpoint: Endpoint,
        *,
        places: NDArray[np.int64],
        float16_partials: bool,
        secret: bytes | None = None,
        path: str = "shard",
    ) -> None:
        super().__init__(f"shard {name}", "shard", "partial", digest, endpoint, secret, path)
        self.number, self.name = number, name
        self.float16_partials = float16_partials
        self._parameters = b'"packed":true,"half":true' if float16_partials else b'"packed":true'
        self._dims = places[:, 1].copy()
        heads, json32, json16 = answer_forms(digest.encode())
        self._channel = _kernels.ShardChannel(
            head_forms(self.path, self._authority, secret),
            request_forms((float16_partials,)),
            (*heads, json32, json16 if float16_partials else b""),
            places,
        )

    def request(self, buckets: Buckets, left_ms: int, trace: bytes | None) -> list[Buffer]:
        """A request with this shard's bucket, `left_ms` before the deadline."""
        bags = buckets.bags(self.number)
        if bags is None:
            whole = buckets.split.build_request(self.number, self._channel, left_ms, trace)
            if whole is not None:
                return [whole]
        values, lengths, weights = buckets[self.number]
        tensors: list[tuple[bytes, NDArray[Any]]] = [(b"values", values)]
        if bags is None or (lengths.ndim == 2 and lengths.shape[1] <= SAMPLES):
            tensors.append((b"lengths", lengths))
        else:
            tensors += [(b"bags", bags), (b"bag_lengths", lengths.reshape(-1))]
        if weights is not None:
            tensors.append((b"weights", weights))
        return self._request(tensors, self._parameters, left_ms, trace)

    def add_answer(
        self, buckets: Buckets, buffer: bytearray, begin: int, end: int, last: bool, out: Floats
    ) -> tuple[int, int]:
        """Add an answer of the known form to `out` (B, …); see `AddAnswer` of the HTTP client."""
        if buckets.ragged:
            return ANSWER_GENERAL, begin
        return buckets.split.add_answer(self.number, self._channel, buffer, begin, end, last, out)

    def partial(self, buckets: Buckets, reply: Reply) -> Partial:
        """The packed partial in any other answer. Raises ServeError as `read`."""
        lengths, bags = buckets[self.number].lengths, buckets.bags(self.number)
        if bags is None or lengths.ndim == 2:
            elements = int(np.count_nonzero(lengths, axis=1) @ self._dims)
        else:
            elements = int(np.repeat(self._dims, bags)[lengths > 0].sum())
        return self.read(reply, elements, self.float16_partials)


class RemoteDense(_Remote):
    """The dense function.

    Args:
        digest: sha256 of the tower file, which its answers must carry.
        endpoint: where it is.
        secret: of the deployment, shown with every call.
        outputs: of a model cut from a graph; None: it gives `prediction`.
        path: of the tower, or of its version, below `/v2/models/`.
    """

    def __init__(
        self,
        digest: str,
        endpoint: Endpoint,
        secret: bytes | None = None,
        outputs: Sequence[TensorSpec] | None = None,
        path: str = "tower",
    ) -> None:
        first = "prediction" if outputs is None else outputs[0].name
        super().__init__("the dense function", "tower", first, digest, endpoint, secret, path)
        self._outputs = outputs

    def request(
        self, tensors: Mapping[str, NDArray[Any]], left_ms: int, trace: bytes | None
    ) -> list[Buffer]:
        """A request with `dense` (B, F) and `pooled` (B, T, D), or a graph's inputs, not copied."""
        encoded = [(name.encode(), np.ascontiguousarray(a)) for name, a in tensors.items()]
        if self._outputs is None:
            return self._request(encoded, b"", left_ms, trace)
        inputs = b",".join(
            tensor(name, _NAMES[array.dtype], array.shape, array.nbytes) for name, array in encoded
        )
        return self._with_head(_ALL % inputs, [_bytes(a) for _, a in encoded], left_ms, trace)

    def _graph_outputs(
        self, reply: Reply, outputs: Sequence[TensorSpec]
    ) -> dict[str, NDArray[Any]]:
        if reply.status == 400:  # what the client sent does not fit the tower
            raise QueryError(_reason(reply))
        if reply.status != 200:
            raise self._failure(reply)
        length = reply.headers.get(JSON_LENGTH, b"")
        end = int(length) if length.isdigit() and len(length) < 10 else len(reply.body)
        try:
            document = json.loads(bytes(reply.body[:end]))
            if document["parameters"]["digest"] != self.digest:
                raise self._mismatch(bytes(reply.body[:end]), 0, 0)
            arrays = read_tensors(document["outputs"], memoryview(reply.body)[end:], outputs)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, QueryError):
            raise ServeError(f"{self.label}: its answer makes no sense", 502, "shard") from None
        return {name: array.copy() for name, array in arrays.items()}

    def outputs(self, reply: Reply, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The prediction (B,), or the graph's outputs. Raises ServeError as `read`."""
        if self._outputs is not None:
            return self._graph_outputs(reply, self._outputs)
        return {"prediction": np.array(self.read(reply, len(tensors["dense"])), np.float32)}
