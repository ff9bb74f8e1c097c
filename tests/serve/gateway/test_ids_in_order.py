"""Who takes ids in order is told, and who does not is not."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.http.messages import Request
from erless.serve.gateway.ids_in_order import (
    LEAST_IDS,
    MOST_BYTES,
    WINDOW_S,
    IdsInOrder,
    client_of,
)
from erless.serve.protocol.forms import Lookup
from tests.releases import default_model

ROWS = 100_000
MODEL = default_model(ROWS)
Ids = NDArray[Any]


class Watched:
    """A watch, its clock, and what it told."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.now_s = 0.0
        self.told: list[tuple[str, str]] = []
        chance = random.Random(1)
        self.watch = IdsInOrder(MODEL, lambda: self.now_s, self._tell, most_bytes, chance)

    def _tell(self, request: Request, what: str) -> None:
        self.told.append((request.peer, what))

    def ask(self, ids: Iterable[int], peer: str = "10.0.0.9", **headers: str) -> None:
        """A query of a sample with `ids` of the first table, and an id of the second."""
        values = np.array([*ids, 7], np.int64)
        lengths = np.array([[len(values) - 1], [1], [0]], np.int32)
        shown = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
        request = Request(b"POST", b"/", shown, memoryview(b""), 0.0, peer=peer)
        self.watch.observe(request, Lookup(values, lengths, None))

    def walk(self, count: int, batch: int, **who: str) -> None:
        for begin in range(0, count, batch):
            self.ask(range(begin, begin + batch), **who)


def test_a_walk_is_told_with_its_table() -> None:
    for batch in (1, 2, 32, 500):
        watched = Watched()
        watched.walk(max(3 * LEAST_IDS, 128 * batch), batch)
        assert watched.told, batch
        peer, what = watched.told[0]
        assert peer == "10.0.0.9"
        assert "of table user in order" in what


def test_one_query_may_be_the_whole_walk() -> None:
    watched = Watched()
    for _ in range(100):  # an eighth is looked at
        watched.ask(range(LEAST_IDS))
    assert watched.told


def test_queries_that_overtake_each_other_are_one_walk() -> None:
    watched, rng = Watched(), np.random.default_rng(1)
    begins = np.arange(0, 4 * LEAST_IDS, 16)
    for begin in begins[np.argsort(begins + 16 * rng.integers(0, 8, len(begins)))]:
        watched.ask(range(begin, begin + 16))
    assert watched.told


def test_ordinary_traffic_is_not() -> None:
    watched, rng = Watched(), np.random.default_rng(2)
    for number in range(60_000):
        ids = rng.integers(0, ROWS, 1 + number % 3)
        watched.ask(np.where(rng.random(len(ids)) < 0.5, ids, rng.zipf(1.3) % ROWS))
    assert watched.told == []


def test_what_is_in_order_but_comes_no_further_is_not() -> None:
    watched, rng = Watched(), np.random.default_rng(3)
    for number in range(20_000):
        watched.ask(range(50))  # positions
        watched.ask([number % 2], peer="10.0.0.8")  # a small table
        newest = number // 10 + int(rng.integers(0, 200))  # items, as they are made
        watched.now_s = number / 100
        watched.ask([newest], peer="10.0.0.7")
    assert watched.told == []


def test_who_takes_days_is_not() -> None:
    watched = Watched()
    for number in range(3 * LEAST_IDS):
        watched.now_s += 2 * WINDOW_S / LEAST_IDS
        watched.ask([number])
    assert watched.told == []


def test_clients_are_told_apart_by_address_token_and_whom_a_proxy_speaks_for() -> None:
    requests = [
        Request(b"POST", b"/", headers, memoryview(b""), 0.0, peer=peer)
        for peer in ("10.0.0.8", "10.0.0.9")
        for headers in (
            {},
            {b"authorization": b"Bearer one"},
            {b"authorization": b"Bearer two"},
            {b"x-forwarded-for": b"192.0.2.7"},
        )
    ]
    assert len({client_of(request) for request in requests}) == len(requests)


def test_two_who_walk_beside_each_other_are_both_told_unless_they_look_like_one() -> None:
    apart, alike = Watched(), Watched()
    for begin in range(0, 3 * LEAST_IDS, 16):
        for place, start in enumerate((0, 50_000)):
            ids = range(start + begin, start + begin + 16)
            apart.ask(ids, authorization=f"Bearer {place}")
            alike.ask(ids)
    reached = [re.findall(r"up to ([\d,]+),", what)[0] for _, what in apart.told]
    assert {int(id_.replace(",", "")) // 50_000 for id_ in reached} == {0, 1}
    assert alike.told == []


def test_without_an_address_there_is_no_client() -> None:
    watched = Watched()
    watched.walk(3 * LEAST_IDS, 32, peer="")
    assert watched.told == []


def test_walks_of_many_clients_take_bounded_memory() -> None:
    watched = Watched(most_bytes=1 << 16)
    for number in range(20_000):
        watched.ask([number], peer=f"10.0.{number >> 8}.{number & 255}")
    assert 1 << 15 < watched.watch.held_bytes <= 1 << 16
    watched.walk(3 * LEAST_IDS, 32)
    assert watched.told
