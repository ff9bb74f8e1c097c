"""Where the dense tower runs, and what each tier is stored as."""

import math
from typing import Any

import pytest

from erless.errors import InfeasibleError, PlanError
from erless.plan.nodes.packing import cheapest_possible, pack
from erless.plan.nodes.prices import Prices, read_prices
from erless.plan.planner import POLICIES, Outcome, Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Plan, Precision, Tier

DIGEST = "0" * 64


def outcome(name: str = "rm3", prices: Prices | None = None, **knobs: Any) -> Outcome:
    model, tables = workload_tables(name, 0.9, 32, 200_000)
    return Planner(model, tables, PlanRequest(**knobs), prices).outcome(POLICIES)


def plan(**knobs: Any) -> Plan:
    return plan_document(outcome(**knobs), DIGEST, DIGEST)


def test_by_default_the_tower_stays_in_the_gateway() -> None:
    for document in (plan(), plan(equal_containers=True)):
        assert document.dense is None
        assert document.gateway.dense_placement == "gateway"


def test_a_function_of_its_own_on_cpu() -> None:
    inside = plan(dense="gateway", equal_containers=True)
    apart = plan(dense="function", equal_containers=True)
    dense = apart.dense
    assert dense is not None
    assert (dense.device, dense.gpus, apart.gateway.dense_placement) == ("cpu", 0, "function")
    assert dense.replicas == math.ceil(apart.qps / dense.qps_per_replica)
    assert apart.gateway.replicas < inside.gateway.replicas
    assert apart.result is not None
    assert apart.result.lower_bound <= apart.result.memory_bytes
    target = dense.qps_per_replica * 0.65 * 0.1  # Little's law at 65 % of 100 ms
    assert dense.scaling.target == pytest.approx(max(1, target))
    assert dense.scaling.metric == "concurrency"


def test_a_gpu_where_its_nodes_are_cheaper() -> None:
    found = outcome(traffic=64, dense="auto")
    document = plan_document(found, DIGEST, DIGEST)
    assert document.dense is not None
    assert document.dense.device == "cuda"
    gpus = {kind.name: kind.gpu for kind in found.prices.gpu_types}
    bought = sum(gpus.get(each.instance_type, 0) * each.count for each in document.nodes)
    assert bought >= document.dense.replicas * document.dense.gpus > 0
    on_cpu = outcome(traffic=64, dense="gateway")
    cost = found.best["joint"].packing.usd_per_month
    assert found.bound <= cost < on_cpu.best["joint"].packing.usd_per_month
    assert any("GPU" in note for note in document.notes)


def test_a_tower_too_late_on_one_vcpu_goes_to_a_gpu() -> None:
    with pytest.raises(InfeasibleError) as caught:
        outcome(traffic=1, sla_p95_ms=3.5, dense="gateway")
    assert any(line.startswith("SLA: the dense tower") for line in caught.value.violations)
    document = plan(traffic=1, sla_p95_ms=3.5)
    assert document.dense is not None
    assert document.result is not None
    assert document.result.predicted_p95_ms <= 3.5


def test_without_gpu_types_a_gpu_cannot_be_demanded() -> None:
    shipped = read_prices()
    plain = Prices("own.csv", shipped.date, shipped.types)
    with pytest.raises(PlanError, match=r"own\.csv has no instance type with a GPU"):
        outcome(prices=plain, dense="gpu")
    found = outcome(prices=plain, traffic=64)
    assert found.best["joint"].layout.dense is None


def test_each_tier_has_the_precision_asked_for() -> None:
    wanted = {"cold": "int8", "frozen": "int4", "resident": "fp16"}
    document = plan(name="rm1", shards=4, resident_share=0.8, frozen=True, tier_precision=wanted)
    kinds = {each.tier: each.precision for each in document.shards}
    assert kinds == {
        Tier.RESIDENT: Precision.FP16,
        Tier.HOT: Precision.FP32,
        Tier.WARM: Precision.FP32,
        Tier.COLD: Precision.INT8,
        Tier.FROZEN: Precision.INT4,
    }
    for each in document.shards:
        assert each.row_data_bytes == each.rows * each.precision.row_bytes(32)


def test_the_plan_chooses_among_precisions_only_where_it_pays() -> None:
    kinds = ("fp32", "int8")
    small = plan(name="rm1", equal_containers=True, allowed=kinds)
    assert {each.precision for each in small.shards if each.tier != Tier.RESIDENT} == {
        Precision.INT8
    }
    cheap = plan(name="rm1", allowed=kinds, traffic=0.5)
    dear = plan(name="rm1", allowed=("fp32",), traffic=0.5)
    assert cheap.result is not None
    assert dear.result is not None
    assert cheap.result.usd_per_month == dear.result.usd_per_month
    assert {each.precision for each in cheap.shards} == {Precision.FP32}


@pytest.mark.parametrize("traffic", [0.5, 8, 64])
def test_no_packing_costs_less_than_said_possible(traffic: float) -> None:
    found = outcome("rm1", traffic=traffic)
    for each in found.best.values():
        packing = pack(each.layout, found.prices)
        assert packing is not None
        assert cheapest_possible(each.layout, found.prices) <= packing.usd_per_month
