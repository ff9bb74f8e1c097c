"""Runs priced at a vCPU and a byte: the best of every choice of cuts on a path."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from erless.plan.costs.cost import DEFAULT_TERMS
from erless.plan.costs.curves import AccessCurve, partial_vectors
from erless.plan.costs.layout import Demand
from erless.plan.nodes.hull import MEMORY, Price
from erless.plan.nodes.prices import read_prices
from erless.plan.policies.proposals import every_layout
from erless.plan.policies.run_layouts import layout_of, run_proposals
from erless.plan.search.cut_path import MOST_TABLE_POINTS, CutPath, merged_path, table_path
from erless.plan.search.frontier import SearchLimits
from erless.plan.search.merged_order import MergedOrder
from erless.plan.search.priced import cheapest_runs
from erless.specs.plan import Precision
from tests.plan.instances import assert_covers, table

FP32 = Precision.FP32
TERMS = DEFAULT_TERMS.on(1.9)


def demand(qps: float = 2000.0) -> Demand:
    tables = tuple(
        table(f"t{number}", 32.0 * pooling, AccessCurve.power_law(rows, place), dim)
        for number, (pooling, rows, place, dim) in enumerate(
            [(40, 3_000_000, 0.9, 32), (5, 8_000_000, 0.6, 16), (80, 100_000, 0.8, 64)]
        )
    )
    return Demand(tables, qps, 4e-4)


def short_path(served: Demand) -> CutPath:
    """At most seven points of the merged order."""
    order = MergedOrder.of(served.tables, TERMS, FP32, FP32)
    loads = np.linspace(0, order.total_load, 7)
    cuts = [order.table_rows, *(order.cut(float(load)) for load in loads[1:-1])]
    falling = [*dict.fromkeys(tuple(cut) for cut in cuts), (0, 0, 0)]
    return CutPath.of(served, TERMS, np.array(falling), FP32, FP32)


def cost(path: CutPath, served: Demand, points: tuple[int, ...], price: Price) -> float:
    layout = layout_of(path, served, TERMS, points)
    return price.memory * layout.memory + price.vcpu * sum(
        max(each.load / TERMS.utilisation, each.replicas * TERMS.least_vcpu)
        for each in layout.functions
    )


@pytest.mark.parametrize("price", [MEMORY, Price(25.0, 0.0), Price(20.0, 2e-9)])
def test_no_choice_of_points_is_cheaper(price: Price) -> None:
    served = demand()
    path = short_path(served)
    found = cheapest_runs(path, served, TERMS, [MEMORY, price], SearchLimits(max_shards=4))
    places = np.argwhere(np.isfinite(found.costs[1])).tolist()
    known = {
        found.points(1, *place): (
            float(found.floors[1][tuple(place)]),
            float(found.costs[1][tuple(place)]),
        )
        for place in places
    }
    least = min(
        cost(path, served, (0, *points), price)
        for number in range(5)
        for points in combinations(range(1, len(path.cuts)), number)
    )
    got = min(cost(path, served, points, price) for points in known)
    assert got <= least * 1.02  # the gateway's handling of calls is priced, not rounded
    for points, (low, high) in known.items():
        assert low * (1 - 1e-9) <= cost(path, served, points, price) <= high * (1 + 1e-9)


def test_the_path_knows_what_a_layout_takes() -> None:
    served = demand()
    path = short_path(served)
    layout = layout_of(path, served, TERMS, [0, 2, 5])
    coldest = layout.shards[-1]
    assert coldest.partials == pytest.approx(path.partials[0, 2])
    assert coldest.gathers == pytest.approx(path.gathers[2])
    assert layout.gateway.row_bytes == pytest.approx(path.resident_size[5])
    assert_covers(layout)


def test_shards_keep_to_their_room() -> None:
    served = demand()
    order = MergedOrder.of(served.tables, TERMS, FP32, FP32)
    path = merged_path(served, TERMS, order, FP32, FP32)
    room = 0.4e9
    limits = SearchLimits(max_shards=6, max_shard_bytes=room)
    layouts = list(every_layout(run_proposals([path], served, [TERMS], [MEMORY], limits, 6)))
    assert layouts
    assert all(each.memory <= room for layout in layouts for each in layout.shards)


def test_whole_tables_are_not_cut() -> None:
    served = demand()
    none = np.zeros(3, np.int64)
    path = table_path(served, TERMS, none, FP32, FP32)
    layout = layout_of(path, served, TERMS, [0, 1, 3])
    assert layout.gateway.memory == TERMS.gateway_memory_bytes  # nothing to route row by row
    assert {part.stop - part.start for each in layout.shards for part in each.slices} == {
        each.rows for each in served.tables
    }


def test_no_type_sells_below_a_hull_price() -> None:
    types, prices = read_prices().types, read_prices().hull
    for price in prices:
        sums = [
            (price.vcpu * each.usable_vcpu + price.memory * each.usable_bytes) / each.usd_per_month
            for each in types
        ]
        assert max(sums) == pytest.approx(1)
    assert sum(price.vcpu > 0 and price.memory > 0 for price in prices) >= 2


@pytest.mark.parametrize("inside", [0.0, 0.3])
def test_of_many_tables_a_path_has_some_points_and_the_same_partials(inside: float) -> None:
    rng = np.random.default_rng(0)
    tables = tuple(
        replace(
            table(f"t{n}", float(rng.integers(1, 99)), AccessCurve.power_law(2000, 0.8, 1.1)),
            bags=[1.0, 3.0, np.inf][n % 3],
        )
        for n in range(MOST_TABLE_POINTS + 150)
    )
    served = Demand(tables, 100.0, 4e-4)
    cut = np.full(len(tables), int(2000 * inside))
    path = table_path(served, TERMS, cut, FP32, FP32)
    assert 100 < len(path.cuts) <= MOST_TABLE_POINTS + 1
    assert (path.cuts[0] == 2000).all()
    assert (path.cuts[-1] == cut).all()
    assert np.isin(path.cuts, (2000, cut[0])).all()  # no table is cut outside the gateway
    gathered = np.array(
        [
            [t.gathers * (1 - t.curve.at(int(c))) for t, c in zip(tables, row, strict=True)]
            for row in path.cuts
        ]
    )
    for i, j in ((0, 1), (0, len(path.cuts) - 1), (40, 90)):
        sent = sum(
            float(partial_vectors(np.array([more]), t.bags * served.batch)[0])
            for t, more in zip(tables, gathered[j] - gathered[i], strict=True)
        )
        assert path.partials[i, j] == pytest.approx(sent)
