"""What the simulator knows of each function: a plan's numbers as columns over functions.

The gateway is function 0. A replica of c vCPU serves ⌊c⌋ calls at a time, at least one; a call
takes `service_s`, so that the replica's highest rate is the plan's `qps_per_replica`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from erless.errors import PlanError
from erless.specs.functions import FunctionKind
from erless.specs.plan import Plan, Scaling, Tier

__all__ = ["Fleet", "Function", "NodeType", "Terms", "fleet_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NodeType:
    """One kind of machine: what containers may use of it, and its price."""

    name: str
    vcpu: float
    memory_bytes: float
    usd_per_hour: float


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
    deadline_s: a query that would wait longer fails.
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


@dataclass(frozen=True)
class Fleet:
    """All functions; each array is (F,), in the order of `functions`."""

    functions: tuple[Function, ...]
    vcpu: Floats
    memory: Floats
    service_s: Floats
    servers: Floats
    rate: Floats
    touch: Floats
    cold_start_s: Floats

    def __len__(self) -> int:
        return len(self.functions)


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
    servers = np.array([max(1.0, math.floor(function.vcpu)) for function in functions])
    service = _service_s(functions, servers, service_ms or {})
    loads = np.array([function.row_data_bytes for function in functions])
    return Fleet(
        functions=tuple(functions),
        vcpu=np.array([function.vcpu for function in functions]),
        memory=np.array([function.memory_bytes for function in functions], np.float64),
        service_s=service,
        servers=servers,
        rate=servers / service,
        touch=np.array([function.touch for function in functions]),
        cold_start_s=terms.start_s + loads / terms.load_bytes_s,
    )


def _functions(plan: Plan) -> list[Function]:
    """The gateway, the shards that it calls, and the tower where it is a function."""
    functions = [
        Function(
            "gateway",
            "gateway",
            "",
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
                "",
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
    functions: Sequence[Function], servers: Floats, measured_ms: Mapping[str, float]
) -> Floats:
    """Seconds that one call takes, (F,): as measured, or as the plan's rate has it."""
    service = np.zeros(len(functions))
    for index, function in enumerate(functions):
        if function.name in measured_ms:
            service[index] = measured_ms[function.name] / 1e3
        elif function.qps_per_replica > 0:
            service[index] = servers[index] / function.qps_per_replica
        else:
            raise PlanError(f"{function.name}: the plan has no qps_per_replica to simulate with")
    return service
