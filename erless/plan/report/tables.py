"""What `erless plan` prints: a row per shard, policies side by side, why a shard is cut there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erless.errors import PlanError
from erless.specs.plan import DensePlan, GatewayPlan, Plan, ShardPlan

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["explain", "node_line", "policy_table", "shard_table", "verdict"]


SHARD_NUMBERS = (
    *("rows", "gathers", "row bytes", "precision", "vCPU", "replicas"),
    *("QPS each", "memory each", "$/month"),
)


def shard_table(plan: Plan) -> Table:
    """One row per shard, then the gateway and, where it is one, the dense function."""
    from rich.table import Table

    table = Table(title=f"{plan.policy}, {_rate(plan.qps)} queries/s of {plan.batch} samples")
    for name in ("shard", "tier", "tables"):
        table.add_column(name)
    for name in SHARD_NUMBERS:
        table.add_column(name, justify="right")
    for shard in plan.shards:
        resident = shard.tier == "resident"
        table.add_row(
            shard.name,
            shard.tier.value,
            str(len({part.table for part in shard.slices})),
            f"{shard.rows:,}",
            f"{shard.share:.2%}",
            _size(shard.row_data_bytes),
            shard.precision.value,
            *(("in gateway", "", "", "", "") if resident else _cells(shard)),
        )
    table.add_row("gateway", "" if plan.dense else "dense", *[""] * 5, *_cells(plan.gateway))
    if plan.dense is not None:
        where = "on GPU" if plan.dense.gpus else "dense"
        table.add_row("dense", where, *[""] * 5, *_cells(plan.dense))
    return table


def _cells(function: ShardPlan | GatewayPlan | DensePlan) -> tuple[str, ...]:
    """What a function of its own takes: vCPU, replicas, QPS and memory of each, dollars."""
    return (
        f"{function.vcpu:g}",
        str(function.replicas),
        f"{function.qps_per_replica:,.0f}",
        _size(function.memory_bytes),
        f"{function.usd_per_month:,.0f}",
    )


def node_line(plan: Plan) -> str:
    """The nodes that hold all containers, and what they cost."""
    nodes = ", ".join(f"{node.count} × {node.instance_type}" for node in plan.nodes)
    dollars = plan.result.usd_per_month if plan.result else 0.0
    return f"nodes: {nodes}: ${dollars:,.0f} a month at prices of {plan.prices_date}"


def policy_table(plan: Plan) -> Table:
    """All policies that were compared."""
    from rich.table import Table

    table = Table(title=f"policies, objective {plan.objective}")
    table.add_column("policy")
    for name in (
        "memory",
        "smaller",
        "utility",
        "functions",
        "containers",
        "fan-out",
        "vCPU",
        "nodes",
        "$/month",
        "p95 ms",
        "above bound",
    ):
        table.add_column(name, justify="right")
    for result in plan.policies:
        table.add_row(
            result.policy,
            _size(result.memory_bytes),
            f"{result.memory_reduction:.2f}×",
            f"{result.memory_utility:.2%}",
            str(result.functions),
            str(result.containers),
            str(result.fan_out),
            f"{result.vcpu:g}",
            str(result.nodes),
            f"{result.usd_per_month:,.0f}",
            f"{result.predicted_p95_ms:.2f}",
            f"{result.lower_bound_gap:.2%}",
        )
    return table


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
        *(f"  {part.table}: ranks {part.start:,} … {part.stop - 1:,}" for part in shard.slices[:5]),
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
    word = "saves" if saved >= 0 else "costs more by"
    return (
        f"sharding {word} ${abs(saved):,.0f} a month ({abs(saved) / whole.usd_per_month:.1%}) "
        f"and holds {whole.memory_bytes / joint.memory_bytes:.2f}× less memory"
    )


def _rate(qps: float) -> str:
    return f"{qps:,.0f}" if qps >= 10 else f"{qps:.2g}"


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
