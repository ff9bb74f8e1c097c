"""The disk tier in plans: what a read costs, where rows go, and what a node's disk gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from erless.errors import PlanError
from erless.plan.costs.cost import DEFAULT_TERMS
from erless.plan.costs.disk import DiskTerms
from erless.plan.costs.layout import Demand, Layout, Slice, on_disk
from erless.plan.nodes.groups import Group
from erless.plan.nodes.packing import pack, pack_equal
from erless.plan.nodes.prices import InstanceType, read_prices
from erless.plan.planner import Planner
from erless.plan.policies.disk import disk_layouts
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest, StoredAs
from erless.plan.source import workload_tables
from erless.specs.plan import Plan, Precision, Tier

STORED = StoredAs(Precision.FP32, Precision.FP32)


def demand_of(rows: int = 5_000_000, qps: float = 20.0) -> Demand:
    _, tables = workload_tables("rm3", 0.9, 32, rows)
    return Demand(tuple(tables), qps, 0.002)


def whole(demand: Demand) -> Layout:
    rows = [Slice(number, 0, table.rows) for number, table in enumerate(demand.tables)]
    return Layout.of(demand, DEFAULT_TERMS, [rows])


def test_a_shard_on_a_disk_keeps_its_index_its_checksums_and_its_cache_in_memory() -> None:
    demand = demand_of()
    [shard] = whole(demand).shards
    disk = on_disk(demand, DEFAULT_TERMS, shard, DiskTerms(cached_rows=0.01))
    assert disk.disk is not None
    index = shard.rows * DEFAULT_TERMS.index_bytes_per_row
    least = DEFAULT_TERMS.shard_memory_bytes + index + 0.01 * shard.row_bytes
    assert least < disk.memory < least + 0.002 * shard.row_bytes + 0.1 * shard.rows + 10e6
    assert disk.disk.bytes > shard.row_bytes
    assert disk.disk.cache_bytes > 0.01 * shard.row_bytes


def test_a_larger_cache_means_fewer_reads_and_more_memory() -> None:
    demand = demand_of()
    [shard] = whole(demand).shards
    made = [
        on_disk(demand, DEFAULT_TERMS, shard, DiskTerms(cached_rows=cached))
        for cached in (0.0, 0.01, 0.1, 0.5)
    ]
    reads = [each.disk.reads for each in made if each.disk]
    assert reads[0] == pytest.approx(shard.gathers)
    assert reads == sorted(reads, reverse=True)
    assert [each.memory for each in made] == sorted(each.memory for each in made)
    assert made[0].service_s > made[-1].service_s > shard.service_s


def test_reads_add_to_the_latency_and_are_reserved() -> None:
    demand = demand_of()
    layout = whole(demand)
    terms = DiskTerms(wait_s=0.01)
    shard = on_disk(demand, DEFAULT_TERMS, layout.shards[0], terms)
    placed = Layout(demand, DEFAULT_TERMS, layout.gateway, (shard,))
    assert shard.disk is not None
    assert shard.disk.iops >= shard.disk.rate / terms.utilisation
    assert shard.disk.reads / shard.disk.iops <= terms.wait_s * (1 + 1e-9)
    assert placed.p95_s > layout.p95_s + terms.seek_s
    again = placed.resized(replace(DEFAULT_TERMS, utilisation=0.35))
    assert again.shards[0].disk == shard.disk  # other terms, the same disk


def test_a_node_holds_what_its_disk_has_and_can_read() -> None:
    kind = InstanceType("i", 8, 64, 0, 1.0, local_nvme_gb=1000, read_iops=100_000)
    plain = Group(0.5, 1e9, 6)
    assert pack_equal([plain], kind) == 1
    assert pack_equal([plain._replace(disk_bytes=300e9)], kind) == 3  # two on each: 850 GB
    assert pack_equal([plain._replace(disk_bytes=1e9, iops=40_000)], kind) == 3
    assert pack_equal([plain._replace(disk_bytes=900e9)], kind) is None
    without = InstanceType("m", 8, 64, 0, 1.0)
    assert pack_equal([plain._replace(disk_bytes=1.0)], without) is None
    unknown = InstanceType("u", 8, 64, 0, 1.0, local_nvme_gb=1000)
    assert pack_equal([plain._replace(disk_bytes=1.0)], unknown) is None


def test_a_shard_on_a_disk_lands_on_a_node_with_one() -> None:
    demand = demand_of()
    layout = whole(demand)
    shard = on_disk(demand, DEFAULT_TERMS, layout.shards[0], DiskTerms())
    packing = pack(
        Layout(demand, DEFAULT_TERMS, layout.gateway, (shard,)),
        replace(read_prices(), disks=True),
    )
    assert packing is not None
    assert any(kind.read_iops for kind, _ in packing.nodes)


def test_every_layout_holds_every_row_once() -> None:
    demand = demand_of(200_000)
    layouts = list(disk_layouts(demand, DEFAULT_TERMS, DiskTerms(), STORED, 8))
    assert len(layouts) > 50
    for layout in layouts:
        assert any(shard.disk for shard in layout.shards)
        for number, table in enumerate(demand.tables):
            parts = sorted(
                (part.start, part.stop)
                for function in layout.functions
                for part in function.slices
                if part.table == number
            )
            ends = np.array(parts)
            assert ends[0, 0] == 0
            assert ends[-1, 1] == table.rows
            assert (ends[1:, 0] == ends[:-1, 1]).all()


@pytest.fixture(scope="module")
def plans() -> dict[bool, Plan]:
    """RM3 of 260 GB at little traffic, without and with a disk tier."""
    made: dict[bool, Plan] = {}
    model, tables = workload_tables("rm3", 0.9, 32, 203_000_000)
    for disk in (False, True):
        request = PlanRequest(
            traffic=0.1,
            allowed=(Precision.FP32, Precision.INT8),
            arch=("amd64", "arm64"),
            disk=disk,
            sla_p95_ms=100.0,
        )
        outcome = Planner(model, tables, request, coarse=disk is False).outcome()
        if disk:
            made[disk] = plan_document(outcome, "m", "p")
        else:
            made[disk] = plan_document(replace(outcome, bound=1.0), "m", "p")
    return made


def test_rows_go_to_a_disk_where_that_is_cheaper(plans: dict[bool, Plan]) -> None:
    before, after = plans[False].result, plans[True].result
    assert before is not None
    assert after is not None
    assert after.usd_per_month < 0.5 * before.usd_per_month
    assert after.usd_per_month <= 140
    assert after.predicted_p95_ms <= 100
    assert 0 < after.lower_bound <= after.usd_per_month
    on_disks = [shard for shard in plans[True].shards if shard.disk]
    assert on_disks
    assert all(shard.tier is not Tier.RESIDENT for shard in on_disks)
    assert "disk tier" in plans[True].assumptions
    assert not any(shard.disk for shard in plans[False].shards)


def test_a_plan_says_what_lies_on_disks(plans: dict[bool, Plan]) -> None:
    [note] = [note for note in plans[True].notes if note.startswith("disks: ")]
    assert "reads per query" in note
    assert not any(note.startswith("disks: ") for note in plans[False].notes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shards": 2}, "one is demanded"),
        ({"equal_containers": True}, "has no disks"),
        ({"policy": "elasticrec"}, "only joint and model-wise do"),
    ],
)
def test_a_disk_where_none_can_be_is_refused(more: dict[str, Any], message: str) -> None:
    model, tables = workload_tables("rm3", 0.9, 32, 1000)
    request = PlanRequest.model_validate({"disk": True, **more})
    with pytest.raises(PlanError, match=message):
        Planner(model, tables, request).outcome()


def test_a_plan_without_disks_is_written_as_before(plans: dict[bool, Plan]) -> None:
    assert "disk" not in plans[False].shards[0].model_dump()
    assert Plan.model_validate(plans[True].model_dump(mode="json")) == plans[True]


def test_no_disk_is_wanted_where_traffic_is_high() -> None:
    model, tables = workload_tables("rm1", 0.9, 32, 200_000)
    request = PlanRequest(traffic=8, disk=True, sla_p95_ms=100.0)
    outcome = Planner(model, tables, request, coarse=True).outcome()
    plain = Planner(model, tables, PlanRequest(traffic=8, sla_p95_ms=100.0), coarse=True).outcome()
    assert outcome.best["joint"].packing.usd_per_month <= plain.best["joint"].packing.usd_per_month
