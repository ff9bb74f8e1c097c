"""Left to choose, the planner finds nothing dearer than any shape that a user may demand."""

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from erless.errors import InfeasibleError
from erless.plan.planner import Planner
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables

models = st.tuples(
    st.sampled_from(["rm1", "rm3"]),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.sampled_from([2_000_000, 20_000_000, 200_000_000]),
)
knobs = st.fixed_dictionaries(
    {
        "objective": st.sampled_from(["memory", "dollars"]),
        "traffic": st.sampled_from([1.0, 4.0, 8.0, 16.0, 64.0]),
        "max_vcpu": st.sampled_from([1.0, 2.0, 8.0]),
    },
    optional={"allowed": st.sampled_from([("int8",), ("fp32", "int8"), ("fp16", "int4")])},
)
demands = st.fixed_dictionaries(
    {},
    optional={
        "shards": st.integers(1, 8),
        "resident_share": st.floats(0, 1),
        "max_resident_bytes": st.floats(0, 1e10),
    },
)


# The same examples each time: the search is no proof, and `benchmarks.demands` counts where it
# fails. The last two were missed where borders were left at the points of the grid.
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(models, knobs, demands)
@example(
    ("rm3", 0.99, 20_000_000),
    {"objective": "memory", "traffic": 8.0, "max_vcpu": 1.0},
    {"shards": 2, "resident_share": 0.0},
)
@example(
    ("rm3", 0.5, 20_000_000),
    {"objective": "dollars", "traffic": 8.0, "max_vcpu": 128.0},
    {"shards": 3, "resident_share": 0.0},
)
@example(
    ("rm1", 0.9, 200_000_000),
    {"objective": "dollars", "traffic": 16.0, "max_vcpu": 8.0, "allowed": ("int8",)},
    {"shards": 2, "max_resident_bytes": 8.9e9},
)
@example(
    ("rm1", 0.9, 20_000_000),
    {"objective": "memory", "traffic": 64.0, "max_vcpu": 1.0, "allowed": ("fp16", "int4")},
    {"max_resident_bytes": 6.9e9},
)
def test_free_is_at_most_demanded(
    shape: tuple[str, float, int], asked: dict[str, Any], demanded: dict[str, Any]
) -> None:
    name, locality, rows = shape
    model, tables = workload_tables(name, locality, 32, rows)
    try:
        held = Planner(model, tables, PlanRequest(**asked, **demanded)).outcome()
    except InfeasibleError:
        return  # no plan has that shape
    free = held.free or held.best["joint"]
    assert held.value(free) <= held.value(held.best["joint"]) * (1 + 1e-9)


@pytest.mark.parametrize("traffic", [0.5, 16.0])
def test_int8_is_never_dearer_than_the_whole_model_in_int8(traffic: float) -> None:
    model, tables = workload_tables("rm1", 0.9, 32)
    asked = PlanRequest(traffic=traffic, precision="int8")
    whole = PlanRequest(traffic=traffic, precision="int8", tier_precision={"resident": "int8"})
    by_itself, demanded = (Planner(model, tables, each).outcome() for each in (asked, whole))
    assert by_itself.value(by_itself.best["joint"]) <= demanded.value(demanded.best["joint"])
