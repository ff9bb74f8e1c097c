import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erless.plan.costs.cost import PAPER_TERMS, CostTerms, replicas
from erless.plan.costs.curves import AccessCurve
from erless.plan.costs.layout import Demand
from erless.plan.policies.baselines import model_wise, table_wise
from erless.plan.policies.elasticrec import cut_table, elasticrec
from erless.plan.policies.joint import joint_layouts, joint_memory
from erless.plan.search.bounds import memory_bound
from erless.plan.search.frontier import SearchLimits
from erless.specs.plan import Precision
from tests.plan.instances import assert_covers, random_demand, table

FP32 = Precision.FP32
counts = st.lists(st.integers(1, 1000), min_size=1, max_size=4)


def small_demand(groups: list[list[int]], gathers: float, qps: float, m0: float) -> Demand:
    tables = tuple(
        table(
            f"t{index}",
            gathers * (index + 1),
            AccessCurve.from_counts(np.sort(np.array(each))[::-1].astype(np.int64), len(each)),
        )
        for index, each in enumerate(groups)
    )
    return Demand(tables, qps, 5e-4)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for others in partitions(rest):
        yield [[first], *others]
        for index in range(len(others)):
            yield [*others[:index], [first, *others[index]], *others[index + 1 :]]


def brute_force(demand: Demand, terms: CostTerms) -> float:
    """Every subset resident, every partition of the rest: written apart from the planner."""
    rows = []
    for each in demand.tables:
        gathered = np.diff(each.curve.cdf(np.arange(each.rows + 1))) * each.gathers
        beta = terms.gather_s * each.spec.row_bytes / 128
        rows += [(float(g) * beta, each.spec.row_bytes) for g in gathered]
    least = math.inf
    everything = list(range(len(rows)))
    for size in range(len(rows) + 1):
        for inside in itertools.combinations(everything, size):
            load = terms.call_s + demand.tower_s + sum(rows[i][0] for i in inside)
            held = terms.gateway_memory_bytes + sum(rows[i][1] for i in inside)
            fixed = replicas(demand.qps * load, terms) * held
            rest = [i for i in everything if i not in inside]
            for shards in partitions(rest):
                total = fixed
                for shard in shards:
                    need = demand.qps * (terms.call_s + sum(rows[i][0] for i in shard))
                    total += replicas(need, terms) * (
                        terms.shard_memory_bytes + sum(rows[i][1] for i in shard)
                    )
                least = min(least, total)
    return least


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(counts, min_size=1, max_size=2).filter(lambda g: sum(map(len, g)) <= 6),
    st.floats(100, 60000),
    st.floats(50, 5000),
    st.sampled_from([1.0, 64.0, 300.0, 5000.0]),
)
def test_joint_equals_brute_force_where_it_can_be_enumerated(
    groups: list[list[int]], gathers: float, qps: float, m0: float
) -> None:
    from dataclasses import replace

    terms = replace(PAPER_TERMS, shard_memory_bytes=m0, gateway_memory_bytes=m0)
    demand = small_demand(groups, gathers, qps, m0)
    layout = joint_memory(joint_layouts(demand, terms))
    expected = brute_force(demand, terms)
    assert_covers(layout)
    assert layout.memory == pytest.approx(expected, rel=1e-9)
    bound = memory_bound(demand, terms, FP32, FP32)
    assert bound <= expected * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=9),
    st.floats(100, 60000),
    st.floats(50, 4000),
)
def test_elasticrec_equals_brute_force_over_all_cuts(
    values: list[int], gathers: float, qps: float
) -> None:
    from dataclasses import replace

    terms = replace(PAPER_TERMS, shard_memory_bytes=200.0)
    demand = small_demand([values], gathers, qps, 0)
    only = demand.tables[0]
    best = math.inf
    for picked in itertools.product([False, True], repeat=len(values) - 1):
        cuts = [0, *(i + 1 for i, on in enumerate(picked) if on), len(values)]
        total = 0.0
        for start, stop in itertools.pairwise(cuts):
            seconds = terms.call_s + 4e-8 * only.gathers_between(start, stop)
            total += replicas(qps * seconds, terms) * ((stop - start) * 128 + 200.0)
        best = min(best, total)
    pieces = cut_table(only, demand, terms)
    got = sum(
        replicas(qps * (terms.call_s + 4e-8 * only.gathers_between(a, b)), terms)
        * ((b - a) * 128 + 200.0)
        for a, b in pieces
    )
    assert got == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(50))
def test_joint_is_within_five_percent_of_its_bound(seed: int) -> None:
    demand = random_demand(seed)
    layout = joint_memory(joint_layouts(demand, PAPER_TERMS))
    bound = memory_bound(demand, PAPER_TERMS, FP32, FP32)
    assert_covers(layout)
    assert bound <= layout.memory * (1 + 1e-9)
    assert layout.memory <= bound * 1.05


@pytest.mark.parametrize("seed", range(8))
def test_no_baseline_is_below_the_bound_nor_below_joint(seed: int) -> None:
    demand = random_demand(seed)
    bound = memory_bound(demand, PAPER_TERMS, FP32, FP32)
    joint = joint_memory(joint_layouts(demand, PAPER_TERMS))
    for layout in (
        model_wise(demand, PAPER_TERMS),
        table_wise(demand, PAPER_TERMS),
        elasticrec(demand, PAPER_TERMS),
    ):
        assert_covers(layout)
        assert layout.memory >= bound * (1 - 1e-9)
        assert layout.memory >= joint.memory * (1 - 1e-9)


def test_limited_fan_out_is_kept_and_its_bound_too() -> None:
    demand = random_demand(3)
    for limit in (0, 1, 2):
        layouts = joint_layouts(demand, PAPER_TERMS, SearchLimits(limit))
        best = min(layouts, key=lambda each: each.memory)
        assert len(best.shards) <= limit
        assert memory_bound(demand, PAPER_TERMS, FP32, FP32, limit) <= best.memory * (1 + 1e-9)
