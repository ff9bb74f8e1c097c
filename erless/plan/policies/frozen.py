"""The frozen tier: rows so rarely gathered that their function is mostly asleep.

With n gathers per query a function sees an idle window w with P(idle w) = exp(-λ·n·w). The coldest
rows for which that is at least one half, and n within the share of queries that may meet a cold
start, leave the coldest shard for a function that scales to zero. Its memory and nodes are still
counted as if awake, so a plan never relies on the sleep; what sleeping frees comes on top.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, Role, Slice
from erless.plan.request import PlanRequest, StoredAs
from erless.plan.search.merged_order import MergedOrder

__all__ = ["freeze_last", "idle_cut", "split_frozen"]


def idle_cut(
    demand: Demand, terms: CostTerms, request: PlanRequest, stored: StoredAs
) -> NDArray[np.int64]:
    """The first rank of each table from which on rows idle; its number of rows where none does."""
    gathers = min(math.log(2) / (demand.qps * request.frozen_window_s), request.frozen_error_budget)
    order = MergedOrder.of(demand.tables, terms, *stored)
    cheapest = min(terms.beta_for(table, stored.shards) for table in demand.tables)
    return order.cut(gathers * cheapest)


def freeze_last(layout: Layout) -> Layout:
    """The same layout, its last shard the frozen one."""
    last = replace(layout.shards[-1], name="frozen", role=Role.FROZEN)
    return Layout(layout.demand, layout.terms, layout.gateway, (*layout.shards[:-1], last))


def split_frozen(layout: Layout, request: PlanRequest) -> Layout:
    """`layout` with a last shard `frozen`, or as it is where no shard has rows that idle."""
    demand, terms = layout.demand, layout.terms
    if not layout.shards or any(shard.disk for shard in layout.shards):
        return layout  # a shard on a disk holds its idle rows for next to nothing
    stored = StoredAs(layout.shards[0].precision, layout.gateway.precision)
    cut = idle_cut(demand, terms, request, stored)
    heat = [shard.gathers / shard.rows for shard in layout.shards]
    coldest = heat.index(min(heat))
    idle, busy = [], []
    for part in layout.shards[coldest].slices:
        middle = min(part.stop, max(part.start, int(cut[part.table])))
        busy.append(Slice(part.table, part.start, middle))
        idle.append(Slice(part.table, middle, part.stop))
    if not any(part.stop > part.start for part in idle):
        return layout
    shards = [list(shard.slices) for shard in layout.shards]
    reasons = [shard.why for shard in layout.shards]
    why = f"idle for {request.frozen_window_s:g} s at least half of the time"
    if any(part.stop > part.start for part in busy):
        if len(shards) >= request.max_fan_out:
            return layout
        shards[coldest] = busy
    else:
        shards.pop(coldest)
        reasons.pop(coldest)
    return freeze_last(
        Layout.of(
            demand,
            terms,
            [*shards, idle],
            layout.gateway.slices,
            *stored,
            [*reasons, why],
        )
    )
