"""Rows where they lie, under live heat: the layout that a release comes to, sized and priced.

A plan counts ranks in the order of its own profile. Where heat has moved, that order is no longer
one of falling heat, but cost terms need only how many gathers fall between two cuts: each table's
curve has a breakpoint at each shard's end, in the order of the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.errors import PlanError
from erless.plan.costs.cost import CostTerms
from erless.plan.costs.curves import AccessCurve, TableLoad
from erless.plan.costs.layout import Demand, Layout, PlannedFunction, Role, Slice, on_disk
from erless.plan.planner import Planner
from erless.plan.selection import Candidate
from erless.specs.plan import Plan, Precision, ShardPlan, Tier

__all__ = ["PlacedShard", "Placement", "candidate_of", "layout_of", "placed_shards"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class PlacedShard(NamedTuple):
    """What a shard of a placement is: resident where `remote` is false."""

    tier: Tier
    precision: Precision
    disk: bool = False

    @property
    def remote(self) -> bool:
        """Whether it is a function of its own."""
        return self.tier is not Tier.RESIDENT


@dataclass(frozen=True)
class Placement:
    """Rows and accesses of each table in each shard, resident ones first, then hottest first.

    Args:
        shards: S of them.
        rows: (S, T) rows that a shard answers for.
        shares: (S, T) of the table's accesses.
        spare: (S, T) rows that a shard's files hold besides.
    """

    shards: tuple[PlacedShard, ...]
    rows: Ints
    shares: Floats
    spare: Ints

    def tables(self, tables: Sequence[TableLoad]) -> tuple[TableLoad, ...]:
        """The tables with their rows in the order of the shards."""
        placed = []
        for number, table in enumerate(tables):
            ranks = np.concatenate([[0], np.cumsum(self.rows[:, number])])
            shares = np.concatenate([[0.0], np.cumsum(self.shares[:, number])])
            if shares[-1] > 0:
                shares /= shares[-1]
            kept = np.concatenate([[True], np.diff(ranks) > 0])
            placed.append(replace(table, curve=AccessCurve(ranks[kept], shares[kept])))
        return tuple(placed)

    def slices(self, shard: int) -> list[Slice]:
        """The ranks of a shard in that order."""
        begins = np.cumsum(self.rows, axis=0) - self.rows
        return [
            Slice(table, int(begins[shard, table]), int(begins[shard, table] + rows))
            for table, rows in enumerate(self.rows[shard])
            if rows
        ]


def placed_shards(plan: Plan) -> tuple[PlacedShard, ...]:
    """The shards of a plan, in its order.

    Raises:
        PlanError: resident rows are in several shards, or not in the first.
    """
    resident = [shard.tier is Tier.RESIDENT for shard in plan.shards]
    if any(resident[1:]):
        raise PlanError("only the first shard of a plan may be resident, to be planned anew")
    return tuple(_placed(shard) for shard in plan.shards)


def _placed(shard: ShardPlan) -> PlacedShard:
    return PlacedShard(shard.tier, shard.precision, shard.disk is not None)


def _demand_like(planner: Planner, plan: Plan) -> Demand:
    """The planner's demand with the tower where the plan has it.

    Raises:
        PlanError: the request does not let it be there.
    """
    apart = plan.dense is not None
    for place in planner.places:
        if (place.dense is not None) == apart:
            return place
    where = "a function" if apart else "the gateway"
    raise PlanError(f"the deployed plan has the tower in {where}: ask for --dense accordingly")


def candidate_of(planner: Planner, plan: Plan, placement: Placement) -> Candidate | None:
    """The placement in the containers that cost least, for the SLA; None where no node holds it.

    Raises:
        PlanError: rows lie on a disk and the request has none.
    """
    layouts = [layout_of(planner, plan, placement, terms) for terms in planner.pools.sizes]
    return planner.selection.best("joint", layouts, strict=False)


def layout_of(
    planner: Planner, plan: Plan, placement: Placement, terms: CostTerms | None = None
) -> Layout:
    """The placement as a layout, sized for its load, in containers as `terms` allow.

    Errors as `candidate_of`.
    """
    terms = terms or planner.terms
    demand = _demand_like(planner, plan)
    demand = replace(demand, tables=placement.tables(demand.tables))
    numbers = range(len(placement.shards))
    inside = [number for number in numbers if not placement.shards[number].remote]
    outside = [
        number
        for number in numbers
        if placement.shards[number].remote and placement.rows[number].any()
    ]
    resident = placement.slices(inside[0]) if inside else []
    layout = Layout.of(
        demand,
        terms,
        [placement.slices(number) for number in outside],
        resident,
        resident_precision=placement.shards[inside[0]].precision if inside else Precision.FP32,
        precisions=[placement.shards[number].precision for number in outside],
    )
    functions = tuple(
        _as_placed(planner, terms, demand, function, placement, number)
        for function, number in zip(layout.shards, outside, strict=True)
    )
    return Layout(demand, terms, layout.gateway, functions)


def _as_placed(
    planner: Planner,
    terms: CostTerms,
    demand: Demand,
    function: PlannedFunction,
    placement: Placement,
    number: int,
) -> PlannedFunction:
    """With its disk, its role, and the memory of rows that it holds for nobody."""
    shard = placement.shards[number]
    if shard.disk:
        if planner.disk is None:
            raise PlanError("rows of the deployed plan lie on disks: ask for --disk")
        function = on_disk(demand, terms, function, planner.disk)
    elif placement.spare[number].any():
        widths = [shard.precision.row_bytes(table.spec.dim) for table in demand.tables]
        spare = sum(
            int(rows) * (width + terms.index_bytes_per_row)
            for rows, width in zip(placement.spare[number], widths, strict=True)
        )
        function = replace(function, memory=function.memory + spare)
    return replace(function, role=Role.FROZEN) if shard.tier is Tier.FROZEN else function
