"""From which traffic and size on sharding pays: the same plan at other scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from erless.errors import InfeasibleError
from erless.plan.costs.curves import AccessCurve, TableLoad
from erless.plan.planner import Outcome
from erless.plan.report.tables import PAYS
from erless.plan.report.variations import AskedPlan
from erless.plan.request import PlanRequest, Policy

__all__ = ["Point", "break_even", "lines"]

TRAFFIC = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)
SIZES = (0.25, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Point:
    """Dollars a month at `factor` times the traffic, or the rows; None where nothing fits."""

    kind: str
    factor: float
    model_wise: float | None
    joint: float | None

    @property
    def pays(self) -> bool:
        """Whether sharding is cheaper by more than 1 %."""
        if self.joint is None:
            return False
        return self.model_wise is None or self.joint < self.model_wise * (1 - PAYS)


def break_even(asked: AskedPlan, outcome: Outcome) -> list[Point]:
    """Model-wise and joint dollars over traffic, and over table size, around this request.

    No shape is demanded of joint: the question is whether sharding pays. At 1× stands what
    `outcome`, the request's own, came to.
    """
    here = _dollars_here(outcome)
    free = dict.fromkeys(("shards", "resident_share", "max_resident_bytes", "frozen_share"))
    base = asked.request.model_copy(
        update={"policy": "joint", "objective": "dollars", "qps": asked.qps, **free}
    )
    points = []
    for factor in TRAFFIC:
        scaled = base.model_copy(update={"qps": asked.qps * factor})
        known = here if factor == 1 else {}
        points.append(_point("traffic", factor, asked, scaled, asked.tables, known))
    for factor in SIZES:
        grown = [_grow(table, factor) for table in asked.tables]
        points.append(_point("rows", factor, asked, base, grown, here if factor == 1 else {}))
    return points


def _dollars_here(outcome: Outcome) -> dict[Policy, float]:
    """Dollars of what was planned already and is what the points at 1× ask for."""
    if outcome.request.aim != "dollars":
        return {}
    found = dict(outcome.best)
    if outcome.free:
        found["joint"] = outcome.free
    return {policy: candidate.packing.usd_per_month for policy, candidate in found.items()}


def _grow(table: TableLoad, factor: float) -> TableLoad:
    ranks = np.unique(np.rint(table.curve.ranks * factor).astype(np.int64))
    ranks[-1] = max(1, round(table.rows * factor))
    share = np.interp(ranks / factor, table.curve.ranks, table.curve.share)
    curve = AccessCurve(ranks, share)
    spec = table.spec.model_copy(update={"rows": int(ranks[-1])})
    return replace(table, spec=spec, curve=curve)


def _point(
    kind: str,
    factor: float,
    asked: AskedPlan,
    request: PlanRequest,
    tables: Sequence[TableLoad],
    known: Mapping[Policy, float],
) -> Point:
    dollars = dict(known)
    if not {"model-wise", "joint"} <= set(known):
        try:
            best = asked.again(request, ["model-wise"], tables).best
        except InfeasibleError:
            return Point(kind, factor, None, None)
        dollars = {policy: each.packing.usd_per_month for policy, each in best.items()} | dollars
    return Point(kind, factor, dollars.get("model-wise"), dollars.get("joint"))


def lines(points: Sequence[Point]) -> list[str]:
    """One sentence per kind: where sharding pays, among the scales tried."""
    sentences = []
    for kind in ("traffic", "rows"):
        tried = [point for point in points if point.kind == kind]
        pays = [f"{point.factor:g}×" for point in tried if point.pays]
        where = f"pays at {', '.join(pays)}" if pays else "pays at none"
        sentences.append(
            f"over {kind} ({tried[0].factor:g}× … {tried[-1].factor:g}× of this): sharding "
            f"{where} of the {len(tried)} scales tried"
        )
    return sentences
