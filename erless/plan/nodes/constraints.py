"""What a plan must keep to: SLA, fan-out, shard size, node shapes. Each shortfall in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from erless.errors import InfeasibleError, PlanError
from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout
from erless.plan.nodes.prices import InstanceType, Prices
from erless.plan.request import PlanRequest, Policy
from erless.specs.plan import Precision

__all__ = ["check_request", "check_used", "no_node", "shard_bytes", "violations"]

JOINT_ONLY = (
    *("tier_precision", "resident_share", "max_resident_bytes"),
    *("frozen", "frozen_share"),
)


def shard_bytes(request: PlanRequest, terms: CostTerms, prices: Prices) -> float:
    """Most bytes of one container."""
    limit = request.max_shard_bytes or math.inf
    return limit if terms.fixed_vcpu else min(limit, _largest(prices.types))


def check_used(request: PlanRequest, policies: Sequence[Policy]) -> None:
    """Refuse a knob that nothing in this request would turn.

    Raises:
        PlanError: names the first, and what it belongs to.
    """
    if request.equal_containers:
        for name in ("utilisation", "max_vcpu"):
            if getattr(request, name) is not None:
                raise PlanError(f"{name}: equal containers have the paper's 1 vCPU, used in full")
    if not request.freezes:
        for name in ("frozen_window_s", "frozen_error_budget"):
            if name in request.model_fields_set:
                raise PlanError(f"{name}: nothing is to be frozen, so it has no meaning")
    _check_disk(request)
    if "joint" in policies:
        return
    names = ", ".join(policies)
    lowers = "model-wise" in policies and not request.equal_containers
    if not lowers and any(kind is not Precision.FP32 for kind in request.precisions):
        raise PlanError(
            f"precision: {names} keeps fp32; only joint lowers it, and model-wise in dollars"
        )
    if request.disk and "model-wise" not in policies:
        raise PlanError(f"disk: {names} takes no such wish; only joint and model-wise do")
    for name in JOINT_ONLY:
        if getattr(request, name):
            raise PlanError(f"{name}: {names} takes no such wish; only joint does")
    if request.shards is not None and "elasticrec" not in policies:
        raise PlanError(f"shards: {names} takes no such wish; only joint and elasticrec do")


def _check_disk(request: PlanRequest) -> None:
    """Raise PlanError where disks are wanted, and nothing could lie there."""
    if request.disk and request.shaped:
        raise PlanError("disk: rows go to disks where joint chooses the shape, and one is demanded")
    if request.disk and request.equal_containers:
        raise PlanError("disk: equal containers are the paper's, which has no disks")


def check_request(request: PlanRequest, demand: Demand, terms: CostTerms, prices: Prices) -> None:
    """Refuse what no layout can meet.

    Raises:
        InfeasibleError: lists every constraint that the smallest parts alone break.
    """
    wrong = [
        *_sla(request, demand, terms),
        *_row(request, demand, terms, prices),
        *_nodes(terms, prices),
    ]
    if wrong:
        raise InfeasibleError(wrong[0].split(": raise")[0], tuple(wrong))


def _sla(request: PlanRequest, demand: Demand, terms: CostTerms) -> list[str]:
    sla, floor = request.sla_p95_ms, demand.least_s(terms) * 1e3
    if sla is None or floor <= sla:
        return []
    return [
        f"SLA: the dense tower and its call alone take {floor:.2f} ms on one vCPU, "
        f"{floor - sla:.2f} ms over the {sla:g} ms allowed: raise sla_p95_ms, shrink the "
        "batch or the tower"
    ]


def _row(request: PlanRequest, demand: Demand, terms: CostTerms, prices: Prices) -> list[str]:
    limit = shard_bytes(request, terms, prices)
    widest = max(demand.tables, key=lambda table: table.spec.dim)
    row = widest.row_bytes(request.smallest.shards) + terms.shard_memory_bytes
    if row <= limit:
        return []
    return [
        f"shard size: one row of {widest.spec.name} with the function's own memory needs "
        f"{row:,.0f} bytes, {row - limit:,.0f} over the {limit:,.0f} "
        "allowed: raise max_shard_bytes"
    ]


def _nodes(terms: CostTerms, prices: Prices) -> list[str]:
    wrong = []
    largest = _largest(prices.types)
    if terms.gateway_memory_bytes > largest:
        wrong.append(
            f"nodes: a gateway without rows needs {terms.gateway_memory_bytes:,.0f} bytes, "
            f"{terms.gateway_memory_bytes - largest:,.0f} over the {largest:,.0f} of the largest "
            "node type: add a larger type to the prices"
        )
    most = max(kind.usable_vcpu for kind in prices.types)
    if terms.fixed_vcpu and terms.max_vcpu > most:
        wrong.append(
            f"nodes: a container needs {terms.max_vcpu:g} vCPU, "
            f"{terms.max_vcpu - most:g} over the {most:g} of the largest node type: add "
            "a larger type to the prices"
        )
    return wrong


def violations(layout: Layout, request: PlanRequest, limit: float) -> list[str]:
    """One line per constraint that this layout breaks: measured, allowed, and what lifts it."""
    lines = []
    late = layout.p95_s * 1e3
    if request.sla_p95_ms is not None and late > request.sla_p95_ms:
        lines.append(
            f"SLA: predicted p95 {late:.2f} ms, {late - request.sla_p95_ms:.2f} ms over "
            f"the {request.sla_p95_ms:g} ms allowed: raise sla_p95_ms, or send smaller "
            "batches"
        )
    over = len(layout.shards) - request.max_fan_out
    if over > 0:
        lines.append(
            f"fan-out: {len(layout.shards)} remote calls per query, {over} over the "
            f"{request.max_fan_out} allowed: raise max_fan_out"
        )
    big = max(layout.shards, key=lambda shard: shard.memory, default=None)
    if big and big.memory > limit * (1 + 1e-9):
        lines.append(
            f"shard size: {big.name} has {big.memory:,.0f} bytes, "
            f"{big.memory - limit:,.0f} over the {limit:,.0f} allowed: raise "
            "max_shard_bytes"
        )
    return lines


def no_node(pool: Sequence[Layout], prices: Prices) -> InfeasibleError:
    """The error for layouts of which each has a container that no node type holds."""
    least_memory = min(max(function.memory for function in layout.functions) for layout in pool)
    least_vcpu = min(max(function.vcpu for function in layout.functions) for layout in pool)
    memory, vcpu = _largest(prices.types), max(kind.usable_vcpu for kind in prices.types)
    lines = []
    if least_memory > memory:
        lines.append(
            f"nodes: the largest container needs {least_memory:,.0f} bytes, "
            f"{least_memory - memory:,.0f} over what the largest node type has "
            f"({memory:,.0f}): add a larger type to the prices, or set max_shard_bytes"
        )
    if least_vcpu > vcpu:
        lines.append(
            f"nodes: the largest container needs {least_vcpu:g} vCPU, "
            f"{least_vcpu - vcpu:g} over what the largest node type has ({vcpu:g}): add "
            "a larger type to the prices, or lower max_vcpu"
        )
    if not lines:
        lines.append(
            f"nodes: no single type has both the vCPU ({least_vcpu:g}) and the memory "
            f"({least_memory:,.0f} bytes) that the largest container needs: add a larger "
            "type to the prices"
        )
    return InfeasibleError("no node type fits", tuple(lines))


def _largest(types: Sequence[InstanceType]) -> float:
    return max(kind.usable_bytes for kind in types)
