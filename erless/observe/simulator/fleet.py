"""What the simulator knows of each function: a plan's numbers as columns over functions.

The gateway is function 0. A replica of c whole vCPU serves c calls at a time; one of a part of a
vCPU, or whose size may change, is held by a CFS quota (`quotas.py`) and serves ⌈c⌉ calls at full
speed. A call takes `service_s`, so that the replica's highest rate is the plan's `qps_per_replica`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from erless.autoscale.status import Sizing, Z
from erless.errors import PlanError
from erless.observe.simulator.policies import PolicyName
from erless.specs.functions import FunctionKind
from erless.specs.plan import DiskPlan, Plan, Scaling, Tier

__all__ = ["Fleet", "Function", "NodeType", "Terms", "fleet_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NodeType:
    """One kind of machine: what containers may use of it.

    disk_bytes, read_iops: of its local disks; 0 where rows cannot lie there.
    """

    name: str
    vcpu: float
    memory_bytes: float
    disk_bytes: float = 0.0
    read_iops: float = 0.0


@dataclass(frozen=True)
class Terms:
    """What the simulation assumes beside the plan. Times in seconds.

    start_s: scheduling and process start of a replica; its bytes then load at `load_bytes_s`.
    hop_s: network and client time of one remote call, hop_spread its coefficient of variation.
    call_spread: that of a service time. node_boot_s, node_idle_s: until a new machine is there, and
    how long an unneeded one stays (Kubernetes' cluster autoscaler: 10 minutes). fill: the part of a
    machine that containers of unequal size fill. replica_mtbf_s, node_mtbf_s: mean time between
    failures of one; infinite: none fails. host_cores: all replicas share so many cores (one
    machine); None: each has its own. cold_miss: what a query does at a function that is asleep.
    deadline_s: a query that would wait longer fails. autoscaler: instead of the plan's; growth: a
    replica may then grow to so many times its planned vCPU. z: width of the status-aware band.
    lost_scrapes: share of the ticks at which an autoscaler gets no data, in gaps of `lost_gap_s`.
    """

    start_s: float = 2.0
    load_bytes_s: float = 1e9
    hop_s: float = 5e-4
    hop_spread: float = 0.0
    call_spread: float = 0.0
    node_boot_s: float = 90.0
    node_idle_s: float = 600.0
    fill: float = 0.95
    replica_mtbf_s: float = math.inf
    node_mtbf_s: float = math.inf
    host_cores: float | None = None
    cold_miss: Literal["wait", "default"] = "wait"
    deadline_s: float = 30.0
    autoscaler: PolicyName | None = None
    growth: float = 2.0
    z: float = Z
    lost_scrapes: float = 0.0
    lost_gap_s: float = 10.0


@dataclass(frozen=True)
class Function:
    """One function of the fleet."""

    name: str
    kind: FunctionKind
    tier: str
    scaling: Scaling
    vcpu: float
    memory_bytes: float
    row_data_bytes: float
    qps_per_replica: float
    touch: float
    initial: int
    disk: DiskPlan | None = None

    @property
    def disk_s(self) -> float:
        """What the reads of one call take of the disk that a replica reserves; 0 without one."""
        if self.disk is None or not self.disk.reserved_iops:
            return 0.0
        return self.disk.reads / max(self.touch, 1e-9) / self.disk.reserved_iops


@dataclass(frozen=True)
class Fleet:
    """All functions; each array is (F,), in the order of `functions`.

    vcpu: of a replica as planned; most_vcpu: as it may grow. quota: held by a CFS quota, so that
    `service_s` is at full speed. rate: calls/s of a replica as planned, by its cores. disk_s:
    seconds of the disk that a replica reserves, per call. disks: (F, 2) bytes and reads/s of its
    node's disk that a replica takes.
    """

    functions: tuple[Function, ...]
    policies: tuple[PolicyName, ...]
    vcpu: Floats
    most_vcpu: Floats
    memory: Floats
    quota: NDArray[np.bool_]
    service_s: Floats
    servers: Floats
    rate: Floats
    touch: Floats
    cold_start_s: Floats
    disk_s: Floats
    disks: Floats

    @property
    def disk_rate(self) -> Floats:
        """Calls/s of one replica by its disk; ∞ without one: (F,)."""
        with np.errstate(divide="ignore"):
            return np.asarray(1 / self.disk_s)

    def __len__(self) -> int:
        return len(self.functions)

    def rate_at(self, vcpu: Floats) -> Floats:
        """Calls/s of one replica of `vcpu` each: (F,)."""
        return np.where(self.quota, vcpu / self.service_s, self.rate)

    def sizing(self, index: int, terms: Terms) -> Sizing:
        """What one replica of a function can do, for an autoscaler that changes its size."""
        return Sizing(
            requests_per_vcpu_s=float(self.rate[index] / self.vcpu[index]),
            most_vcpu=float(self.most_vcpu[index]),
            utilisation=self.functions[index].scaling.target_utilisation,
            cold_start_s=float(self.cold_start_s[index]),
            z=terms.z,
        )


def fleet_of(plan: Plan, terms: Terms, service_ms: Mapping[str, float] | None = None) -> Fleet:
    """The plan's functions.

    Args:
        plan: what to simulate.
        terms: what a cold start costs.
        service_ms: measured milliseconds per call that replace the plan's, by function.

    Raises:
        PlanError: a function has no rate, so nothing can be simulated.
    """
    functions = _functions(plan)
    policies = tuple(terms.autoscaler or each.scaling.autoscaler for each in functions)
    vcpu = np.array([function.vcpu for function in functions])
    most = np.array(
        [_most(each, terms, name) for each, name in zip(functions, policies, strict=True)]
    )
    quota = (vcpu % 1 != 0) | (most > vcpu)
    servers = np.where(quota, np.ceil(most), np.maximum(1.0, np.floor(vcpu)))
    # under a quota one call runs at full speed, whatever the size
    service = _service_s(functions, np.where(quota, vcpu, servers), service_ms or {})
    loads = np.array([function.row_data_bytes for function in functions])
    return Fleet(
        functions=tuple(functions),
        policies=policies,
        vcpu=vcpu,
        most_vcpu=most,
        quota=quota,
        memory=np.array([function.memory_bytes for function in functions], np.float64),
        service_s=service,
        servers=servers,
        rate=np.where(quota, vcpu, servers) / service,
        touch=np.array([function.touch for function in functions]),
        cold_start_s=terms.start_s + loads / terms.load_bytes_s,
        disk_s=np.array([function.disk_s for function in functions]),
        disks=np.array(
            [
                (float(each.disk.size_bytes), each.disk.reserved_iops) if each.disk else (0.0, 0.0)
                for each in functions
            ]
        ),
    )


def _most(function: Function, terms: Terms, policy: PolicyName) -> float:
    """The largest size of a replica, vCPU."""
    if policy in ("kpa", "kpa-partial"):
        return function.vcpu
    return function.scaling.max_vcpu or function.vcpu * terms.growth


def _functions(plan: Plan) -> list[Function]:
    """The gateway, the shards that it calls, and the tower where it is a function."""
    functions = [
        Function(
            "gateway",
            "gateway",
            "gateway",
            plan.gateway.scaling,
            plan.gateway.vcpu,
            plan.gateway.memory_bytes,
            plan.gateway.memory_bytes,
            plan.gateway.qps_per_replica,
            1.0,
            plan.gateway.replicas,
        ),
        *(
            Function(
                shard.name,
                "sparse",
                shard.tier.value,
                shard.scaling,
                shard.vcpu,
                shard.memory_bytes,
                shard.row_data_bytes,
                shard.qps_per_replica,
                min(1.0, shard.touch_probability),
                shard.replicas,
                shard.disk,
            )
            for shard in plan.shards
            if shard.tier is not Tier.RESIDENT
        ),
    ]
    if plan.dense is not None:
        dense = plan.dense
        functions.append(
            Function(
                "dense",
                "dense",
                "dense",
                dense.scaling,
                dense.vcpu,
                dense.memory_bytes,
                dense.memory_bytes,
                dense.qps_per_replica,
                1.0,
                dense.replicas,
            )
        )
    return functions


def _service_s(
    functions: Sequence[Function], calls: Floats, measured_ms: Mapping[str, float]
) -> Floats:
    """Seconds that one call takes, (F,): as measured, or by the plan's rate for `calls` at once."""
    service = np.zeros(len(functions))
    for index, function in enumerate(functions):
        if function.name in measured_ms:
            service[index] = measured_ms[function.name] / 1e3
        elif function.qps_per_replica > 0:
            service[index] = calls[index] / function.qps_per_replica
        else:
            raise PlanError(f"{function.name}: the plan has no qps_per_replica to simulate with")
    return service
