"""From an outcome to artifacts: each policy's numbers, and `plan.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from erless.plan.costs.layout import PlannedFunction, Role
from erless.plan.costs.tower import COALESCED_SAMPLES
from erless.plan.planner import POLICIES, Outcome
from erless.plan.policies.tiers import floor_of, tiers_of
from erless.plan.report.notes import outcome_notes
from erless.plan.request import PlanRequest, Policy
from erless.plan.selection import Candidate
from erless.specs.dollars import part_of_machines
from erless.specs.plan import (
    DensePlan,
    DiskPlan,
    GatewayPlan,
    NodeGroup,
    Plan,
    PolicyResult,
    Precision,
    RankRange,
    Scaling,
    ShardPlan,
    Tier,
)

__all__ = ["plan_document", "policy_results"]

MAX_DELAY_MS, DELAY_SHARE = 1.0, 0.02  # a query waits for others at most so long
LITTLE_SHARE = 0.65  # of the SLA: ElasticRec's latency target for the dense tower
# Where the SLA is far above the latency, concurrency stays low until a replica saturates: the KPA
# takes replicas away, queues burst, it panics, and so on (simulated: 9 % of queries late against
# 0.2 %, docs/evaluation.md). Twice the predicted p95 is seen before that.
CALM = 2.0
DEFAULT_SLA_MS = 100.0


def policy_results(outcome: Outcome) -> tuple[PolicyResult, ...]:
    """One row per policy, model-wise first."""
    reference = outcome.best.get("model-wise")
    results = []
    for policy in POLICIES:
        candidate = outcome.best.get(policy)
        if candidate is None:
            continue
        base = reference or candidate
        layout = candidate.layout
        results.append(
            PolicyResult(
                policy=policy,
                memory_bytes=math.ceil(layout.memory),
                memory_reduction=base.layout.memory / layout.memory,
                memory_utility=layout.utility,
                functions=len(layout.functions),
                containers=layout.containers,
                fan_out=len(layout.shards),
                vcpu=round(layout.vcpu, 4),
                nodes=candidate.packing.count,
                usd_per_month=round(candidate.packing.usd_per_month, 2),
                predicted_p95_ms=layout.p95_s * 1e3,
                lower_bound=outcome.bound,
                lower_bound_gap=max(0.0, outcome.value(candidate) / outcome.bound - 1),
                precisions=_precisions(outcome, candidate),
                **_disks(candidate),
            )
        )
    return tuple(results)


def _precisions(outcome: Outcome, candidate: Candidate) -> tuple[Precision, ...]:
    """How rows are stored, the most exact first."""
    used = {
        outcome.demand.tables[part.table].kept(function.precision)
        for function in candidate.layout.functions
        for part in function.slices
    }
    return tuple(kind for kind in Precision if kind in used)


def _disks(candidate: Candidate) -> dict[str, Any]:
    """Fields about rows on disks."""
    functions = candidate.layout.functions
    on_disk = [(each.replicas, each.disk) for each in functions if each.disk]
    tail = 0.05 / len(functions)
    return {
        "disk_bytes": math.ceil(sum(number * use.bytes for number, use in on_disk)),
        "disk_reads_per_s": sum(number * use.rate for number, use in on_disk),
        "disk_latency_ms": 1e3 * max((use.latency_s(tail) for _, use in on_disk), default=0.0),
    }


def plan_document(
    outcome: Outcome, model_digest: str, profile_digest: str, notes: Sequence[str] = ()
) -> Plan:
    """`plan.json` of the policy asked for."""
    request = outcome.request
    candidate = outcome.best[request.policy]
    results = policy_results(outcome)
    asked_result = next(result for result in results if result.policy == request.policy)
    return Plan.create(
        model_digest=model_digest,
        profile_digest=profile_digest,
        policy=request.policy,
        shards=_shards(outcome, candidate),
        gateway=_gateway(outcome, candidate),
        dense=_dense(outcome, candidate),
        objective=request.aim,
        qps=outcome.demand.qps,
        batch=request.batch,
        nodes=tuple(
            NodeGroup(
                instance_type=kind.name,
                count=number,
                usd_per_hour=kind.usd_per_hour,
                arch=kind.arch,
                spot=request.spot,
            )
            for kind, number in candidate.packing.nodes
        ),
        result=asked_result,
        policies=results,
        assumptions={
            **outcome.terms.assumptions(),
            **(outcome.disk.assumptions() if outcome.disk else {}),
            "dense tower": outcome.tower.source,
        },
        curve=outcome.terms.curve,
        curve_shipped=outcome.terms.curve_shipped,
        prices_date=outcome.prices.date,
        notes=(*notes, *outcome_notes(outcome)),
    )


def _ranges(outcome: Outcome, function: PlannedFunction) -> tuple[RankRange, ...]:
    tables = outcome.demand.tables
    return tuple(
        RankRange(table=tables[part.table].spec.name, start=part.start, stop=part.stop)
        for part in function.slices
    )


def _shards(outcome: Outcome, candidate: Candidate) -> tuple[ShardPlan, ...]:
    layout = candidate.layout
    gateway = layout.gateway
    shards = []
    if gateway.slices:
        shards.append(_shard(outcome, candidate, gateway, "resident", Tier.RESIDENT))
    numbers: dict[Tier, int] = {}
    for function, tier in zip(layout.shards, tiers_of(layout), strict=True):
        number = numbers.get(tier, 0)
        numbers[tier] = number + 1
        name = "frozen" if tier is Tier.FROZEN else f"{tier.value}-{number}"
        shards.append(_shard(outcome, candidate, function, name, tier))
    return tuple(shards)


def _shard(
    outcome: Outcome, candidate: Candidate, function: PlannedFunction, name: str, tier: Tier
) -> ShardPlan:
    whole = sum(table.gathers for table in outcome.demand.tables)
    least = floor_of(tier, candidate.policy, outcome.request)
    rate = function.vcpu / function.service_s
    return ShardPlan(
        name=name,
        tier=tier,
        slices=_ranges(outcome, function),
        precision=function.precision,
        gathers=function.gathers,
        share=min(1.0, function.gathers / whole) if whole else 0.0,
        touch_probability=-math.expm1(-max(0.0, function.gathers)),
        row_data_bytes=math.ceil(function.row_bytes),
        memory_bytes=math.ceil(function.memory),
        vcpu=function.vcpu,
        replicas=function.replicas,
        min_replicas=least,
        qps_per_replica=rate,
        scaling=_scaling(outcome, function, least, rate),
        usd_per_month=0.0 if tier is Tier.RESIDENT else _dollars(candidate, function),
        binding=function.why,
        disk=_disk(function, len(candidate.layout.functions)),
        exact=_exact(outcome, function),
    )


def _exact(outcome: Outcome, function: PlannedFunction) -> dict[str, Precision]:
    """Tables that may not be stored as the others of the function are, and how they are."""
    held = (outcome.demand.tables[part.table] for part in function.slices)
    kinds = {table.spec.name: table.kept(function.precision) for table in held}
    return {name: kind for name, kind in kinds.items() if kind is not function.precision}


def _disk(function: PlannedFunction, functions: int) -> DiskPlan | None:
    use = function.disk
    if use is None:
        return None
    return DiskPlan(
        cache_bytes=math.ceil(use.cache_bytes),
        reads=use.reads,
        size_bytes=math.ceil(use.bytes),
        reads_per_s=use.rate,
        reserved_iops=use.iops,
        latency_ms=use.latency_s(0.05 / functions) * 1e3,
    )


def _scaling(outcome: Outcome, function: PlannedFunction, least: int, rate: float) -> Scaling:
    request = outcome.request
    return Scaling(
        metric="rps",
        target=rate,
        target_utilisation=request.target_utilisation,
        window_s=request.scale_window_s,
        min_scale=least,
        max_scale=max(1, math.ceil(function.replicas * request.peak)),
        initial_scale=0 if function.role is Role.FROZEN else function.replicas,
        **_autoscaler(request, function),
    )


def _autoscaler(request: PlanRequest, function: PlannedFunction) -> dict[str, Any]:
    """The autoscaler, and the largest replica that it may make, where a vCPU makes it faster."""
    if request.autoscaler == "kpa" or function.gpus:
        return {}
    return {"autoscaler": request.autoscaler, "max_vcpu": function.vcpu * request.growth}


def _gateway(outcome: Outcome, candidate: Candidate) -> GatewayPlan:
    """The gateway, the dense tower inside or not, scales on concurrency."""
    request, gateway = outcome.request, candidate.layout.gateway
    rate = gateway.vcpu / gateway.service_s
    calm_s = CALM * candidate.layout.p95_s if candidate.policy == "joint" else math.inf
    return GatewayPlan(
        dense_placement="function" if candidate.layout.dense else "gateway",
        vcpu=gateway.vcpu,
        replicas=gateway.replicas,
        memory_bytes=math.ceil(gateway.memory),
        qps_per_replica=rate,
        scaling=_concurrency(request, rate, gateway, candidate.policy, calm_s),
        usd_per_month=_dollars(candidate, gateway),
    )


def _dense(outcome: Outcome, candidate: Candidate) -> DensePlan | None:
    function, apart = candidate.layout.dense, candidate.layout.demand.dense
    if function is None or apart is None:
        return None
    request = outcome.request
    sla = request.sla_p95_ms or DEFAULT_SLA_MS
    rate = (1.0 if function.gpus else function.vcpu) / function.service_s
    return DensePlan(
        device=apart.device,
        gpus=function.gpus,
        vcpu=function.vcpu,
        replicas=function.replicas,
        memory_bytes=math.ceil(function.memory),
        qps_per_replica=rate,
        max_batch=max(COALESCED_SAMPLES, request.batch),
        max_delay_ms=min(MAX_DELAY_MS, DELAY_SHARE * sla),
        scaling=_concurrency(request, rate, function, candidate.policy, math.inf),
        usd_per_month=_dollars(candidate, function),
    )


def _concurrency(
    request: PlanRequest, rate: float, function: PlannedFunction, policy: Policy, most_s: float
) -> Scaling:
    """Concurrent queries that one replica answers within 65 % of the SLA, or within `most_s`.

    By Little's law.
    """
    budget_s = min(LITTLE_SHARE * (request.sla_p95_ms or DEFAULT_SLA_MS) / 1e3, most_s)
    return Scaling(
        metric="concurrency",
        target=max(1.0, rate * budget_s),
        target_utilisation=request.target_utilisation,
        window_s=request.scale_window_s,
        min_scale=max(1, floor_of(Tier.RESIDENT, policy, request)),
        max_scale=max(1, math.ceil(function.replicas * request.peak)),
        initial_scale=function.replicas,
        **_autoscaler(request, function),
    )


def _dollars(candidate: Candidate, function: PlannedFunction) -> float:
    """A function's part of the nodes."""
    layout = candidate.layout
    cpu = function.vcpu * function.replicas / layout.vcpu
    memory = function.total_memory / layout.memory
    return candidate.packing.usd_per_month * part_of_machines(cpu, memory)
