"""A plan with measured speed: curves, towers, and what stands in for them."""

import pytest

from erless.errors import PlanError
from erless.plan.costs.cost import DEFAULT_TERMS, EXCHANGE_S
from erless.plan.costs.measured import MeasuredSpeed, measured_terms
from erless.plan.costs.tower import tower_cost, tower_macs
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.model import DlrmTower, ExportedTower
from erless.specs.plan import Precision
from erless.specs.profile import Machine, ThroughputCurve, TowerCurve

MACHINE = Machine(processor="Test 1", cores=2, memory_bytes=1, python="3", measured_on="2026-01-01")


def curve(
    row_bytes: int, beta_ns: float, locality: float = 0.9, vcpu: float = 1, precision: str = "fp32"
) -> ThroughputCurve:
    return ThroughputCurve(
        name="x",
        overhead_s=1e-5,
        gather_s=beta_ns * 1e-9,
        row_bytes=row_bytes,
        vcpu=vcpu,
        precision=precision,
        locality=locality,
        residual=0.1,
        machine=MACHINE,
    )


CURVES = (
    curve(64, 10),
    curve(128, 16),
    curve(256, 30),
    curve(128, 32, 0.5),
    curve(128, 8, 0.99),
    curve(128, 20, vcpu=2),
    curve(36, 4, precision="int8"),
)


def test_beta_follows_row_bytes_precision_locality_and_shared_cores() -> None:
    terms = measured_terms(DEFAULT_TERMS, MeasuredSpeed(CURVES, locality=0.9))
    shared = 20 / 16
    assert terms.beta_of(16, Precision.FP32) == pytest.approx(10e-9 * shared)
    assert terms.beta_of(24, Precision.FP32) == pytest.approx(13e-9 * shared)
    assert terms.beta_of(128, Precision.FP32) == pytest.approx(60e-9 * shared)
    assert terms.beta_of(32, Precision.INT8) == pytest.approx(4e-9)
    assert terms.call_s == pytest.approx(EXCHANGE_S + 1e-5)
    flat = measured_terms(DEFAULT_TERMS, MeasuredSpeed(CURVES, locality=0.5))
    assert flat.beta_of(32, Precision.FP32) == pytest.approx(32e-9 * shared)
    middle = measured_terms(DEFAULT_TERMS, MeasuredSpeed(CURVES, locality=0.7))
    assert middle.beta_of(32, Precision.FP32) == pytest.approx(24e-9 * shared)


def test_without_fp32_curves_the_shipped_ones_stay() -> None:
    assert measured_terms(DEFAULT_TERMS, MeasuredSpeed()) is DEFAULT_TERMS
    only = MeasuredSpeed((curve(36, 4, precision="int8"),))
    assert measured_terms(DEFAULT_TERMS, only) is DEFAULT_TERMS


def test_a_plan_says_which_curve_and_tower_it_used() -> None:
    model, tables = workload_tables("rm1", 0.9, 32, 200_000)
    tower = TowerCurve(
        name="rm1", overhead_s=5e-5, sample_s=2e-6, residual=0.04, macs_per_sample=75_584
    )
    asked = PlanRequest(qps=4000)
    found = Planner(model, tables, asked, measured=MeasuredSpeed(CURVES, (tower,))).outcome()
    document = plan_document(found, "0" * 64, "0" * 64)
    assert not document.curve_shipped
    assert document.curve.startswith("Test 1, 2026-01-01 (largest residual 10%)")
    assert document.assumptions["dense tower"].startswith("0.114 ms per query, measured")
    shipped = plan_document(Planner(model, tables, asked).outcome(), "0" * 64, "0" * 64)
    assert shipped.curve_shipped
    assert "shipped default" in shipped.assumptions["curve"]
    assert shipped.result is not None
    assert found.best["joint"].layout.vcpu < 0.7 * shipped.result.vcpu


def test_another_models_tower_is_not_used() -> None:
    model, _ = workload_tables("rm1", 0.9, 32)
    known = TowerCurve(name="rm1", overhead_s=1.0, sample_s=1.0, macs_per_sample=75_584)
    for curves, words in [
        ((known,), "measured"),
        ((known.model_copy(update={"name": "rm2"}),), "counted"),
        ((known.model_copy(update={"macs_per_sample": 7}),), "counted"),
    ]:
        assert words in tower_cost(model, 32, DEFAULT_TERMS, curves=curves).source
    given = tower_cost(model, 32, DEFAULT_TERMS, given_ms=3, curves=(known,))
    assert (given.seconds, given.source) == (3e-3, "3 ms per query, as given")


def test_an_exported_tower_is_estimated_from_its_archive() -> None:
    model, _ = workload_tables("rm1", 0.9, 32)
    assert isinstance(model.tower, DlrmTower)
    counted = tower_macs(model, model.tower)
    exported = model.model_copy(update={"tower": ExportedTower()})
    cost = tower_cost(exported, 32, DEFAULT_TERMS, archive_bytes=4 * counted)
    assert cost.macs == 32 * counted
    assert "estimated from the archive's" in cost.source
    with pytest.raises(PlanError, match="--tower-ms"):
        tower_cost(exported, 32, DEFAULT_TERMS)
