"""Of many layouts the one to take: on whole nodes, within the constraints, of least cost."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from erless.errors import InfeasibleError
from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Layout
from erless.plan.nodes.constraints import no_node, violations
from erless.plan.nodes.exact_packing import states
from erless.plan.nodes.groups import groups_of
from erless.plan.nodes.packing import Packing, cheapest_possible, pack
from erless.plan.nodes.prices import Prices
from erless.plan.policies.borders import filled, other_borders
from erless.plan.policies.container_sizes import other_sizes
from erless.plan.policies.joint import joint_memory
from erless.plan.policies.proposals import Proposal, every_layout
from erless.plan.policies.tiers import with_tiers
from erless.plan.request import PlanRequest, Policy

__all__ = ["Candidate", "Selection"]

NEAR = 0.02  # of the least memory: what is filled anew
FILLED = 8  # layouts at most
REPACKED = 6  # layouts of which the nodes are chosen exactly
RESIZED = 3  # of which functions' containers are tried in other sizes
MOVES = 200  # of borders that are tried, of one layout
MOVED = 4  # of these layouts, of which containers are tried in other sizes
ROUNDING_WASTE = 1.01  # dollars over what vCPU and memory cost, below which nothing is to be gained
MOST_STATES = 1500  # of containers left over, when nodes are chosen exactly
TIMELY_VCPU = 0.95  # that a container has at least where the SLA needs it: two on two cores
DISK_WAITS = (1.0, 0.8, 0.5)  # of the time that reads may take, where the SLA needs it
HEADROOM = (1.0, 0.75, 0.5, 0.3)  # of the planned utilisation, where the SLA needs it


@dataclass(frozen=True)
class Candidate:
    """A layout and the nodes that hold it."""

    policy: Policy
    layout: Layout
    packing: Packing


class _Packed(NamedTuple):
    """A layout on nodes; of several the one of the least `key` is best."""

    key: tuple[float, ...]
    legal: bool
    dollars: float
    floor: float
    candidate: Candidate


@dataclass(frozen=True)
class Selection:
    """What layouts are judged by: the request, node prices, and the most bytes of one shard."""

    request: PlanRequest
    prices: Prices
    shard_bytes: float

    def best(
        self, policy: Policy, pool: Sequence[Layout | Proposal], strict: bool, free: bool = False
    ) -> Candidate | None:
        """The cheapest layout that meets the constraints; for a baseline, else the cheapest.

        Where the shape is `free`, the borders between functions of what is nearly the cheapest are
        moved too.

        None where the pool has no layout, or, for a baseline, none that fits on nodes.

        Raises:
            InfeasibleError: `strict`, and no layout fits on nodes or meets the constraints.
        """
        by_memory = self.request.aim == "memory"
        choose = self._by_memory if by_memory else self._by_dollars
        packed = choose(policy, pool, free)
        if not packed:
            sized = [self._sized(policy, layout) for layout in every_layout(pool)]
            if strict and sized:
                raise no_node(sized, self.prices)
            return None
        best = min(packed, key=lambda entry: entry.key)
        if not best.legal and strict:
            layouts = [entry.candidate.layout for entry in packed]
            near = min(layouts, key=lambda layout: (len(self._violations(layout)), layout.p95_s))
            lines = tuple(self._violations(near))
            raise InfeasibleError(f"no {policy} plan meets the constraints", lines)
        return best.candidate

    def _rising(
        self, policy: Policy, pool: Sequence[Layout | Proposal]
    ) -> Iterator[tuple[float, Layout]]:
        """The layouts, sized, in the order of what each costs at least; made when it is its turn.

        That is its memory, or a price that no packing of it is below.
        """
        number = itertools.count()
        queue: list[tuple[float, int, Layout | Proposal]] = []

        def add(entry: Layout | Proposal) -> None:
            if isinstance(entry, Proposal):
                floor = entry.floor
            else:
                entry = self._sized(policy, entry)
                by_memory = self.request.aim == "memory"
                floor = entry.memory if by_memory else cheapest_possible(entry, self.prices)
            heapq.heappush(queue, (floor, next(number), entry))

        for entry in pool:
            add(entry)
        while queue:
            floor, _, entry = heapq.heappop(queue)
            if isinstance(entry, Layout):
                yield floor, entry
                continue
            for made in entry.make():
                add(made)

    def _by_memory(
        self, policy: Policy, pool: Sequence[Layout | Proposal], free: bool
    ) -> list[_Packed]:
        """The layouts on nodes, least memory first, up to the first that is legal."""
        layouts: list[Layout] = []
        legal: list[Layout] = []
        waiting = self._rising(policy, pool)
        for memory, layout in waiting:
            if legal and memory > legal[0].memory * (1 + (NEAR if free else 0.0)):
                waiting = itertools.chain([(memory, layout)], waiting)
                break
            layouts.append(layout)
            if not self._violations(layout):
                legal.append(layout)
        if free:
            anew = [self._sized(policy, filled(layout)) for layout in legal[:FILLED]]
            legal += [layout for layout in anew if not self._violations(layout)]
        if policy == "joint" and legal:
            layouts = [joint_memory(legal), *layouts]
        packed = []
        rest = (layout for _, layout in waiting)
        for rank, layout in enumerate(itertools.chain(layouts, rest)):
            entry = self._packed(policy, layout, cheapest_possible(layout, self.prices), rank)
            if entry is not None:
                packed.append(entry)
                if entry.legal:
                    break
        return packed

    def _by_dollars(
        self, policy: Policy, pool: Sequence[Layout | Proposal], free: bool
    ) -> list[_Packed]:
        """The layouts on nodes that may be the cheapest legal one.

        No packing is cheaper than the layout's floor, so floors are tried in rising order until
        they exceed the dollars of a legal layout.
        """
        packed = []
        least = math.inf
        for floor, layout in self._rising(policy, pool):
            if floor > least + 1e-6:
                break
            entry = self._packed(policy, layout, floor)
            if entry is not None:
                packed.append(entry)
                least = min(least, entry.dollars) if entry.legal else least
        nearest = sorted(packed, key=lambda entry: entry.key)[:REPACKED]
        packed += [self._repacked(entry) for entry in nearest]
        if policy != "joint":
            return packed
        nearest = sorted(packed, key=lambda entry: entry.key)[:RESIZED]
        packed += [self._resized(policy, entry) for entry in nearest]
        if free and packed:
            best = min(packed, key=lambda entry: entry.key)
            packed.append(self._moved(policy, best))
        return packed

    def _moved(self, policy: Policy, entry: _Packed) -> _Packed:
        """The layout with single borders between functions moved, while that is cheaper.

        Of all such layouts the cheapest, and those that could be cheapest on other nodes, are tried
        with containers of other sizes too.
        """
        if self.request.tier_precision or self.request.tier_replicas:
            return entry
        while True:
            near = []
            for layout in itertools.islice(other_borders(entry.candidate.layout), MOVES):
                sized = self._sized(policy, layout)
                floor = cheapest_possible(sized, self.prices)
                found = self._packed(policy, sized, floor) if floor < entry.dollars else None
                if found is not None and found.legal:
                    near.append(found)
            cheapest = sorted(near, key=lambda each: each.key)[:MOVED]
            promising = sorted(near, key=lambda each: each.floor)[:MOVED]
            tried = {id(each): each for each in (*cheapest, *promising)}.values()
            better = [self._resized(policy, self._repacked(each)) for each in tried]
            best = min(better, key=lambda each: each.key, default=entry)
            if _dollars_first(best) >= _dollars_first(entry):
                return entry
            entry = best

    @property
    def _container_sizes(self) -> list[float]:
        """vCPU of each node type, at most what a container may have."""
        most = self.request.max_vcpu or math.inf
        return [
            min(size, most) for size in sorted({kind.usable_vcpu for kind in self.prices.types})
        ]

    def _resized(self, policy: Policy, entry: _Packed) -> _Packed:
        """The layout with single functions' containers in other sizes, while that is cheaper.

        Where tiers ask for precisions or replicas, the sizes are what the tiers were found with.
        """
        if self.request.tier_precision or self.request.tier_replicas:
            return entry
        while entry.dollars > ROUNDING_WASTE * cheapest_possible(
            entry.candidate.layout, self.prices
        ):
            better = entry
            for layout in other_sizes(entry.candidate.layout, self._container_sizes):
                floor = cheapest_possible(layout, self.prices)
                if floor < better.dollars:
                    found = self._packed(policy, layout, floor)
                    better = better if found is None else min(better, found, key=_dollars_first)
            if better.dollars >= entry.dollars:
                break
            entry = better
        return entry

    def _repacked(self, entry: _Packed) -> _Packed:
        """The layout on nodes chosen exactly, where that takes no longer than all others took."""
        layout = entry.candidate.layout
        if states(groups_of(layout)) > MOST_STATES:
            return entry
        packing = pack(layout, self.prices, MOST_STATES)
        if packing is None:
            return entry
        dollars = round(packing.usd_per_month, 6)
        legal, rank, _, *taste = entry.key
        key = (legal, rank, dollars, *taste)
        candidate = replace(entry.candidate, packing=packing)
        return _Packed(key, entry.legal, dollars, entry.floor, candidate)

    def _sized(self, policy: Policy, layout: Layout) -> Layout:
        """The layout in time for the SLA, with the precision and replicas that its tiers need."""
        return with_tiers(self._in_time(layout), policy, self.request)

    def _packed(
        self, policy: Policy, layout: Layout, floor: float, rank: float = 0.0
    ) -> _Packed | None:
        """The layout on nodes, with what it is judged by; None where no node holds it."""
        packing = pack(layout, self.prices)
        if packing is None:
            return None
        legal, dollars = not self._violations(layout), round(packing.usd_per_month, 6)
        taste = (_loss(layout), len(layout.shards), round(floor, 2), layout.memory)
        key = (not legal, rank, dollars, *taste)
        return _Packed(key, legal, dollars, floor, Candidate(policy, layout, packing))

    def _in_time(self, layout: Layout) -> Layout:
        """The layout, with as much more vCPU per container as its p95 needs to meet the SLA.

        Where rows lie on disks, more of the disks' reads per second are reserved first.
        """
        sla = self.request.sla_p95_ms
        if sla is None or layout.terms.fixed_vcpu or layout.p95_s * 1e3 <= sla:
            return layout
        disks = any(shard.disk for shard in layout.shards)
        waits = DISK_WAITS if disks else DISK_WAITS[:1]
        sized = layout
        for share in (None, *HEADROOM):
            terms = layout.terms if share is None else _roomier(layout.terms, share)
            for wait in waits:
                sized = layout.resized(terms, disk_wait=wait)
                if sized.p95_s * 1e3 <= sla:
                    return sized
        return sized

    def _violations(self, layout: Layout) -> list[str]:
        return violations(layout, self.request, self.shard_bytes)


def _roomier(terms: CostTerms, share: float) -> CostTerms:
    """Terms that plan for less of each container's vCPU, and give each one core nearly whole."""
    least = min(TIMELY_VCPU, terms.max_vcpu)
    return replace(terms, utilisation=terms.utilisation * share, least_vcpu=least)


def _dollars_first(entry: _Packed) -> tuple[bool, float]:
    return not entry.legal, entry.dollars


def _loss(layout: Layout) -> int:
    """Minus the bytes of the most compact rows: at equal dollars, precision is not given up."""
    kinds = [function.precision for function in layout.functions if function.rows]
    return max((-kind.row_bytes(1024) for kind in kinds), default=-(1 << 30))
