"""The sparse function: one shard's rows, gathered and pooled."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import numpy as np

from erless.dlrm import _kernels
from erless.dlrm.embedding import EmbeddingShard
from erless.errors import QueryError
from erless.serve.app import Answer, Call
from erless.serve.http import JSON_LENGTH, Request, Response
from erless.serve.lane import ANSWER, ask_pattern
from erless.serve.load import OpenShard, Source, open_shard
from erless.serve.metrics import Metrics
from erless.serve.settings import Settings
from erless.serve.wire import BINARY_TYPE, InferRequest, TensorSpec

__all__ = ["SparseFunction", "load_sparse", "source_of"]

ASKED = ask_pattern()


def source_of(settings: Settings) -> Source:
    """Where the function's files come from."""
    from pathlib import Path

    return Source(
        settings.store,
        settings.endpoint_url,
        Path(settings.cache) if settings.cache else None,
        settings.cache_bytes,
    )


def load_sparse(settings: Settings, metrics: Metrics) -> SparseFunction:
    """The function, its shard verified and in memory. Errors as `open_shard`."""
    return SparseFunction(open_shard(source_of(settings), settings.digest), settings, metrics)


class SparseFunction:
    """Answers `partial` for `values` and `lengths`."""

    model = "shard"
    prompt = True

    def __init__(self, opened: OpenShard, settings: Settings, metrics: Metrics) -> None:
        self._opened, self._metrics = opened, metrics
        self._shard: EmbeddingShard = opened.shard
        self._max_batch = settings.max_batch
        self.digest = settings.digest
        self._parameters = {"digest": self.digest}
        version, digest = self.digest[:12].encode(), self.digest.encode()
        self._answer = ANSWER % (b"shard", version, digest, b"partial")
        tables = len(self._shard.tables)
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("values", ("INT64", "INT32"), (-1,)),
            TensorSpec("lengths", ("INT32",), (tables, -1)),
            TensorSpec("weights", ("FP32",), (-1,), optional=not self._shard.has_weights),
        )
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("partial", ("FP32", "FP16"), (-1, self._shard.width)),
        )

    def quick(self, request: Request) -> Response | None:
        """A gateway's request: the same as `infer`, without parsing JSON."""
        body, announced = request.body, request.headers.get(JSON_LENGTH, b"")
        end = int(announced) if announced.isdigit() and len(announced) < 10 else 0
        asked = ASKED.fullmatch(body[:end]) if end else None
        if asked is None:
            return None
        wide, count, size, tables, batch, bag_bytes, half = asked.groups()
        ids, rest = int(size), int(bag_bytes)
        samples, width = int(batch), 8 if wide == b"64" else 4
        if (
            (int(count) * width, int(tables) * samples * 4) != (ids, rest)
            or int(tables) != len(self._shard.tables)
            or samples > self._max_batch
            or end + ids + rest != len(body)
            or not (ids and samples)
        ):
            return None  # the general way says what is wrong
        values: Any = np.frombuffer(body, f"<i{width}", ids // width, end)
        lengths = np.frombuffer(body, np.int32, rest // 4, end + ids).reshape(-1, samples)
        if not (values.flags.aligned and lengths.flags.aligned):
            values, lengths = values.copy(), lengths.copy()
        partial = self._shard.pool_packed(values, lengths)
        self._metrics.gathers += len(values)
        datatype = b"FP32"
        if half is not None:
            partial = to_half(partial)
            datatype = b"FP16" if partial.dtype == np.float16 else datatype
        text = self._answer % (datatype, len(partial), partial.nbytes)
        data = partial.view(np.uint8).data
        return Response(200, (text, data), BINARY_TYPE, ((JSON_LENGTH, b"%d" % len(text)),))

    def infer(self, call: Call) -> Answer | Awaitable[Answer]:
        """Gather and pool."""
        request = call.request
        values, lengths = request.inputs["values"], request.inputs["lengths"]
        weights = request.inputs.get("weights")
        if lengths.shape[1] > self._max_batch:
            raise QueryError(f"{lengths.shape[1]:,} samples, at most {self._max_batch:,} are taken")
        if weights is not None and not np.isfinite(weights).all():
            raise QueryError("a weight is not a finite number")
        pool = self._shard.pool_packed if flag(request, "packed") else self._shard.pool
        partial = pool(values, lengths, weights)
        self._metrics.gathers += len(values)
        if flag(request, "half"):
            return Answer({"partial": to_half(partial)}, self._parameters)
        return Answer({"partial": partial}, self._parameters)

    def close(self) -> None:
        """Let the cache evict the shard."""
        self._opened.close()


def flag(request: InferRequest, name: str) -> bool:
    """A request parameter that is true or false, false where absent.

    Raises:
        QueryError: it is something else.
    """
    value = request.parameters.get(name, False)
    if not isinstance(value, bool):
        raise QueryError(f"parameter {name} must be true or false")
    return value


def to_half(partial: np.ndarray) -> np.ndarray:
    """`partial` in float16, unless a sum is beyond what float16 holds: then as it is."""
    halves = np.empty(partial.shape, np.float16)
    _kernels.to_half(partial, halves)
    return halves if np.isfinite(halves).all() else partial
