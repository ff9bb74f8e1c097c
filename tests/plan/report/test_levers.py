"""What would make this very plan cheaper."""

from dataclasses import replace

from erless.plan.nodes.prices import InstanceType, Prices
from erless.plan.report.levers import Lever, lever_lines, levers
from erless.plan.report.variations import AskedPlan
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables

# an arm64 node of the same size at half the price
TYPES = (
    InstanceType("x.large", 16, 64, 0, 1.0),
    InstanceType("x.small", 4, 16, 0, 0.25),
    InstanceType("xg.large", 16, 64, 0, 0.5, "arm64"),
)
PRICES = Prices("own.csv", "2026-11-29", TYPES)


def test_each_freedom_is_tried_by_itself() -> None:
    model, tables = workload_tables("rm1", 0.9, 32)
    found = {
        lever.freedom.split()[0]: lever.usd_per_month
        for lever in levers(AskedPlan(model, tables, PlanRequest(), 50.0, PRICES))
    }
    assert found == {"int8": 0.25 * 730, "arm64": 0.5 * 730}
    free = PlanRequest(allowed=("fp32", "int8"), arch=("amd64", "arm64"))
    assert levers(AskedPlan(model, tables, free, 50.0, PRICES)) == []


def test_local_disks_are_tried_where_nodes_have_some() -> None:
    disk = InstanceType("xd.small", 4, 16, 0, 0.3, local_nvme_gb=900, read_iops=200_000)
    prices = replace(PRICES, every=(*TYPES, disk))
    model, tables = workload_tables("rm3", 0.9, 32, 100_000_000)
    free = PlanRequest(allowed=("fp32", "int8"), arch=("amd64", "arm64"), sla_p95_ms=100.0)
    (lever,) = levers(AskedPlan(model, tables, free, 10.0, prices))
    assert "--disk" in lever.freedom
    assert lever.usd_per_month == 0.3 * 730  # 46 GB of rows on one small node
    assert (
        levers(AskedPlan(model, tables, free.model_copy(update={"disk": True}), 10.0, prices)) == []
    )


def test_what_helps_most_is_told_first() -> None:
    tried = [Lever("a", 90.0), Lever("b", 50.0), Lever("c", 99.5), Lever("d", None)]
    (line,) = lever_lines(tried, 100.0)
    assert line == "cheaper with b: $50 a month (50% less); a: $90 a month (10% less)"
    assert "no lever" in lever_lines(tried[2:], 100.0)[0]
    assert lever_lines([], 100.0) == []
