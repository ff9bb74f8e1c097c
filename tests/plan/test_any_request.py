"""Whatever is asked of whatever model: every row is somewhere once, or an error says why not."""

import math
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from erless.errors import PlanError
from erless.plan.costs.curves import AccessCurve
from erless.plan.planner import POLICIES, Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.specs.model import DlrmTower, ModelSpec
from erless.specs.plan import Plan, Tier
from tests.plan.instances import assert_covers, table

tables = st.lists(
    st.tuples(
        st.integers(1, 10**7),
        st.sampled_from([4, 16, 32, 64]),
        st.floats(0.05, 0.99),
        st.sampled_from([0.0, 1.0, 300.0, 4096.0]),
    ),
    min_size=1,
    max_size=4,
)
knobs = st.fixed_dictionaries(
    {"qps": st.floats(0.1, 20_000)},
    optional={
        "policy": st.sampled_from(POLICIES),
        "objective": st.sampled_from(["memory", "dollars"]),
        "equal_containers": st.booleans(),
        "shards": st.integers(1, 9),
        "resident_share": st.floats(0, 1),
        "max_resident_bytes": st.floats(0, 1e9),
        "frozen": st.booleans(),
        "frozen_share": st.floats(1e-6, 0.5),
        "dense": st.sampled_from(["auto", "gateway", "function", "gpu"]),
        "allowed": st.sampled_from([("fp32",), ("fp16", "int8"), ("int4",)]),
        "tier_precision": st.sampled_from(
            [{"cold": "int8"}, {"resident": "fp16"}, {"hot": "int4"}]
        ),
        "tier_replicas": st.sampled_from([{"cold": 1}, {"hot": 3, "frozen": 1}]),
        "min_replicas": st.integers(1, 3),
        "sla_p95_ms": st.floats(0.5, 200),
        "max_fan_out": st.integers(0, 12),
        "max_shard_bytes": st.floats(1e6, 1e10),
        "max_vcpu": st.floats(0.5, 64),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables, knobs)
@example([(1, 4, 0.5, 1.0)], {"qps": 1.0, "shards": 2})
@example([(1, 4, 0.5, 1.0)], {"qps": 1.0, "shards": 1, "resident_share": 0.5})
@example([(10**6, 32, 0.9, 300.0)], {"qps": 10.0, "shards": 3, "max_shard_bytes": 1.2e8})
def test_a_plan_or_an_error(
    shapes: list[tuple[int, int, float, float]], asked: dict[str, Any]
) -> None:
    loads = [
        table(
            f"t{index}",
            gathers,
            AccessCurve.power_law(rows, place) if gathers else AccessCurve.cold(rows),
            dim,
        )
        for index, (rows, dim, place, gathers) in enumerate(shapes)
    ]
    tower = DlrmTower(bottom_mlp=(64, 32), top_mlp=(64, 1), interaction="cat")
    model = ModelSpec(dense_features=8, tables=tuple(each.spec for each in loads), tower=tower)
    request = PlanRequest(**asked)
    try:
        found = Planner(model, loads, request).outcome(POLICIES)
    except PlanError as error:
        assert str(error)
        return
    for candidate in found.best.values():
        assert_covers(candidate.layout)
        assert found.value(candidate) >= found.bound * (1 - 1e-6)
    document = plan_document(found, "0" * 64, "0" * 64)
    assert Plan.model_validate(document.model_dump()) == document
    remote = [each for each in document.shards if each.tier != Tier.RESIDENT]
    assert len(remote) <= request.max_fan_out
    if request.policy == "joint":
        assert request.shards in (None, len(remote))
    for each in remote:
        assert each.memory_bytes <= (request.max_shard_bytes or math.inf) + 1
        assert each.replicas * each.qps_per_replica >= found.demand.qps * (1 - 1e-6)
    if request.sla_p95_ms:
        assert document.result is not None
        assert document.result.predicted_p95_ms <= request.sla_p95_ms * (1 + 1e-9)
