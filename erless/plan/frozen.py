"""The frozen tier: rows so rarely gathered that their function is mostly asleep.

With n gathers per query a function sees an idle window w with P(idle w) = exp(-λ·n·w). The coldest
rows for which that is at least one half, and n within the share of queries that may meet a cold
start, leave the coldest shard for a function that scales to zero. Its memory and nodes are still
counted as if awake, so a plan never relies on the sleep; what sleeping frees comes on top.
"""

from __future__ import annotations

import math
from dataclasses import replace

from erless.plan.layout import Layout, Slice
from erless.plan.order import MergedOrder
from erless.plan.request import PlanRequest

__all__ = ["split_frozen"]


def split_frozen(layout: Layout, request: PlanRequest) -> Layout:
    """`layout` with a last shard `frozen`, or as it is where no shard has rows that idle."""
    demand, terms = layout.demand, layout.terms
    if not layout.shards or len(layout.shards) >= request.max_fan_out:
        return layout
    gathers = min(math.log(2) / (demand.qps * request.frozen_window_s),
                  request.frozen_error_budget)  # fmt: skip
    order = MergedOrder.of(demand.tables, terms, request.precision, request.resident_precision)
    dearest = min(terms.beta_of(table.spec.dim, request.precision) for table in demand.tables)
    cut = order.cut(gathers * dearest)
    heat = [each.gathers / each.rows for each in layout.shards]
    coldest = heat.index(min(heat))
    idle, kept = [], []
    for part in layout.shards[coldest].slices:
        middle = min(part.stop, max(part.start, int(cut[part.table])))
        kept.append(Slice(part.table, part.start, middle))
        idle.append(Slice(part.table, middle, part.stop))
    if not any(part.stop > part.start for part in idle) or not any(
        part.stop > part.start for part in kept
    ):
        return layout
    shards = [list(each.slices) for each in layout.shards]
    reasons = [each.why for each in layout.shards]
    shards[coldest] = kept
    why = f"idle for {request.frozen_window_s:g} s at least half of the time"
    split = Layout.of(demand, terms, [*shards, idle], layout.gateway.slices, request.precision,
                      request.resident_precision, [*reasons, why])  # fmt: skip
    last = replace(split.shards[-1], name="frozen")
    return Layout(demand, terms, split.gateway, (*split.shards[:-1], last))
