"""How many vectors a shard sends back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from erless.plan.costs.cost import PAPER_TERMS
from erless.plan.costs.curves import AccessCurve, TableLoad, partial_vectors
from erless.plan.costs.layout import Demand, Layout, Slice
from erless.plan.search.cut_path import CutPath
from erless.plan.source import _bags
from erless.specs.model import ModelSpec, TableSpec
from erless.specs.plan import Precision
from tests.graphs import ranker_spec

ROWS, GATHERS, BATCH = 1000, 640.0, 32


def load(bags: float) -> TableLoad:
    spec = TableSpec(name="t", rows=ROWS, dim=16)
    return TableLoad(spec, GATHERS, AccessCurve.power_law(ROWS, 0.9), bags)


@pytest.mark.parametrize("bags", [1.0, 3.0])
def test_bags_that_a_shard_holds_nothing_of_send_nothing(bags: float) -> None:
    """Against ids drawn one by one."""
    rng = np.random.default_rng(0)
    own = rng.random((4000, int(GATHERS))) < 0.05
    bag = rng.integers(0, int(bags * BATCH), own.shape)
    drawn = np.mean([len(np.unique(row[held])) for row, held in zip(bag, own, strict=True)])
    assert partial_vectors(np.array(0.05 * GATHERS), bags * BATCH) == pytest.approx(drawn, rel=0.02)


def test_rows_of_unpooled_lookups_are_vectors_of_their_own() -> None:
    layouts = {
        bags: Layout.of(
            Demand((load(bags),), 100.0, 0.0, BATCH),
            PAPER_TERMS,
            [[Slice(0, 0, 100)], [Slice(0, 100, ROWS)]],
        )
        for bags in (1.0, math.inf)
    }
    hot, cold = layouts[math.inf].shards
    assert hot.partials == pytest.approx(hot.gathers)
    assert hot.partials + cold.partials == pytest.approx(GATHERS)
    assert max(shard.partials for shard in layouts[1.0].shards) <= BATCH


@pytest.mark.parametrize("bags", [1.0, 2.0, math.inf])
def test_searches_count_as_layouts_do(bags: float) -> None:
    demand = Demand((load(bags), load(1.0)), 100.0, 0.0, BATCH)
    cuts = np.array([[ROWS, ROWS], [100, 200], [0, 0]])
    path = CutPath.of(demand, PAPER_TERMS, cuts, Precision.FP32, Precision.FP32)
    shards = [
        [Slice(0, 0, 100), Slice(1, 0, 200)],
        [Slice(0, 100, ROWS), Slice(1, 200, ROWS)],
    ]
    hot, cold = Layout.of(demand, PAPER_TERMS, shards).shards
    assert path.partials[0, 1] == pytest.approx(cold.partials)
    assert path.partials[1, 2] == pytest.approx(hot.partials)


def test_a_models_features_say_how_many() -> None:
    spec: ModelSpec = ranker_spec()
    assert list(_bags(spec).values()) == [math.inf, 1.0, math.inf]
