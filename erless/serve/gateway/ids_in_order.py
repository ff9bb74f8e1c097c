"""Somebody copies a table: one client takes its ids in order, from query to query.

For each client and lane the watch keeps how far a walk has come. A query goes on with it where its
ids of that lane are a stretch (each the one before plus 1) that begins near the end of the last:
queries that overtake each other, or that are not looked at, do not break a walk. `LEAST_IDS` within
`WINDOW_S` are an alarm. By chance ids are no stretch, or one of a single id that lies anywhere; and
what asks for the same few ids again and again (positions, small tables, the newest items) comes no
further.

A client is an address, a token, and what a proxy says of whom it speaks for. Where many clients
share all three their queries break each other's walks: the alarm is then silent, never false.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.lanes import Lanes
from erless.http.messages import Request
from erless.serve.protocol.forms import Lookup
from erless.specs.model import ModelSpec

__all__ = ["IdsInOrder", "client_of"]

Ints = NDArray[np.int64]
LEAST_IDS = 4096
WINDOW_S = 60.0
LOOKED_AT = 1 / 8  # of the queries; the others cost a subtraction
NEAR = 64  # times the ids of a stretch: (7/8)^64 of the gaps between two queries are longer
MOST_BYTES = 4 << 20
WALK_BYTES = 24  # of a client and lane
_NOWHERE = np.iinfo(np.int64).min // 2


def client_of(request: Request) -> int | None:
    """What identifies the client of `request`; None: nothing does. It holds no token.

    >>> client_of(Request(b"POST", b"/", {}, memoryview(b""), 0.0)) is None
    True
    """
    if not request.peer:
        return None
    headers = request.headers
    return hash((request.peer, headers.get(b"authorization"), headers.get(b"x-forwarded-for")))


class _Walks:
    """Of one client: where its walk of each lane began, when, and how far it came.

    Args:
        lanes: of the model.
    """

    __slots__ = ("began_s", "first", "last")

    def __init__(self, lanes: int) -> None:
        self.first = np.full(lanes, _NOWHERE)
        self.last = np.full(lanes, _NOWHERE)
        self.began_s = np.zeros(lanes)

    def go_on(
        self, lanes: Ints, first: Ints, last: Ints, stretch: NDArray[np.bool_], now_s: float
    ) -> Ints:
        """Take a query's ids; how many ids each walk has come.

        Args:
            lanes: (n,) that the query has ids of.
            first, last: (n,) ids of each.
            stretch: (n,) whether all ids between the two are taken in order.
            now_s: seconds, of the watch's clock.
        """
        ahead, near = first - self.last[lanes], NEAR * (last - first + 1)
        young = now_s - self.began_s[lanes] < WINDOW_S
        goes_on = stretch & young & (ahead <= near) & (ahead >= -near)
        self.first[lanes] = np.where(goes_on, self.first[lanes], first)
        self.began_s[lanes] = np.where(goes_on, self.began_s[lanes], now_s)
        reached = np.where(goes_on, np.maximum(self.last[lanes], last), last)
        self.last[lanes] = np.where(stretch, reached, _NOWHERE)
        return np.where(stretch, reached - self.first[lanes] + 1, 0)

    def begin_anew(self, lane: int, now_s: float) -> None:
        """What has been told of counts no more."""
        self.first[lane], self.began_s[lane] = self.last[lane] + 1, now_s


class IdsInOrder:
    """Looks at a share of the queries, and tells who takes ids in order.

    Args:
        model: of the queries.
        clock: seconds, monotonic.
        tell: is called with the request that made it known, and what it is.
        most_bytes: of all clients' walks; those of who has been silent longest are forgotten.
        chance: by which queries are looked at; default: one that nobody can foretell.
    """

    def __init__(
        self,
        model: ModelSpec,
        clock: Callable[[], float],
        tell: Callable[[Request, str], None],
        most_bytes: int = MOST_BYTES,
        chance: random.Random | None = None,
    ) -> None:
        self._lanes = [table.name for table in Lanes.of(model).tables]
        self._tables = [table.name for table in model.tables]
        self._clock, self._tell = clock, tell
        self._walks = max(len(self._lanes), len(self._tables))
        self._most_clients = max(16, most_bytes // (WALK_BYTES * self._walks))
        self._clients: dict[int, _Walks] = {}  # the longest silent first
        self._random = chance or random.Random()  # noqa: S311
        self._left = self._gap()

    def _gap(self) -> int:
        """Queries up to the next that is looked at: each is with equal chance."""
        return 1 + int(math.log(1 - self._random.random()) / math.log(1 - LOOKED_AT))

    @property
    def held_bytes(self) -> int:
        """That all walks take."""
        return WALK_BYTES * self._walks * len(self._clients)

    def observe(self, request: Request, lookup: Lookup) -> None:
        """A query has come whose lengths are known to fit its ids."""
        self._left -= 1
        if self._left > 0:
            return
        self._left = self._gap()
        client = client_of(request)
        if client is None or not len(lookup.values):
            return
        ends = _ends(lookup)
        sizes = np.diff(ends, prepend=0)
        lanes = np.flatnonzero(sizes)
        sizes, ends, values = sizes[lanes], ends[lanes], lookup.values
        first = values[ends - sizes].astype(np.int64)
        last = values[ends - 1].astype(np.int64)
        middle = values[ends - sizes + sizes // 2]
        stretch = (last - first == sizes - 1) & (middle - first == sizes // 2)
        walks = self._clients.pop(client, None)
        if walks is None:
            if not stretch.any():
                return
            if len(self._clients) >= self._most_clients:
                del self._clients[next(iter(self._clients))]
            walks = _Walks(self._walks)
        self._clients[client] = walks
        now_s = self._clock()
        come = walks.go_on(lanes, first, last, stretch, now_s)
        for place in np.flatnonzero(come >= LEAST_IDS):
            lane = int(lanes[place])
            names = self._tables if lookup.begins is None else self._lanes
            walks.begin_anew(lane, now_s)
            self._tell(
                request,
                f"{come[place]:,} ids of table {names[lane]} in order, up to {last[place]:,}, "
                f"within {WINDOW_S:g} s: somebody may be copying it",
            )


def _ends(lookup: Lookup) -> Ints:
    """(L,) where the ids of each lane end; without lanes, of each table."""
    if lookup.begins is None:
        return np.cumsum(lookup.lengths.sum(axis=1, dtype=np.int64))
    ends = np.cumsum(lookup.lengths, dtype=np.int64)
    behind = lookup.begins[1:]
    return np.where(behind > 0, ends[behind - 1], 0) if len(ends) else np.zeros(len(behind), int)
