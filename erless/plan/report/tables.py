"""What `erless plan` prints: a row per shard, policies side by side, why a shard is cut there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erless.errors import PlanError
from erless.specs.dollars import plan_usd
from erless.specs.plan import DensePlan, GatewayPlan, Plan, PolicyResult, ShardPlan, Tier

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["PAYS", "explain", "node_line", "policy_table", "shard_table", "verdict"]

PAYS = 0.01  # cheaper by more than 1 %


def shard_table(plan: Plan, *, every: bool = False) -> Table:
    """One row per function: the gateway with its rows, the shards, the dense tower.

    Five columns of numbers fit a terminal of 80; `every` adds the others.
    """
    from rich.table import Table

    table = Table(title=f"{plan.policy}, {_rate(plan.qps)} queries/s of {plan.batch} samples")
    for name in ("function", "tier"):
        table.add_column(name)
    for name in ("rows", "gathers", "replicas", "memory each", "$/month"):
        table.add_column(name, justify="right")
    for name in ("tables", "row bytes", "precision", "vCPU", "queries/s each") if every else ():
        table.add_column(name, justify="right")
    resident = next((shard for shard in plan.shards if shard.tier is Tier.RESIDENT), None)
    _add_row(table, "gateway", "gateway", resident, plan.gateway, every)
    for shard in plan.shards:
        if shard is not resident:
            _add_row(table, shard.name, shard.tier.value, shard, shard, every)
    if plan.dense is not None:
        _add_row(table, "dense", "on GPU" if plan.dense.gpus else "dense", None, plan.dense, every)
    return table


def _add_row(
    table: Table,
    name: str,
    tier: str,
    shard: ShardPlan | None,
    function: ShardPlan | GatewayPlan | DensePlan,
    every: bool,
) -> None:
    """A function: the rows that lie in it, and what it takes."""
    rows = (f"{shard.rows:,}", f"{shard.share:.2%}") if shard else ("", "")
    cells = [
        *rows,
        str(function.replicas),
        _size(function.memory_bytes),
        f"{function.usd_per_month:,.0f}",
    ]
    if every:
        held = (
            (
                str(len({part.table for part in shard.slices})),
                _size(shard.row_data_bytes),
                _kinds(shard),
            )
            if shard
            else ("", "", "")
        )
        cells += [*held, f"{function.vcpu:g}", f"{function.qps_per_replica:,.0f}"]
    table.add_row(name, tier, *cells)


def _kinds(shard: ShardPlan) -> str:
    """How its rows are stored: most of them, and tables that are more exact."""
    more = sorted({kind.value for kind in shard.exact.values()})
    return " ".join([shard.precision.value, *(f"({kind})" for kind in more)])


def node_line(plan: Plan) -> str:
    """The nodes that hold all containers, and what they cost."""
    nodes = ", ".join(f"{node.count} × {node.instance_type}" for node in plan.nodes)
    return f"nodes: {nodes}: ${plan_usd(plan):,.0f} a month at prices of {plan.prices_date}"


def policy_table(plan: Plan, *, every: bool = False) -> Table:
    """All policies that were compared; `every`: with all that is known of them."""
    from rich.table import Table

    table = Table(title=f"policies, objective {plan.objective}")
    table.add_column("policy")
    for name in ("memory", "smaller", "functions", "nodes", "p95 ms", "$/month"):
        table.add_column(name, justify="right")
    disks = any(result.disk_bytes for result in plan.policies)
    if disks:
        table.add_column("on disk", justify="right")
    more = ("utility", "containers", "fan-out", "vCPU", "above bound", "rows")
    on_disk = ("reads/s", "reads add, ms") if disks else ()
    for name in (*more, *on_disk) if every else ():
        table.add_column(name, justify="right")
    for result in plan.policies:
        cells = [
            _size(result.memory_bytes),
            f"{result.memory_reduction:.2f}×",
            str(result.functions),
            str(result.nodes),
            f"{result.predicted_p95_ms:.2f}",
            f"{result.usd_per_month:,.0f}",
        ]
        if disks:
            cells.append(_size(result.disk_bytes) if result.disk_bytes else "")
        if every:
            cells += [
                f"{result.memory_utility:.2%}",
                str(result.containers),
                str(result.fan_out),
                f"{result.vcpu:g}",
                f"{result.lower_bound_gap:.2%}",
                " ".join(result.precisions),
                *(_reads(result) if disks else ()),
            ]
        table.add_row(result.policy, *cells)
    return table


def _reads(result: PolicyResult) -> tuple[str, str]:
    """Reads per second of disks, and what they add to the p95."""
    if not result.disk_bytes:
        return "", ""
    return f"{result.disk_reads_per_s:,.0f}", f"{result.disk_latency_ms:.2f}"


def explain(plan: Plan, name: str) -> list[str]:
    """Why shard `name` is cut where it is, and what binds.

    Raises:
        PlanError: the plan has no such shard.
    """
    shard = next((part for part in plan.shards if part.name == name), None)
    if shard is None:
        names = ", ".join(part.name for part in plan.shards)
        raise PlanError(f"the plan has no shard {name}; it has {names}")
    lines = [
        f"{shard.name}: {shard.rows:,} rows of {len(shard.slices)} slices, "
        f"{shard.gathers:,.1f} gathers per query ({shard.share:.2%})",
        *(
            f"  {part.table}: ranks {part.start:,} … {part.stop - 1:,}, "
            f"{shard.precision_of(part.table)}"
            for part in shard.slices[:5]
        ),
    ]
    if len(shard.slices) > 5:
        lines.append(f"  and {len(shard.slices) - 5} more")
    return [*lines, *_load_lines(plan, shard)]


def _load_lines(plan: Plan, shard: ShardPlan) -> list[str]:
    if shard.tier == "resident":
        return [
            f"  rides in each of {plan.gateway.replicas} gateway replica(s) beside the tower: a "
            "resident gather costs no remote call",
            f"  binds: {shard.binding}",
        ]
    used = plan.qps / shard.qps_per_replica
    return [
        f"  load {used:.3f} of {shard.replicas} replica(s) of {shard.vcpu:g} vCPU "
        f"({used / max(1, shard.replicas):.1%} busy)",
        f"  binds: {shard.binding or 'the policy'}",
    ]


def verdict(plan: Plan) -> str:
    """Whether sharding pays here, in one sentence; empty where nothing was compared."""
    by_policy = {result.policy: result for result in plan.policies}
    whole, joint = by_policy.get("model-wise"), by_policy.get("joint")
    if whole is None or joint is None:
        return ""
    if joint.fan_out == 0:
        return (
            f"sharding does not pay here: the whole model on {joint.nodes} node(s) costs "
            f"${joint.usd_per_month:,.0f} a month, and no sharded plan found is cheaper "
            "by the objective"
        )
    saved = whole.usd_per_month - joint.usd_per_month
    share = abs(saved) / whole.usd_per_month
    ratio = whole.memory_bytes / joint.memory_bytes
    memory = f"{ratio:.2f}× less memory" if ratio >= 1 else f"{1 / ratio:.2f}× more memory"
    change = f"${abs(saved):,.0f} a month ({share:.1%})"
    if saved < PAYS * whole.usd_per_month:
        word = f"saves only {change}" if saved >= 0 else f"costs {change} more"
        if abs(saved) < 0.5:
            word = f"costs the same ${joint.usd_per_month:,.0f} a month"
        return f"sharding does not pay here: it {word} and holds {memory}"
    return f"sharding saves {change} and holds {memory}"


def _rate(qps: float) -> str:
    return f"{qps:,.0f}" if qps >= 10 else f"{qps:.2g}"


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
