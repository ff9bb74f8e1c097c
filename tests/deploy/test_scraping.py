"""The scraping alarm: ordinary traffic raises none, a walk through a table does."""

from __future__ import annotations

import numpy as np

from erless.deploy.scraping import WINDOW_S, ScrapingWatch
from erless.specs.odds import ShardOdds

ODDS = {"cold-0": ShardOdds(0.02, 3.0), "frozen": ShardOdds(0.0, 1.0)}
QUERIES = 2000  # a window
GATHERS = 100  # a query


class Traffic:
    """Windows of queries; each that reaches the cold shard gathers a few rows there at once."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.now = 0.0
        self.counts = {("gateway", 1): 0.0, ("cold-0", 2): 0.0, ("frozen", 3): 0.0}
        self.watch = ScrapingWatch(ODDS, lambda: self.now)

    def window(self, share: float = 0.02, scraped: dict[str, float] | None = None) -> list[str]:
        calls = self.random.poisson(QUERIES * GATHERS * share / 3.0)
        rows = float(self.random.poisson(3.0, calls).sum())
        self.counts["cold-0", 2] += rows
        self.counts["gateway", 1] += QUERIES * GATHERS - rows
        for name, more in (scraped or {}).items():
            self.counts[(name, 2) if name == "cold-0" else (name, 3)] += more
        self.now += WINDOW_S + 0.1
        return sorted(self.watch.observe(self.counts))


def test_ten_million_queries_of_ordinary_traffic_raise_none() -> None:
    traffic = Traffic(1)
    for _ in range(5000):
        assert traffic.window() == []


def test_traffic_that_moves_slowly_raises_none() -> None:
    traffic = Traffic(2)
    for share in np.linspace(0.02, 0.3, 200):
        assert traffic.window(float(share)) == []


def test_a_walk_through_a_cold_or_frozen_table_is_told_in_one_window() -> None:
    traffic = Traffic(3)
    for _ in range(3):
        assert traffic.window() == []
    assert traffic.window(scraped={"cold-0": 20_000.0}) == ["cold-0"]
    assert traffic.window(scraped={"frozen": 500.0}) == ["frozen"]
    assert traffic.window() == []  # and it is not taken for the new normal
    assert traffic.window(scraped={"cold-0": 20_000.0}) == ["cold-0"]


def test_replicas_that_come_and_go_are_counted_once() -> None:
    traffic = Traffic(4)
    assert traffic.window() == []
    traffic.counts["cold-0", 2] = 0.0  # another process with the same number
    for _ in range(3):
        assert traffic.window() == []
