"""Several plans on one pool of nodes: what they cost together, and what each one's part is.

Whole nodes round each plan up; containers of several plans fill one another's gaps. Each plan pays
in proportion to what it would cost alone, so none pays more than alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from erless.errors import PlanError
from erless.plan.nodes.groups import Group, dimensions_of
from erless.plan.nodes.packing import Packing, pack_groups
from erless.plan.nodes.prices import InstanceType, Prices
from erless.specs.plan import DensePlan, GatewayPlan, Plan, ShardPlan, Tier

__all__ = ["PoolMember", "PoolShare", "SharedPool", "pool_lines", "share_pool"]

EXACT_STATES = 20_000  # of all plans' containers; some seconds


@dataclass(frozen=True)
class PoolMember:
    """One plan of the pool.

    Args:
        name: as the user calls it.
        plan: whose containers are packed.
        archs: of the nodes that may run its images.
    """

    name: str
    plan: Plan
    archs: tuple[str, ...]

    @classmethod
    def of(cls, name: str, plan: Plan) -> PoolMember:
        """A plan on file: its images are taken to run only where its own nodes are."""
        return cls(name, plan, tuple(sorted({node.arch for node in plan.nodes})))

    @property
    def spot(self) -> bool:
        """Whether its nodes are bought on the spot market."""
        return any(node.spot for node in self.plan.nodes)

    @property
    def groups(self) -> list[Group]:
        """Its containers without a GPU."""
        plan = self.plan
        functions: list[GatewayPlan | ShardPlan | DensePlan] = [
            plan.gateway,
            *(shard for shard in plan.shards if shard.tier is not Tier.RESIDENT),
            *([plan.dense] if plan.dense and not plan.dense.gpus else []),
        ]
        return [
            Group(
                function.vcpu,
                float(function.memory_bytes),
                function.replicas,
                *((disk.size_bytes, disk.reserved_iops) if disk else ()),
            )
            for function in functions
            for disk in [function.disk if isinstance(function, ShardPlan) else None]
            if function.replicas
        ]


@dataclass(frozen=True)
class PoolShare:
    """Dollars a month that one plan pays of the pool, and what it would cost alone."""

    name: str
    usd_per_month: float
    usd_alone: float


@dataclass(frozen=True)
class SharedPool:
    """The nodes of all plans, and each plan's part."""

    packing: Packing
    shares: tuple[PoolShare, ...]

    @property
    def usd_per_month(self) -> float:
        """Dollars a month of all nodes."""
        return self.packing.usd_per_month

    @property
    def usd_apart(self) -> float:
        """Dollars a month of the plans on pools of their own."""
        return sum(share.usd_alone for share in self.shares)


def share_pool(members: Sequence[PoolMember], prices: Prices) -> SharedPool:
    """Pack the containers of all members onto the nodes that every one of them may use.

    Where that is not cheaper than the members' own nodes, the pool is these.

    Raises:
        PlanError: a member is named twice, has a GPU function, or some are planned on the spot
            market and others are not; the members' architectures have none in common; or a
            container fits on no type.
    """
    _check(members)
    spot = members[0].spot
    apart = [_pack(member.name, member.groups, prices, member.archs, spot) for member in members]
    alone = [packing.usd_per_month for packing in apart]
    common = [arch for arch in members[0].archs if all(arch in each.archs for each in members)]
    if not common:
        archs = "; ".join(f"{member.name} on {', '.join(member.archs)}" for member in members)
        raise PlanError(f"the plans have no architecture in common: {archs}")
    together = [group for member in members for group in member.groups]
    packing = _pack("all plans", together, prices, common, spot)
    if packing.usd_per_month > sum(alone):
        packing = _sum(apart)
    part = packing.usd_per_month / sum(alone)
    shares = (
        PoolShare(member.name, usd * part, usd) for member, usd in zip(members, alone, strict=True)
    )
    return SharedPool(packing, tuple(shares))


def _check(members: Sequence[PoolMember]) -> None:
    names = [member.name for member in members]
    for member in members:
        if names.count(member.name) > 1:
            raise PlanError(f"{member.name} is named {names.count(member.name)} times")
        if member.plan.dense and member.plan.dense.gpus:
            raise PlanError(
                f"{member.name}: its dense tower has a GPU node of its own, which is not shared: "
                "plan it with --dense gateway"
            )
    on_spot = [member.name for member in members if member.spot]
    if on_spot and len(on_spot) < len(members):
        raise PlanError(
            f"{', '.join(on_spot)}: planned on the spot market, the others are not: nodes are "
            "shared by plans of one kind"
        )


def _pack(
    name: str, groups: Sequence[Group], prices: Prices, archs: Sequence[str], spot: bool
) -> Packing:
    """The nodes of some containers.

    Raises:
        PlanError: one fits on no type.
    """
    groups = _merged(groups)
    types = prices.limited(archs, spot)
    if dimensions_of(groups) > 2:
        types = replace(types, disks=True)
    packing = pack_groups(groups, types, EXACT_STATES)
    if packing is None:
        raise PlanError(f"{name}: a container fits on no node type of {', '.join(archs)}")
    return packing


def _merged(groups: Sequence[Group]) -> list[Group]:
    """Groups of equal containers as one."""
    numbers: Counter[Group] = Counter()
    for group in groups:
        numbers[group._replace(number=1)] += group.number
    return [group._replace(number=number) for group, number in numbers.items()]


def _sum(packings: Sequence[Packing]) -> Packing:
    nodes: Counter[InstanceType] = Counter()
    for packing in packings:
        for kind, number in packing.nodes:
            nodes[kind] += number
    return Packing(tuple(sorted(nodes.items(), key=lambda entry: entry[0].name)))


def pool_lines(pool: SharedPool) -> list[str]:
    """What the pool is, what it saves, and each plan's part."""
    nodes = ", ".join(f"{number} × {kind.name}" for kind, number in pool.packing.nodes)
    saved = 1 - pool.usd_per_month / pool.usd_apart
    less = f"{saved:.0%} less than apart" if saved > 0.005 else "no less than apart"
    return [
        f"one pool for {len(pool.shares)} plans: {nodes}: "
        f"${pool.usd_per_month:,.0f} a month, {less}",
        *(
            f"  {share.name}: ${share.usd_per_month:,.0f} of it, ${share.usd_alone:,.0f} alone"
            for share in pool.shares
        ),
    ]
