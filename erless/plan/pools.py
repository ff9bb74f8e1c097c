"""From a plan to Terraform's node pools: `erless plan --nodes-from infra/terraform`.

A pool has one instance type, because the cluster autoscaler reckons with equal nodes. Each pool
gets the type on which the containers of its roles cost least, as whole nodes:

- `min_size`: nodes for every function at its min scale;
- `max_size`: nodes for every function at its max scale, and for one more set at planned size: a
  new release comes up beside the old one.

What a person wrote in `node_pools` of a `*.tfvars.json` limits the types and says which pool
serves which roles; the result goes to a file of its own, which Terraform loads by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from erless.errors import InfeasibleError, PlanError
from erless.plan.nodes import Group, pack_equal
from erless.plan.prices import InstanceType, Prices
from erless.specs.plan import Plan, Tier
from erless.storage.atomic import os_errors, staged_file

__all__ = ["Pool", "SizedPool", "limit_prices", "read_pools", "size_pools", "write_pools"]

VARIABLE = "planned_pools"
WRITTEN = "erless.auto.tfvars.json"


@dataclass(frozen=True)
class Pool:
    """A pool before planning: the roles that it serves, and the types it may have (none: any)."""

    roles: tuple[str, ...]
    instance_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class SizedPool:
    """A pool as the plan wants it."""

    instance_types: tuple[str]
    min_size: int
    max_size: int

    def __str__(self) -> str:
        return f"{self.min_size} to {self.max_size} nodes of {self.instance_types[0]}"


# As the Terraform module's own defaults have it
DEFAULT = {"hot": Pool(("gateway", "dense", "hot", "warm")), "cold": Pool(("cold", "frozen"))}


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
        found: dict[str, Any] = document.get("node_pools") or {}
        pools = {
            name: Pool(
                tuple(pool.get("roles", DEFAULT[name].roles if name in DEFAULT else ())),
                tuple(pool.get("instance_types", ())),
            )
            for name, pool in found.items()
            if not pool.get("gpu")
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise PlanError(f"{path}: node_pools is not a map of pools ({error})") from error
    return {name: pool for name, pool in pools.items() if pool.roles}


def limit_prices(prices: Prices, pools: Mapping[str, Pool]) -> Prices:
    """Only the types that some pool may have; all of them where a pool does not say.

    Raises:
        PlanError: a pool's type is not in the price table.
    """
    known = {each.name for each in prices.every}
    for name, pool in pools.items():
        missing = [each for each in pool.instance_types if each not in known]
        if missing:
            raise PlanError(f"node_pools.{name}: {missing[0]} is not in {prices.source}")
    if not pools or not all(pool.instance_types for pool in pools.values()):
        return prices
    allowed = {each for pool in pools.values() for each in pool.instance_types}
    return replace(prices, every=tuple(each for each in prices.every if each.name in allowed))


def size_pools(plan: Plan, prices: Prices, pools: Mapping[str, Pool]) -> dict[str, SizedPool]:
    """Choose each pool's instance type and sizes. Pools without any function are left out.

    Raises:
        InfeasibleError: a container fits on none of its pool's types.
        PlanError: a function's role is served by no pool.
    """
    served = {role for pool in pools.values() for role in pool.roles}
    homeless = sorted({role for role, *_ in _containers(plan)} - served)
    if homeless:
        raise PlanError(f"no pool serves the role {homeless[0]}: add it to some pool's roles")
    sized = {}
    for name, pool in pools.items():
        containers = [each for each in _containers(plan) if each[0] in pool.roles]
        if containers:
            allowed = pool.instance_types or [each.name for each in prices.cpu_types]
            types = [each for each in prices.cpu_types if each.name in allowed]
            sized[name] = _size(name, containers, types)
    return sized


Container = tuple[str, float, int, int, int, int]  # role, vCPU, bytes, least, planned, most


def _containers(plan: Plan) -> list[Container]:
    """Every function of the plan, the gateway first."""
    gateway = plan.gateway
    found = [("gateway", gateway.vcpu, gateway.memory_bytes, gateway.scaling.min_scale,
              gateway.replicas, gateway.scaling.max_scale)]  # fmt: skip
    dense = plan.dense
    if dense is not None and not dense.gpus:
        found.append(("dense", dense.vcpu, dense.memory_bytes, dense.scaling.min_scale,
                      dense.replicas, dense.scaling.max_scale))  # fmt: skip
    for each in plan.shards:
        if each.tier is not Tier.RESIDENT:
            found.append((each.tier.value, each.vcpu, each.memory_bytes, each.scaling.min_scale,
                          each.replicas, each.scaling.max_scale))  # fmt: skip
    return found


def _size(name: str, containers: Sequence[Container], types: Sequence[InstanceType]) -> SizedPool:
    least: list[Group] = [(vcpu, size, few) for _, vcpu, size, few, _, _ in containers]
    usual: list[Group] = [(vcpu, size, number) for _, vcpu, size, _, number, _ in containers]
    most: list[Group] = [(vcpu, size, max(many, number) + number)
                         for _, vcpu, size, _, number, many in containers]  # fmt: skip
    best: tuple[float, float, InstanceType] | None = None
    for kind in types:
        nodes, peak = pack_equal(usual, kind), pack_equal(most, kind)
        if nodes is not None and peak is not None:
            entry = (nodes * kind.usd_per_hour, peak * kind.usd_per_hour, kind)
            best = min(best or entry, entry, key=lambda each: (each[0], each[1], each[2].name))
    if best is None:
        vcpu, size = max(each[1] for each in containers), max(each[2] for each in containers)
        names = ", ".join(kind.name for kind in types[:4]) or "none"
        raise InfeasibleError(
            f"pool {name}: no instance type holds its largest container",
            (f"containers of up to {vcpu:g} vCPU and {size:,} bytes; allowed types: {names}",),
        )
    kind = best[2]
    return SizedPool(
        (kind.name,), pack_equal(least, kind) or 0, max(1, pack_equal(most, kind) or 0)
    )


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
