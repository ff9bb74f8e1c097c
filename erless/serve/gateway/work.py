"""What each function has to do with a query: asked, taken in, stood in for (`fanout.Part`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from erless.dlrm._kernels import ANSWER_GENERAL
from erless.dlrm.embedding import default_partial
from erless.dlrm.rows import Buckets
from erless.http.client.endpoint import Reply
from erless.http.messages import Buffer
from erless.serve.files import OpenGateway
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.protocol.app import Call

__all__ = ["DensePart", "ShardPart"]

Floats = NDArray[np.float32]


def _left_ms(call: Call, now: float) -> int:
    return max(1, int((call.deadline - now) * 1e3))


class ShardPart:
    """A shard's bucket, and its partial, which is added to `out` (B, T, D)."""

    __slots__ = ("_buckets", "_call", "_now", "_opened", "_out", "remote")

    def __init__(
        self,
        opened: OpenGateway,
        remote: RemoteShard,
        buckets: Buckets,
        out: Floats,
        call: Call,
        now: float,
    ) -> None:
        self._opened, self.remote, self._buckets, self._out = opened, remote, buckets, out
        self._call, self._now = call, now

    def request(self) -> list[Buffer]:
        """The bucket."""
        left_ms = _left_ms(self._call, self._now)
        return self.remote.request(self._buckets, left_ms, self._call.traceparent)

    def take(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        """Add the partial, where the answer is in the fast lane."""
        return self.remote.add_answer(self._buckets, buffer, begin, end, last, self._out)

    def read(self, reply: Reply) -> None:
        """Add the partial, however it came."""
        number = self.remote.number
        partial = self.remote.partial(self._buckets, reply)
        lengths = self._buckets[number].lengths
        self._opened.combiner.add(self._out, number, partial, lengths, packed=True)

    def stand_in(self) -> None:
        """Add as many default vectors."""
        opened, number = self._opened, self.remote.number
        tables = [opened.release.model.tables[index] for index in opened.holdings[number]]
        _, lengths, weights = self._buckets[number]
        partial = default_partial(tables, opened.defaults[number], lengths, weights)
        opened.combiner.add(self._out, number, partial, lengths)


class DensePart:
    """Dense features and pooled vectors, and their prediction (B,), once it is there."""

    __slots__ = ("_call", "_dense", "_now", "_pooled", "prediction", "remote")

    def __init__(
        self,
        remote: RemoteDense,
        dense: Floats,
        pooled: Floats,
        call: Call,
        now: float,
    ) -> None:
        self.remote, self._dense, self._pooled = remote, dense, pooled
        self._call, self._now = call, now
        self.prediction: Floats = np.empty(0, np.float32)

    def request(self) -> list[Buffer]:
        """Both arrays."""
        left_ms = _left_ms(self._call, self._now)
        return self.remote.request(self._dense, self._pooled, left_ms, self._call.traceparent)

    def take(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        """No answer of the tower's is in the fast lane."""
        return ANSWER_GENERAL, begin

    def read(self, reply: Reply) -> None:
        """Keep the prediction."""
        self.prediction = np.array(self.remote.read(reply, len(self._dense)), np.float32)

    def stand_in(self) -> None:
        """Nothing can."""
        raise AssertionError
