"""A query's work for each function: the request, and what its answer is added to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.embedding import Combiner, default_partial
from erless.dlrm.lanes import LaneSums
from erless.dlrm.rows import Buckets
from erless.http.client.reply import ANSWER_GENERAL, Reply
from erless.http.messages import Buffer
from erless.serve.files import OpenGateway
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.protocol.served import InferCall

__all__ = ["DenseWork", "SparseWork"]

Floats = NDArray[np.float32]
Array = NDArray[Any]


def _left_ms(call: InferCall, now: float) -> int:
    return max(1, int((call.deadline - now) * 1e3))


class SparseWork:
    """A shard's bucket of ids; its partial is added to `out` (B, T, D)."""

    __slots__ = ("_buckets", "_call", "_now", "_opened", "_out", "_sums", "remote")

    def __init__(
        self,
        opened: OpenGateway,
        remote: RemoteShard,
        buckets: Buckets,
        sums: Combiner | LaneSums,
        out: Floats,
        call: InferCall,
        now: float,
    ) -> None:
        self._opened, self.remote, self._buckets = opened, remote, buckets
        self._sums, self._out = sums, out
        self._call, self._now = call, now

    def request(self) -> list[Buffer]:
        """The request that carries the bucket."""
        left_ms = _left_ms(self._call, self._now)
        return self.remote.request(self._buckets, left_ms, self._call.traceparent)

    def add_answer(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        """Add the partial of an answer that has the known form."""
        return self.remote.add_answer(self._buckets, buffer, begin, end, last, self._out)

    def read(self, reply: Reply) -> None:
        """Add the partial of any other answer."""
        number = self.remote.number
        partial = self.remote.partial(self._buckets, reply)
        lengths = self._buckets[number].lengths
        self._sums.add(self._out, number, partial, lengths, packed=True)

    def use_defaults(self) -> None:
        """Add default vectors in the place of the bucket's rows."""
        opened, number = self._opened, self.remote.number
        tables = [opened.release.model.tables[index] for index in opened.holdings[number]]
        _, lengths, weights = self._buckets[number]
        bags = self._buckets.bags(number)
        partial = default_partial(tables, opened.defaults[number], lengths, weights, bags)
        self._sums.add(self._out, number, partial, lengths, packed=True)


class DenseWork:
    """The tower's inputs, by name, for the dense function; `outputs` holds its answer."""

    __slots__ = ("_call", "_now", "_tensors", "outputs", "remote")

    def __init__(
        self, remote: RemoteDense, tensors: Mapping[str, Array], call: InferCall, now: float
    ) -> None:
        self._call, self._now = call, now
        self._tensors, self.remote = tensors, remote
        self.outputs: dict[str, Array] = {}

    def request(self) -> list[Buffer]:
        """The request that carries the tensors."""
        left_ms = _left_ms(self._call, self._now)
        return self.remote.request(self._tensors, left_ms, self._call.traceparent)

    def add_answer(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        """Leave the answer to `read`: the tower's has no known form."""
        return ANSWER_GENERAL, begin

    def read(self, reply: Reply) -> None:
        """Keep the outputs."""
        self.outputs = self.remote.outputs(reply, self._tensors)

    def use_defaults(self) -> None:
        """Fail: nothing can stand in for the tower."""
        raise AssertionError("no error budget covers the dense function")
