"""Several plans on one pool of nodes."""

import pytest

from erless.errors import PlanError
from erless.plan.nodes.prices import GIB, InstanceType, Prices
from erless.plan.nodes.shared_pool import PoolMember, pool_lines, share_pool
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Plan

PRICES = Prices(
    "own.csv",
    "2026-07",
    (
        InstanceType("m.large", 2, 8, 0, 0.1),
        InstanceType("m.xlarge", 4, 16, 0, 0.19),
        InstanceType("m.2xlarge", 8, 32, 0, 0.36),
        InstanceType("mg.large", 2, 8, 0, 0.08, "arm64"),
    ),
)


def planned(rows: int, **asked: object) -> Plan:
    model, tables = workload_tables("rm1", 0.9, 32, rows)
    outcome = Planner(model, tables, PlanRequest(traffic=0.5, **asked), PRICES).outcome()
    return plan_document(outcome, "0" * 64, "1" * 64)


def member(name: str, rows: int, **asked: object) -> PoolMember:
    return PoolMember.of(name, planned(rows, **asked))


def test_small_models_fill_one_anothers_nodes() -> None:
    pool = share_pool([member("a", 500_000), member("b", 600_000), member("c", 700_000)], PRICES)
    assert pool.usd_per_month < pool.usd_apart
    assert sum(share.usd_per_month for share in pool.shares) == pytest.approx(pool.usd_per_month)
    assert all(share.usd_per_month <= share.usd_alone for share in pool.shares)
    lines = pool_lines(pool)
    assert "one pool for 3 plans" in lines[0]
    assert "less than apart" in lines[0]
    assert len(lines) == 4


def test_the_pool_has_room_for_every_container() -> None:
    members = [member("a", 4_000_000, min_replicas=2), member("b", 600_000)]
    pool = share_pool(members, PRICES)
    for number in (0, 1):
        need = sum(group[number] * group[2] for each in members for group in each.groups)
        room = sum(
            (kind.usable_vcpu, kind.usable_bytes)[number] * count
            for kind, count in pool.packing.nodes
        )
        assert need <= room + 1e-6


def test_plans_that_cannot_share_are_refused() -> None:
    small, arm = member("a", 500_000), member("b", 500_000, arch=("arm64",))
    with pytest.raises(PlanError, match="no architecture in common: a on amd64; b on arm64"):
        share_pool([small, arm], PRICES)
    with pytest.raises(PlanError, match="a is named 2 times"):
        share_pool([small, small], PRICES)
    spot = small.plan.model_copy(
        update={"nodes": tuple(node.model_copy(update={"spot": True}) for node in small.plan.nodes)}
    )
    with pytest.raises(PlanError, match="c: planned on the spot market, the others are not"):
        share_pool([small, PoolMember.of("c", spot)], PRICES)
    huge = PoolMember(
        "d",
        small.plan.model_copy(
            update={"gateway": small.plan.gateway.model_copy(update={"memory_bytes": 64 * GIB})}
        ),
        ("amd64",),
    )
    with pytest.raises(PlanError, match="d: a container fits on no node type of amd64"):
        share_pool([small, huge], PRICES)
