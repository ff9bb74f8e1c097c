"""Layouts that fill nodes of several sizes, and containers of a size of their own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from erless.plan.costs.cost import DEFAULT_TERMS
from erless.plan.costs.layout import Demand, Layout
from erless.plan.nodes.packing import pack
from erless.plan.nodes.prices import InstanceType, Prices, read_prices
from erless.plan.planner import Planner
from erless.plan.policies.container_sizes import other_sizes
from erless.plan.policies.node_mix import mixed_nodes
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Precision

INT8 = (Precision.INT8, Precision.INT8)


def demand(rows: int, qps: float, workload: str = "rm1") -> Demand:
    _, tables = workload_tables(workload, 0.9, 32, rows)
    return Demand(tuple(tables), qps, 1e-4)


def test_every_row_is_once_in_a_layout_that_fits_its_nodes() -> None:
    wanted = demand(640_000_000, 5.0)
    layouts = mixed_nodes(wanted, DEFAULT_TERMS, read_prices().types, *INT8, float("inf"))
    assert layouts
    for layout in layouts:
        for number, table in enumerate(wanted.tables):
            parts = sorted(
                (part.start, part.stop)
                for shard in layout.shards
                for part in shard.slices
                if part.table == number
            )
            assert [parts[0][0], parts[-1][1]] == [0, table.rows]
            assert all(a[1] == b[0] for a, b in pairwise(parts))
    sizes = {round(shard.memory / 1e9) for layout in layouts for shard in layout.shards}
    assert len(sizes) > 1
    assert any(pack(layout, read_prices()) for layout in layouts)


def test_mixed_nodes_bring_a_plan_to_its_bound() -> None:
    """820 GB in int8 stood 6.7 % above its bound, on one node of the next larger size."""
    model, tables = workload_tables("rm1", 0.9, 32, 640_625_000)
    request = PlanRequest(traffic=1.0, arch=("amd64", "arm64"), allowed=("fp32", "int8"))
    outcome = Planner(model, tables, request).outcome()
    best = outcome.best["joint"]
    assert outcome.value(best) <= outcome.bound * 1.05
    assert len({kind.name for kind, _ in best.packing.nodes}) > 1


def test_a_gateway_may_fill_the_cores_that_a_shard_leaves() -> None:
    kind = InstanceType("n", 8.0, 64.0, 0, 1.0, allocatable_vcpu=8.0)
    prices = Prices("test", "2026", (kind,))
    wanted = demand(2_000_000, 16_000.0)
    slices = [part for shard in _one(wanted).shards for part in shard.slices]
    layout = Layout.of(wanted, DEFAULT_TERMS.on(8.0), [slices], ())
    packed = pack(layout, prices)
    assert packed is not None
    others = list(other_sizes(layout, [8.0]))
    assert {other.gateway.replicas for other in others} - {layout.gateway.replicas}
    for other in others:
        assert other.gateway.load == layout.gateway.load
        assert all(f.vcpu * f.replicas * 0.7 >= f.load * (1 - 1e-9) for f in other.functions)
    paper = replace(layout, terms=replace(layout.terms, fixed_vcpu=True))
    assert list(other_sizes(paper, [8.0])) == []


def _one(wanted: Demand) -> Layout:
    from erless.plan.policies.baselines import one_remote

    return one_remote(wanted, DEFAULT_TERMS, Precision.FP32)


@pytest.mark.parametrize("qps", [1.0, 20_000.0])
def test_nothing_is_proposed_where_one_copy_of_the_rows_is_not_the_question(qps: float) -> None:
    small = demand(20_000, qps)
    assert mixed_nodes(replace(small, min_replicas=2), DEFAULT_TERMS, [], *INT8, 1e12) == []
    assert mixed_nodes(small, DEFAULT_TERMS, [], *INT8, 1e12) == []
