import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from erless.dlrm.workload import PowerLaw
from erless.errors import InfeasibleError, PlanError
from erless.plan.costs.curves import AccessCurve
from erless.plan.nodes.packing import pack
from erless.plan.nodes.prices import InstanceType, Prices, read_prices
from erless.plan.planner import POLICIES, Outcome, Planner
from erless.plan.report.document import plan_document, policy_results
from erless.plan.report.tables import explain
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Plan
from erless.specs.planning import Policy
from tests.plan.instances import assert_covers

DIGEST = "0" * 64


def outcome(
    name: str, policies: Sequence[Policy] = POLICIES, locality: float = 0.9, **knobs: Any
) -> Outcome:
    model, tables = workload_tables(name, locality, 32)
    return Planner(model, tables, PlanRequest(**knobs)).outcome(policies)


@pytest.mark.parametrize("traffic", [4, 8, 16])
@pytest.mark.parametrize("locality", [0.5, 0.9])
@pytest.mark.parametrize("name", ["rm1", "rm2", "rm3"])
def test_equal_containers(name: str, locality: float, traffic: float) -> None:
    found = outcome(name, locality=locality, equal_containers=True, traffic=traffic)
    rows = {each.policy: each for each in policy_results(found)}
    joint, other = rows["joint"], rows["elasticrec"]
    assert rows["model-wise"].containers == traffic
    assert joint.memory_bytes <= other.memory_bytes
    if traffic <= 8:
        assert joint.lower_bound_gap <= 0.01
    if traffic == 8 and locality == 0.9:
        assert joint.containers <= other.containers / 2


@pytest.mark.parametrize("name", ["rm1", "rm2", "rm3"])
def test_int8_below_the_resident_tier(name: str) -> None:
    found = outcome(name, equal_containers=True, precision="int8")
    joint = next(each for each in policy_results(found) if each.policy == "joint")
    assert joint.memory_reduction >= 22


@pytest.mark.parametrize("name", ["rm1", "rm2", "rm3"])
@pytest.mark.parametrize("traffic", [0.5, 8, 64])
def test_joint_is_never_dearer(name: str, traffic: float) -> None:
    found = outcome(name, traffic=traffic)
    cost = {policy: each.packing.usd_per_month for policy, each in found.best.items()}
    assert cost["joint"] <= min(cost.values()) + 1e-6
    assert found.bound <= cost["joint"] + 1e-6


def test_packed_nodes_hold_what_is_on_them() -> None:
    found = outcome("rm2", traffic=32)
    for each in found.best.values():
        nodes = each.packing.nodes
        assert sum(k.usable_vcpu * n for k, n in nodes) >= each.layout.vcpu - 1e-6
        assert sum(k.usable_bytes * n for k, n in nodes) >= each.layout.memory - 1
        assert pack(each.layout, found.prices) is not None


def test_plan_document_round_trips(tmp_path: Path) -> None:
    document = plan_document(outcome("rm1", equal_containers=True), DIGEST, DIGEST)
    document.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == document
    for spec in workload_tables("rm1", 0.9, 32)[0].tables:
        spans = sorted(
            (part.start, part.stop)
            for shard in document.shards
            for part in shard.slices
            if part.table == spec.name
        )
        assert [span[0] for span in spans] == [0, *(span[1] for span in spans[:-1])]
        assert spans[-1][1] == spec.rows
    assert math.isclose(sum(each.share for each in document.shards), 1, rel_tol=1e-9)
    assert explain(document, document.shards[0].name)
    with pytest.raises(PlanError, match="no shard nowhere"):
        explain(document, "nowhere")


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"sla_p95_ms": 0.1}, "over the 0.1 ms allowed"),
        ({"max_shard_bytes": 1000.0}, "one row of table_0"),
    ],
)
def test_infeasible_requests_say_by_how_much(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InfeasibleError) as caught:
        outcome("rm1", **knobs)
    assert any(words in line for line in caught.value.violations)


def test_every_violation_is_listed() -> None:
    with pytest.raises(InfeasibleError) as caught:
        outcome("rm1", sla_p95_ms=0.1, max_shard_bytes=1000.0)
    assert len(caught.value.violations) == 2


@pytest.mark.parametrize("qps", [0.0, -1.0, math.nan])
def test_no_traffic_is_an_error(qps: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 0|finite number"):
        PlanRequest(qps=qps)


def test_no_node_fits(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "# mine 2026-01-01\ninstance_type,vcpu,memory_gib,gpu,usd_per_hour\na,4,1,0,1\n"
    )
    prices = read_prices(path)
    assert prices.date == "2026-01-01"
    model, tables = workload_tables("rm1", 0.9, 32)
    with pytest.raises(InfeasibleError) as caught:
        Planner(model, tables, PlanRequest(policy="model-wise"), prices).outcome()
    assert "largest node type" in caught.value.violations[0]


def test_damaged_prices_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("instance_type,vcpu,memory_gib,gpu,usd_per_hour\na,x,1,0,1\n")
    with pytest.raises(PlanError, match="a: vcpu is 'x', no number"):
        read_prices(path)


def test_curve_follows_the_closed_form() -> None:
    law, curve = PowerLaw(20_000_000, 0.9), AccessCurve.power_law(20_000_000, 0.9)
    ranks = np.unique(np.geomspace(1, law.rows, 5000).astype(np.int64))
    assert np.abs(curve.cdf(ranks) - law.cdf(ranks.astype(float))).max() < 2e-6


def test_unseen_rows_get_the_good_turing_mass() -> None:
    curve = AccessCurve.from_counts(np.array([6, 2, 1, 1], np.int64), 100)
    assert float(curve.cdf(4)) == pytest.approx(0.8)
    assert (np.diff(np.diff(curve.share) / np.diff(curve.ranks)) <= 1e-12).all()


def test_compare_prints_one_document() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "erless",
            "plan",
            "--workload",
            "rm3",
            "--equal-containers",
            "--compare",
            "-o",
            "json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout)["policies"]
    assert [each["policy"] for each in rows] == list(POLICIES)
    wanted = {
        "memory_bytes",
        "memory_reduction",
        "memory_utility",
        "functions",
        "containers",
        "fan_out",
        "vcpu",
        "nodes",
        "usd_per_month",
        "predicted_p95_ms",
        "lower_bound_gap",
    }
    assert all(wanted <= set(each) for each in rows)


def test_frozen_rows_idle_and_scale_to_zero() -> None:
    found = outcome(
        "rm1",
        ("joint",),
        equal_containers=True,
        frozen=True,
        frozen_window_s=1e-3,
        frozen_error_budget=0.2,
    )
    document = plan_document(found, DIGEST, DIGEST)
    frozen = document.shards[-1]
    assert (frozen.name, frozen.tier.value, frozen.scaling.min_scale) == ("frozen", "frozen", 0)
    assert math.exp(-document.qps * frozen.gathers * 1e-3) >= 0.5
    assert frozen.gathers <= 0.2
    assert_covers(found.best["joint"].layout)


def test_shards_that_fill_nodes_reach_the_bound_where_memory_decides() -> None:
    """RM2 is 82 GB: a 64 GiB node and a 16 GiB node are half the price of a 128 GiB one."""
    model, tables = workload_tables("rm2", 0.9, 32)
    types = tuple(
        InstanceType(f"r.{times}x", 2 * times, 16 * times, 0, 0.126 * times) for times in (1, 4, 8)
    )
    prices = Prices("own.csv", "2026-11-29", types)
    found = Planner(model, tables, PlanRequest(traffic=4), prices).outcome(POLICIES)
    joint = found.best["joint"]
    assert_covers(joint.layout)
    assert joint.packing.usd_per_month == pytest.approx(found.bound, rel=1e-6)
    assert joint.packing.usd_per_month < 0.65 * found.best["model-wise"].packing.usd_per_month


def test_more_vcpu_where_the_sla_needs_it() -> None:
    slow = outcome("rm1", qps=50.0)
    fast = outcome("rm1", qps=50.0, sla_p95_ms=8.0)
    late = slow.best["joint"].layout.p95_s * 1e3
    assert late > 8 >= fast.best["joint"].layout.p95_s * 1e3
    assert fast.best["joint"].layout.vcpu > slow.best["joint"].layout.vcpu


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"policy": "model-wise", "shards": 3}, "shards: model-wise takes no such wish"),
        ({"policy": "elasticrec", "resident_share": 0.5}, "resident_share: elasticrec takes no"),
        ({"policy": "table-wise", "precision": "int8"}, "precision: table-wise keeps fp32"),
        ({"policy": "elasticrec", "tier_precision": {"cold": "int8"}}, "tier_precision: elast"),
        ({"policy": "elasticrec", "frozen": True}, "frozen: elasticrec takes no such wish"),
        ({"equal_containers": True, "utilisation": 0.5}, "utilisation: equal containers have"),
        ({"equal_containers": True, "max_vcpu": 4}, "max_vcpu: equal containers have"),
        ({"frozen_window_s": 30}, "frozen_window_s: nothing is to be frozen"),
    ],
)
def test_a_knob_that_nothing_turns_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        outcome("rm3", policies=(), **knobs)
