"""A few containers on the cheapest nodes."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erless.plan.nodes.exact_packing import pack_exactly
from erless.plan.nodes.groups import Group
from erless.plan.nodes.packing import pack_groups
from erless.plan.nodes.prices import GIB, InstanceType, Prices

TYPES = (
    InstanceType("c.large", 2, 4, 0, 0.08),
    InstanceType("m.large", 2, 8, 0, 0.1),
    InstanceType("r.large", 2, 16, 0, 0.13),
    InstanceType("r.xlarge", 4, 32, 0, 0.25),
)
groups = st.lists(
    st.tuples(st.floats(0.1, 3.5), st.floats(0.5 * GIB, 20 * GIB), st.integers(1, 3)).map(
        lambda needs: Group(*needs)
    ),
    min_size=1,
    max_size=3,
).filter(lambda made: sum(group.number for group in made) <= 6)


def partitions(items: list[int]) -> list[list[list[int]]]:
    if not items:
        return [[]]
    found = []
    for rest in partitions(items[1:]):
        found.append([[items[0]], *rest])
        for index in range(len(rest)):
            found.append([*rest[:index], [items[0], *rest[index]], *rest[index + 1 :]])
    return found


def brute_force(containers: list[tuple[float, float]]) -> float:
    least = math.inf
    for nodes in partitions(list(range(len(containers)))):
        total = 0.0
        for node in nodes:
            vcpu = sum(containers[index][0] for index in node)
            memory = sum(containers[index][1] for index in node)
            total += min(
                (
                    kind.usd_per_month
                    for kind in TYPES
                    if kind.usable_vcpu + 1e-9 >= vcpu and kind.usable_bytes >= memory
                ),
                default=math.inf,
            )
        least = min(least, total)
    return least


@settings(max_examples=30, deadline=None)
@given(groups)
def test_no_other_nodes_are_cheaper(made: list[Group]) -> None:
    containers = list(itertools.chain(*([(vcpu, size)] * count for vcpu, size, count, *_ in made)))
    nodes = pack_exactly(made, TYPES)
    assert nodes is not None
    paid = sum(kind.usd_per_month * number for kind, number in nodes.items())
    assert paid == pytest.approx(brute_force(containers))
    heuristic = pack_groups(made, Prices("own", "2026-07", TYPES), exact_states=0)
    assert heuristic is not None
    assert paid <= heuristic.usd_per_month * (1 + 1e-9)


def test_what_fits_nowhere_has_no_nodes() -> None:
    assert pack_exactly([Group(1.0, 1.0, 1), Group(1.0, 64.0 * GIB, 1)], TYPES) is None
