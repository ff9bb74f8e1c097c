"""The work that a query has for each function: how it is asked, and what its answer is added to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.embedding import default_partial
from erless.dlrm.rows import Buckets
from erless.http.client.reply import ANSWER_GENERAL, Reply
from erless.http.messages import Buffer
from erless.serve.files import OpenGateway
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.protocol.served import InferCall

__all__ = ["DenseWork", "SparseWork"]

Floats = NDArray[np.float32]


def _left_ms(call: InferCall, now: float) -> int:
    return max(1, int((call.deadline - now) * 1e3))


class SparseWork:
    """A shard's bucket of ids; its partial is added to `out` (B, T, D)."""

    __slots__ = ("_buckets", "_call", "_now", "_opened", "_out", "remote")

    def __init__(
        self,
        opened: OpenGateway,
        remote: RemoteShard,
        buckets: Buckets,
        out: Floats,
        call: InferCall,
        now: float,
    ) -> None:
        self._opened, self.remote, self._buckets, self._out = opened, remote, buckets, out
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
        self._opened.combiner.add(self._out, number, partial, lengths, packed=True)

    def use_defaults(self) -> None:
        """Add the default vectors of as many rows."""
        opened, number = self._opened, self.remote.number
        tables = [opened.release.model.tables[index] for index in opened.holdings[number]]
        _, lengths, weights = self._buckets[number]
        partial = default_partial(tables, opened.defaults[number], lengths, weights)
        opened.combiner.add(self._out, number, partial, lengths)


class DenseWork:
    """Dense features and pooled vectors for the tower; `prediction` (B,) holds its answer."""

    __slots__ = ("_call", "_dense", "_now", "_pooled", "prediction", "remote")

    def __init__(
        self,
        remote: RemoteDense,
        dense: Floats,
        pooled: Floats,
        call: InferCall,
        now: float,
    ) -> None:
        self.remote, self._dense, self._pooled = remote, dense, pooled
        self._call, self._now = call, now
        self.prediction: Floats = np.empty(0, np.float32)

    def request(self) -> list[Buffer]:
        """The request that carries both arrays."""
        left_ms = _left_ms(self._call, self._now)
        return self.remote.request(self._dense, self._pooled, left_ms, self._call.traceparent)

    def add_answer(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        """Leave the answer to `read`: the tower's has no known form."""
        return ANSWER_GENERAL, begin

    def read(self, reply: Reply) -> None:
        """Keep the prediction."""
        self.prediction = np.array(self.remote.read(reply, len(self._dense)), np.float32)

    def use_defaults(self) -> None:
        """Fail: nothing can stand in for the tower."""
        raise AssertionError
