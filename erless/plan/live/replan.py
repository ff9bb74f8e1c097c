"""A plan for the heat of now that moves few rows.

The rows that are hot now become resident; the coldest m of the deployed shards are kept as they
are, with a copy of what has left them, and only what they do not hold is packed anew. m = all of
them moves least; m = 0 is a plan of its own. Each m is sized, priced and compared with that plan:
of those that cost at most `dollars` more and whose gateway answers at most `resident` less of the
gathers, the one that moves fewest bytes is taken; doing nothing is one of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from erless.errors import PlanError
from erless.plan.costs.curves import TableLoad
from erless.plan.live.placed import PlacedShard, Placement, candidate_of, placed_shards
from erless.plan.planner import Outcome, Planner
from erless.plan.report.document import plan_document
from erless.plan.selection import Candidate
from erless.specs.artifact import FileEntry
from erless.specs.counts import open_counts
from erless.specs.plan import KeptShard, Plan, Precision, ShardPlan, Tier
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.specs.release import ReleaseManifest
from erless.storage.atomic import staged_directory
from erless.storage.tensors import write_tensors

__all__ = ["Choice", "Replan", "Tolerance", "replan", "row_heat", "write_replan"]

Floats = NDArray[np.float64]
Routes = NDArray[np.uint8]


@dataclass(frozen=True)
class Tolerance:
    """What may be given up for bytes that stay where they are.

    Args:
        dollars: share of the price.
        resident: share of all gathers.
    """

    dollars: float = 0.02
    resident: float = 0.01


class Holdings(Protocol):
    """Which shard answers for each row, and which rows each holds (`HeldRows`)."""

    @property
    def routes(self) -> Mapping[str, Routes]:
        """Table → (rows,) the shard that answers for each row."""

    def of(self, number: int, table: str) -> NDArray[np.bool_]:
        """(rows,) whether shard `number` holds each row of `table`."""


@dataclass(frozen=True)
class Choice:
    """One way to serve the heat of now.

    Args:
        kept: deployed shards that stay as they are; -1: a plan of its own; None: nothing changes.
        moved_bytes: of rows in shards that are packed anew, resident ones too, one copy each.
        resident: share of the gathers that the gateway answers.
    """

    kept: int | None
    moved_bytes: int
    resident: float
    candidate: Candidate
    placement: Placement | None = None
    routes: tuple[Routes, ...] = ()

    @property
    def usd_per_month(self) -> float:
        """Price of the nodes."""
        return self.candidate.packing.usd_per_month

    def document(self) -> dict[str, Any]:
        """As JSON types."""
        words = {None: "nothing changes", -1: "a plan of its own", 1: "1 shard is kept"}
        return {
            "what": words.get(self.kept, f"{self.kept} shards are kept"),
            "moved_bytes": self.moved_bytes,
            "resident_share": self.resident,
            "usd_per_month": round(self.usd_per_month, 2),
            "vcpu": round(self.candidate.layout.vcpu, 4),
        }


@dataclass(frozen=True)
class Replan:
    """All choices, and the one to take. `before` is None where no node holds what is deployed."""

    outcome: Outcome
    before: Choice | None
    fresh: Choice
    taken: Choice
    choices: tuple[Choice, ...]

    @property
    def changes(self) -> bool:
        """Whether there is anything to gain."""
        return self.taken.kept is not None


def replan(
    planner: Planner,
    plan: Plan,
    held: Holdings,
    heat: Sequence[Floats],
    tolerance: Tolerance = Tolerance(),
) -> Replan:
    """Find the plan to change to.

    Args:
        planner: of the model under live heat.
        plan: that is deployed.
        held: rows of the release that was packed by it.
        heat: per table (rows,) the share of its accesses that each row takes (`row_heat`).
        tolerance: what may be given up.

    Raises:
        PlanError: the plan or the request is not of the joint policy, or has no remote shard.
        InfeasibleError: no plan meets the constraints under this heat.
    """
    if plan.policy != "joint" or planner.request.policy != "joint":
        raise PlanError(f"only plans of the joint policy are planned anew, not {plan.policy}")
    shards = placed_shards(plan)
    if not any(shard.remote for shard in shards):
        raise PlanError("the gateway holds every row already: no heat calls for another plan")
    rows = _Rows(planner, plan, held, heat)
    outcome = planner.outcome()
    best = outcome.best["joint"]
    gateway = best.layout.gateway
    fresh = Choice(-1, _row_bytes(best), _resident_of(best), best)
    now = rows.placement(shards, rows.routes, range(len(shards)))
    before = _choice(planner, plan, now, rows.routes)
    top = rows.hottest(gateway.row_bytes, gateway.precision) if gateway.slices else None
    choices = [choice for choice in (before, fresh) if choice is not None]
    if top is not None and best.layout.shards:
        for kept in range(1, rows.remote + 1):
            choices += filter(None, [rows.choice(kept, top, gateway.precision)])
    enough = [
        choice
        for choice in choices
        if choice.usd_per_month <= fresh.usd_per_month * (1 + tolerance.dollars) + 0.01
        and choice.resident >= fresh.resident - tolerance.resident
    ]
    taken = min(enough, key=lambda choice: (choice.moved_bytes, choice.usd_per_month))
    return Replan(outcome, before, fresh, taken, tuple(choices))


def _choice(
    planner: Planner,
    plan: Plan,
    placement: Placement,
    routes: Sequence[Routes],
    kept: int | None = None,
    moved_bytes: int = 0,
) -> Choice | None:
    candidate = candidate_of(planner, plan, placement)
    if candidate is None:
        return None
    return Choice(kept, moved_bytes, _resident_of(candidate), candidate, placement, tuple(routes))


def _resident_of(candidate: Candidate) -> float:
    gateway, shards = candidate.layout.gateway, candidate.layout.shards
    whole = gateway.gathers + sum(shard.gathers for shard in shards)
    return gateway.gathers / whole if whole else 0.0


def _row_bytes(candidate: Candidate) -> int:
    layout = candidate.layout
    return round(layout.gateway.row_bytes + sum(shard.row_bytes for shard in layout.shards))


class _Rows:
    """The deployed rows, and where they go."""

    def __init__(
        self, planner: Planner, plan: Plan, held: Holdings, heat: Sequence[Floats]
    ) -> None:
        self._planner, self._plan, self._held = planner, plan, held
        self._shards = placed_shards(plan)
        self._tables: Sequence[TableLoad] = planner.demand.tables
        self._heat = heat
        self.routes = [held.routes[table.spec.name] for table in self._tables]
        self._first = 0 if self._shards[0].remote else 1
        self.remote = len(self._shards) - self._first

    def hottest(self, size_bytes: float, precision: Precision) -> list[NDArray[np.bool_]]:
        """Per table which rows take the most gathers a byte, up to `size_bytes`."""
        density, widths, tables = [], [], []
        for number, (table, heat) in enumerate(zip(self._tables, self._heat, strict=True)):
            width = precision.row_bytes(table.spec.dim)
            density.append((heat * (table.gathers / width)).astype(np.float32))
            widths.append(np.full(len(heat), width, np.float64))
            tables.append(np.full(len(heat), number, np.int32))
        whole, wide = np.concatenate(density), np.concatenate(widths)
        order = np.argsort(-whole, kind="stable")
        most = int(np.searchsorted(np.cumsum(wide[order]), size_bytes * (1 + 1e-9), side="right"))
        chosen = np.zeros(len(whole), np.bool_)
        chosen[order[:most]] = True
        ends = np.cumsum([len(heat) for heat in self._heat])
        return np.split(chosen, ends[:-1])

    def choice(
        self, kept: int, top: Sequence[NDArray[np.bool_]], precision: Precision
    ) -> Choice | None:
        """The coldest `kept` shards stay; the rest of the rows goes to those packed anew."""
        shards = list(self._shards)
        if self._first:
            shards[0] = shards[0]._replace(precision=precision)
        else:
            shards.insert(0, PlacedShard(Tier.RESIDENT, precision))
        last = len(shards)
        stay = range(last - kept, last)  # numbers in the new placement
        shift = 1 - self._first
        routes = []
        for number, (table, chosen) in enumerate(zip(self._tables, top, strict=True)):
            routes.append(self._route(number, table.spec.name, chosen, stay, shift))
        placement = self.placement(shards, routes, stay, shift)
        moved = sum(
            int(placement.rows[shard, number]) * shards[shard].precision.row_bytes(table.spec.dim)
            for shard in range(last)
            if shard not in stay
            for number, table in enumerate(self._tables)
        )
        return _choice(self._planner, self._plan, placement, routes, kept, moved)

    def _route(
        self, number: int, table: str, chosen: NDArray[np.bool_], stay: range, shift: int
    ) -> Routes:
        """The new shard of each row of a table."""
        old = self.routes[number].astype(np.int64) + shift
        route = np.full(len(old), -1, np.int64)
        for shard in reversed(stay):
            route[self._held.of(shard - shift, table)] = shard
        staying = (old >= stay.start) & (route >= 0)
        route[staying] = old[staying]
        route[chosen] = 0
        left = np.flatnonzero(route < 0)
        if stay.start == 1:  # no shard is packed anew: the gateway keeps what nobody else holds
            route[left] = 0
            return route.astype(np.uint8)
        sizes = np.array([(old == shard).sum() for shard in range(1, stay.start)], np.float64)
        hottest = left[np.argsort(-self._heat[number][left], kind="stable")]
        sizes = np.maximum(sizes, 1e-9)
        cuts = np.rint(np.cumsum(sizes) / sizes.sum() * len(left)).astype(np.int64)
        for shard, part in enumerate(np.split(hottest, cuts[:-1]), 1):
            route[part] = shard
        return route.astype(np.uint8)

    def placement(
        self,
        shards: Sequence[PlacedShard],
        routes: Sequence[Routes],
        stay: range,
        shift: int = 0,
    ) -> Placement:
        """Rows and accesses by shard; what shards that stay hold besides."""
        rows = np.zeros((len(shards), len(self._tables)), np.int64)
        shares = np.zeros(rows.shape)
        spare = np.zeros_like(rows)
        for number, (route, heat) in enumerate(zip(routes, self._heat, strict=True)):
            rows[:, number] = np.bincount(route, minlength=len(shards))
            shares[:, number] = np.bincount(route, heat, minlength=len(shards))
            name = self._tables[number].spec.name
            for shard in stay:
                if shards[shard].remote:
                    held = self._held.of(shard - shift, name).sum()
                    spare[shard, number] = int(held) - rows[shard, number]
        return Placement(tuple(shards), rows, shares, spare)


def row_heat(folder: Path, profile: Profile, tables: Sequence[TableLoad]) -> list[Floats]:
    """Per table (rows,) the share of its accesses that each row takes, as its curve says."""
    accesses = {access.table: access for access in profile.tables}
    shares = []
    for table in tables:
        heat = np.zeros(table.rows)
        access = accesses.get(table.spec.name)
        counts = open_counts(folder, access) if access else None
        listed = counts.read("ids") if counts else np.empty(0, np.int64)
        steps = np.diff(table.curve.cdf(np.arange(len(listed) + 1, dtype=np.float64)))
        heat[listed] = steps
        left = np.ones(table.rows, np.bool_)
        left[listed] = False
        if left.any():
            heat[left] = max(0.0, 1.0 - float(steps.sum())) / int(left.sum())
        shares.append(heat if table.gathers else np.zeros(table.rows))
    return shares


def write_replan(
    found: Replan,
    release: ReleaseManifest,
    live: tuple[Profile, Path],
    heat: Sequence[Floats],
    folder: Path,
) -> Plan:
    """Write `plan.json` and the profile that it counts its ranks in, for `erless pack`.

    Args:
        found: what `replan` found, which changes something.
        release: that is deployed.
        live: the profile of live heat, and its folder.
        heat: as `replan` was given.
        folder: is made, or replaced.
    """
    taken, profile = found.taken, live[0]
    with staged_directory(folder, marker="plan.json") as stage:
        if taken.placement is None:
            shutil.copytree(live[1], stage / "profile")
        else:
            profile = _placed_profile(taken, found, profile, heat, stage / "profile")
        demand = taken.candidate.layout.demand
        outcome = replace(found.outcome, demand=demand, best={"joint": taken.candidate}, free=None)
        plan = plan_document(outcome, release.bundle_digest, profile.digest, _notes(found, release))
        plan = plan.amended(shards=_with_kept(plan, taken, release))
        plan.save(stage / "plan.json")
    return plan


def _with_kept(plan: Plan, taken: Choice, release: ReleaseManifest) -> tuple[ShardPlan, ...]:
    """The plan's shards; those that stay as they are with the digest that they have."""
    if taken.placement is None or taken.kept is None:
        return plan.shards
    placed = taken.placement
    deployed = len(release.shards)
    shift = len(placed.shards) - deployed
    numbers = [number for number in range(len(placed.shards)) if placed.rows[number].any()]
    shards = []
    for number, shard in zip(numbers, plan.shards, strict=True):
        if number >= len(placed.shards) - taken.kept:
            kept = KeptShard(release=release.digest, digest=release.shards[number - shift].digest)
            shard = shard.model_copy(update={"kept": kept})  # noqa: PLW2901
        shards.append(shard)
    return tuple(shards)


def _notes(found: Replan, release: ReleaseManifest) -> list[str]:
    taken, fresh = found.taken, found.fresh
    if taken.placement is None:
        return [f"planned anew for live heat of release {release.digest[:12]}; all rows move"]
    return [
        f"planned anew for live heat of release {release.digest[:12]}: {taken.kept} of its shards "
        f"are kept, {taken.moved_bytes:,} bytes of rows are packed anew; a plan of its own would "
        f"move {fresh.moved_bytes:,}"
    ]


def _placed_profile(
    taken: Choice, found: Replan, live: Profile, heat: Sequence[Floats], folder: Path
) -> Profile:
    """The rows in the order of the placement; the last shard's follow by id, unlisted."""
    (folder / "counts").mkdir(parents=True)
    accesses = {access.table: access for access in live.tables}
    tables = []
    for table, route, shares in zip(found.outcome.demand.tables, taken.routes, heat, strict=True):
        access = accesses[table.spec.name]
        order = np.argsort(route, kind="stable")
        listed = order[: int(np.searchsorted(route[order], route.max()))]
        entry, counts = None, np.empty(0, np.int64)
        if len(listed):
            counts = np.maximum(1, np.rint(shares[listed] * access.accesses)).astype(np.int64)
            path = f"counts/{table.spec.name}.safetensors"
            digest = write_tensors(folder / path, {"ids": listed, "counts": counts})
            entry = FileEntry(path=path, size_bytes=digest.size_bytes, sha256=digest.sha256)
        tables.append(
            TableAccess(
                table=table.spec.name,
                rows=table.rows,
                samples=access.samples,
                accesses=int(counts.sum()),
                touched=len(listed),
                locality=access.locality,
                counts=entry,
            )
        )
    profile = Profile.create(
        model_digest=live.model_digest,
        sources=(*live.sources, f"ranked by where rows lie, from profile {live.digest[:12]}"),
        tables=tuple(tables),
        curves=live.curves,
        towers=live.towers,
        disks=live.disks,
        placed=True,
    )
    profile.save(folder / MANIFEST)
    return profile
