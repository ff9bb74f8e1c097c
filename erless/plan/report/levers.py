"""Which freedom would make this very plan cheaper: the same request with one more of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from erless.errors import PlanError
from erless.plan.nodes.prices import Prices
from erless.plan.report.variations import AskedPlan
from erless.plan.request import PlanRequest
from erless.specs.plan import Precision
from erless.specs.planning import ARCHITECTURES

__all__ = ["Lever", "lever_lines", "levers"]

HELPS = 0.01  # cheaper by more than 1 %


@dataclass(frozen=True)
class Lever:
    """Dollars a month with one more freedom, in words; None where no plan has it."""

    freedom: str
    usd_per_month: float | None


def levers(asked: AskedPlan) -> list[Lever]:
    """Each freedom that the request does not have yet, tried by itself, coarsely."""
    tried = []
    for freedom, change in _freedoms(asked.request, asked.prices):
        relaxed = asked.request.model_copy(update={"policy": "joint", "qps": asked.qps, **change})
        try:
            best = asked.again(relaxed).best
            dollars: float | None = best["joint"].packing.usd_per_month
        except PlanError:
            dollars = None
        tried.append(Lever(freedom, dollars))
    return tried


def _freedoms(request: PlanRequest, prices: Prices) -> list[tuple[str, dict[str, Any]]]:
    freedoms: list[tuple[str, dict[str, Any]]] = []
    if Precision.INT8 not in request.precisions:
        allowed = (*request.precisions, Precision.INT8)
        freedoms.append(
            ("int8 rows (--precision int8, or auto with --queries)", {"allowed": allowed})
        )
    if set(request.arch) != set(ARCHITECTURES):
        arms = "arm64 nodes (--arch amd64 --arch arm64, with images for both)"
        freedoms.append((arms, {"arch": ARCHITECTURES}))
    if not request.spot and any(kind.spot_usd_per_hour for kind in prices.every):
        freedoms.append(("spot nodes (--spot)", {"spot": True}))
    has_disks = any(kind.disk_bytes for kind in prices.cpu_types)
    if has_disks and not (request.disk or request.shaped or request.equal_containers):
        freedoms.append(("rows on nodes' local disks (--disk)", {"disk": True}))
    if request.shaped:
        none = dict.fromkeys(("shards", "resident_share", "max_resident_bytes", "frozen_share"))
        freedoms.append(("no demanded shape", none))
    return freedoms


def lever_lines(tried: Sequence[Lever], usd_per_month: float) -> list[str]:
    """One sentence: the freedoms that help, best first, or that none does."""
    helping = [
        (lever.usd_per_month, lever.freedom)
        for lever in tried
        if lever.usd_per_month is not None and lever.usd_per_month < usd_per_month * (1 - HELPS)
    ]
    if not tried:
        return []
    if not helping:
        names = ", ".join(lever.freedom for lever in tried)
        return [f"no lever makes this model cheaper: tried {names}"]
    texts = [
        f"{freedom}: ${dollars:,.0f} a month ({1 - dollars / usd_per_month:.0%} less)"
        for dollars, freedom in sorted(helping)
    ]
    return [f"cheaper with {'; '.join(texts)}"]
