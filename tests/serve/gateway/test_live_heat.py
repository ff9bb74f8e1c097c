"""A gateway that samples queries: what lies in the store afterwards is what they asked for."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from erless.profile.live import Heat, profile_live, read_live
from erless.specs.model import ModelSpec, Pooling
from erless.specs.profile import Profile
from erless.storage.stores import open_store
from tests.releases import Made, make_release, random_query
from tests.serve.functions import Fleet, predict
from tests.serve.gateway.test_shared_tables import DOT, model, pack, query


def counted(spec: ModelSpec, values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """How often a query's ids ask for each row of each table."""
    ends = np.cumsum(lengths.sum(axis=1))
    parts = np.split(values, ends[:-1])
    counts = [np.zeros(table.rows) for table in spec.tables]
    names = [table.name for table in spec.tables]
    for lookup, ids in zip(spec.lookups, parts, strict=True):
        counts[names.index(lookup.table)] += np.bincount(
            ids, minlength=spec.table(lookup.table).rows
        )
    return counts


def check(made: Made, heat: Heat, expected: list[np.ndarray]) -> None:
    """Counts of rows, and gathers of shards, are those of the queries that were sent."""
    routes = open_routes(made)
    gathers = sum(content["recent.gathers"].sum(axis=0) for content in heat.recent)
    for number, (sketch, whole) in enumerate(zip(heat.tables, expected, strict=True)):
        np.testing.assert_array_equal(sketch.ids, np.flatnonzero(whole))
        np.testing.assert_allclose(sketch.counts, whole[sketch.ids], rtol=0.02)  # decayed a bit
        by_shard = np.bincount(routes[number], whole, minlength=len(made.release.shards))
        np.testing.assert_array_equal(gathers[:, number], by_shard)


def open_routes(made: Made) -> list[np.ndarray]:
    from erless.serve.files import Source, open_gateway

    with open_gateway(Source(made.store), made.release.digest) as opened:
        return [route.all_shards() for route in opened.routes]


def wait_for_queries(made: Made, number: int) -> Heat:
    """Wait until the gateway has told of so many queries."""
    store, until = open_store(made.store), time.monotonic() + 30
    while True:
        if store.list("heat/"):
            heat = None
            try:
                heat = read_live(store, made.release)
            except Exception as error:  # nothing sampled yet
                assert time.monotonic() < until, error
            if heat and sum(int(c["recent.queries"].sum()) for c in heat.recent) == number:
                return heat
        assert time.monotonic() < until
        time.sleep(0.02)


def test_heat_is_what_was_asked_for_and_makes_a_profile(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    expected = [np.zeros(table.rows) for table in made.model.tables]
    with Fleet(made, tmp_path, ERLESS_SAMPLE="1", ERLESS_HEAT_EVERY_S="0.2") as fleet:
        other = fleet.start_gateway(ERLESS_SAMPLE="1", ERLESS_HEAT_EVERY_S="0.2").ready()
        for seed in range(20):
            asked = random_query(made.model, seed, 16)
            predict(fleet.gateway if seed % 2 else other, made, asked)
            asked_for = counted(made.model, asked.values, asked.lengths)
            expected = [a + b for a, b in zip(expected, asked_for, strict=True)]
        heat = wait_for_queries(made, 20)
        assert len(heat.spills) == 2
        check(made, heat, expected)
        resident = sum(
            float(content["recent.gathers"][:, 0].sum()) for content in heat.recent
        ) / sum(float(content["recent.gathers"].sum()) for content in heat.recent)
        shares = [each.metric("erless_resident_share") for each in (fleet.gateway, other)]
        assert np.mean(shares) == pytest.approx(resident, abs=0.02)
        assert other.metric("erless_shard_share") == pytest.approx(1.0)  # of all shards together
        assert fleet.gateway.stop() == 0
    store = open_store(made.store)
    report = profile_live(store, made.release, tmp_path / "live", before=made.profile)
    assert report.warnings == ()
    profile = Profile.load(tmp_path / "live" / "profile.json")
    assert profile.tables[0].pooling_factor == pytest.approx(expected[0].sum() / 320, rel=0.02)


def test_features_that_share_a_table_are_counted_together(tmp_path: Path) -> None:
    spec = model(Pooling.SUM, DOT)
    made = pack(tmp_path, spec)
    with Fleet(made, tmp_path, ERLESS_SAMPLE="1", ERLESS_HEAT_EVERY_S="0.2") as fleet:
        asked = query(spec, 20, np.random.default_rng(3))
        predict(fleet.gateway, made, asked)
        check(made, wait_for_queries(made, 1), counted(spec, asked.values, asked.lengths))


def test_a_store_that_refuses_does_not_stop_answers(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    Path(made.store, "heat").write_text("no folder")
    with Fleet(made, tmp_path, ERLESS_SAMPLE="1", ERLESS_HEAT_EVERY_S="0.2") as fleet:
        asked = random_query(made.model, 1, 16)
        predict(fleet.gateway, made, asked)
        told = fleet.gateway.event("live heat is not in the store")
        assert "heat" in told["reason"]
        predict(fleet.gateway, made, asked)
