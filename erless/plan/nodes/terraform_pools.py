"""From a plan to Terraform's node pools: `erless plan --nodes-from infra/terraform`.

A pool has one instance type, because the cluster autoscaler counts on equal nodes. Each pool
gets the type on which the containers of its roles cost least, as whole nodes:

- `min_size`: nodes for every function at its min scale;
- `max_size`: nodes for every function at its max scale, and for one more set at planned size: a
  new release comes up beside the old one.

The variable `node_pools` of a `*.tfvars.json` limits the types and assigns roles to pools; the
result goes to a file of its own, which Terraform loads by itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from erless.errors import InfeasibleError, PlanError
from erless.plan.nodes.groups import Group
from erless.plan.nodes.packing import pack_equal
from erless.plan.nodes.prices import InstanceType, Prices
from erless.specs.plan import DensePlan, DiskPlan, GatewayPlan, Plan, ShardPlan, Tier
from erless.storage.atomic import os_errors, staged_file

__all__ = ["Pool", "SizedPool", "limit_prices", "read_pools", "size_pools", "write_pools"]

VARIABLE = "planned_pools"
WRITTEN = "erless.auto.tfvars.json"


@dataclass(frozen=True)
class Pool:
    """A pool before planning: the roles that it serves, and the types it may have (none: any).

    A pool with GPUs serves what asks for GPUs, and nothing else. One without `local_nvme` keeps
    pods' files on network disks, and serves no function of the disk tier.
    """

    roles: tuple[str, ...]
    instance_types: tuple[str, ...] = ()
    gpu: bool = False
    local_nvme: bool = False


@dataclass(frozen=True)
class SizedPool:
    """A pool as the plan needs it: one instance type, fewest and most nodes."""

    instance_types: tuple[str]
    min_size: int
    max_size: int

    def __str__(self) -> str:
        return f"{self.min_size} to {self.max_size} nodes of {self.instance_types[0]}"


# As the Terraform module's own defaults have it, and the GPU pool that its examples add
DEFAULT = {
    "hot": Pool(("gateway", "dense", "hot", "warm")),
    "cold": Pool(("cold", "frozen")),
    "gpu": Pool(("dense",), gpu=True),
}


def read_pools(folder: Path) -> dict[str, Pool]:
    """The pools that Terraform folder `folder` asks for, without any that serve no role.

    Raises:
        PlanError: no Terraform code with a variable `planned_pools`, or `node_pools` is not a map
            of pools.
        ArtifactError: there is no such folder.
    """
    code = ""
    with os_errors(folder, "read"):
        names = sorted(path.name for path in folder.iterdir())
        for name in names:
            if name.endswith(".tf"):
                code += (folder / name).read_text(encoding="utf-8")
    if not re.search(rf'^\s*variable\s+"{VARIABLE}"', code, re.MULTILINE):
        raise PlanError(f'{folder}: no *.tf file declares the variable "{VARIABLE}"')
    pools = DEFAULT
    for name in names:
        if name.endswith(".tfvars.json") and name != WRITTEN:
            pools = _declared(folder / name) or pools
    return pools


def _declared(path: Path) -> dict[str, Pool]:
    """The pools of one variables file; empty without `node_pools`."""
    with os_errors(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        document = json.loads(text)
        declared: dict[str, Any] = document.get("node_pools") or {}
        pools = {
            name: Pool(
                tuple(pool.get("roles", ())),
                tuple(pool.get("instance_types", ())),
                bool(pool.get("gpu")),
                bool(pool.get("local_nvme")),
            )
            for name, pool in declared.items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise PlanError(f"{path}: node_pools is not a map of pools ({error})") from error
    return {name: pool for name, pool in pools.items() if pool.roles}


def limit_prices(prices: Prices, pools: Mapping[str, Pool]) -> Prices:
    """Only the types that some pool may have; a pool that names none may have any.

    Raises:
        PlanError: a pool's type is not in the price table.
    """
    priced = {instance.name for instance in prices.every}
    for name, pool in pools.items():
        missing = [name for name in pool.instance_types if name not in priced]
        if missing:
            raise PlanError(f"node_pools.{name}: {missing[0]} is not in {prices.source}")

    def allowed(kind: InstanceType) -> bool:
        return any(
            not pool.instance_types or kind.name in pool.instance_types
            for pool in pools.values()
            if pool.gpu == bool(kind.gpu)
        )

    if not pools:
        return prices
    # without a GPU pool, GPUs stay in the table: `size_pools` then reports that no pool serves them
    gpus = any(pool.gpu for pool in pools.values())
    types = tuple(kind for kind in prices.every if allowed(kind) or (kind.gpu and not gpus))
    return replace(prices, every=types)


def size_pools(plan: Plan, prices: Prices, pools: Mapping[str, Pool]) -> dict[str, SizedPool]:
    """Choose each pool's instance type and sizes. Pools without any function are left out.

    Raises:
        InfeasibleError: a container fits on none of its pool's types.
        PlanError: a function's role is served by no pool, or by one without the local disk that
            the function reads.
    """
    containers = _containers(plan)
    sized = {}
    homeless = list(containers)
    for name, pool in pools.items():
        served = [
            container
            for container in containers
            if container.role in pool.roles and bool(container.gpus) == pool.gpu
        ]
        homeless = [container for container in homeless if container not in served]
        _check_disks(name, pool, served)
        if served:
            types = prices.gpu_types if pool.gpu else prices.cpu_types
            names = pool.instance_types or [kind.name for kind in types]
            sized[name] = _size(name, served, [kind for kind in types if kind.name in names])
    if homeless:
        missing = "pool with gpu = true" if homeless[0].gpus else "pool"
        role = homeless[0].role
        raise PlanError(f"no {missing} serves the role {role}: add it to some pool's roles")
    return sized


def _check_disks(name: str, pool: Pool, served: Sequence[Container]) -> None:
    """Raise PlanError where a function would read its rows from a network disk."""
    on_disk = next((container for container in served if container.disk), None)
    if on_disk is not None and not pool.local_nvme:
        raise PlanError(
            f"pool {name} serves the role {on_disk.role}, whose rows are read from a local disk, "
            "and keeps pods on network disks: set local_nvme = true for it, or plan without --disk"
        )


@dataclass(frozen=True)
class Container:
    """One function: its role, the size of a replica, and replicas at least, as planned, at most."""

    role: str
    vcpu: float
    memory_bytes: int
    gpus: int
    least: int
    planned: int
    most: int
    disk: DiskPlan | None = None


def _container(
    role: str, function: GatewayPlan | DensePlan | ShardPlan, gpus: int = 0
) -> Container:
    scaling = function.scaling
    return Container(
        role,
        function.vcpu,
        function.memory_bytes,
        gpus,
        scaling.min_scale,
        function.replicas,
        scaling.max_scale,
    )


def _containers(plan: Plan) -> list[Container]:
    """Every function of the plan, the gateway first."""
    containers = [_container("gateway", plan.gateway)]
    if plan.dense is not None:
        containers.append(_container("dense", plan.dense, plan.dense.gpus))
    remote = (shard for shard in plan.shards if shard.tier is not Tier.RESIDENT)
    return containers + [
        replace(_container(shard.tier.value, shard), disk=shard.disk) for shard in remote
    ]


def _size(name: str, containers: Sequence[Container], types: Sequence[InstanceType]) -> SizedPool:
    """The type on which the planned replicas cost least, then those at their most."""

    def nodes(kind: InstanceType, replicas: Callable[[Container], int]) -> int | None:
        return _nodes(kind, [(container, replicas(container)) for container in containers])

    best: tuple[float, float, InstanceType] | None = None
    for kind in types:
        usual, peak = nodes(kind, lambda container: container.planned), nodes(kind, _peak)
        if usual is not None and peak is not None:
            entry = (usual * kind.usd_per_hour, peak * kind.usd_per_hour, kind)
            best = min(best or entry, entry, key=_by_price)
    if best is None:
        vcpu = max(container.vcpu for container in containers)
        size = max(container.memory_bytes for container in containers)
        names = ", ".join(kind.name for kind in types[:4]) or "none"
        raise InfeasibleError(
            f"pool {name}: no instance type holds its largest container",
            (f"containers of up to {vcpu:g} vCPU and {size:,} bytes; allowed types: {names}",),
        )
    kind = best[2]
    least = nodes(kind, lambda container: container.least)
    return SizedPool((kind.name,), least or 0, max(1, nodes(kind, _peak) or 0))


def _by_price(entry: tuple[float, float, InstanceType]) -> tuple[float, float, str]:
    usual, peak, kind = entry
    return usual, peak, kind.name


def _peak(container: Container) -> int:
    """Replicas at their most, and the next release's beside them."""
    return max(container.most, container.planned) + container.planned


def _nodes(kind: InstanceType, replicas: Sequence[tuple[Container, int]]) -> int | None:
    """Nodes of `kind` that hold these replicas of each function; None where one does not fit."""
    groups = [
        Group(
            container.vcpu,
            container.memory_bytes,
            number,
            container.disk.size_bytes if container.disk else 0,
            container.disk.reserved_iops if container.disk else 0,
        )
        for container, number in replicas
    ]
    nodes = pack_equal(groups, kind)
    if nodes is None or any(container.gpus > kind.gpu for container, _ in replicas):
        return None
    return max(
        nodes,
        math.ceil(sum(_gpu_share(container, kind) * number for container, number in replicas)),
    )


def _gpu_share(container: Container, kind: InstanceType) -> float:
    """The part of a node's GPUs that one replica takes: a GPU is not split between replicas."""
    return 1 / (kind.gpu // container.gpus) if container.gpus else 0.0


def write_pools(folder: Path, pools: Mapping[str, SizedPool]) -> Path:
    """Write `erless.auto.tfvars.json` into `folder`; Terraform loads it by itself.

    Raises:
        StorageError: the disk refused.
    """
    path = folder / WRITTEN
    document = {VARIABLE: {name: asdict(pool) for name, pool in pools.items()}}
    with staged_file(path) as stage, os_errors(stage):
        stage.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path
