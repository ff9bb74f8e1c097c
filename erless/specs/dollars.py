"""Dollars a month, reckoned once: for a plan's table and plot, simulations, load tests, reports.

machines    = Σ nodes × dollars an hour × 730
a function  = its part of the machines, half by its vCPU and half by its memory
what ran    = Σ replicas, on average × dollars of one replica
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from erless.specs.plan import Plan, Tier

__all__ = ["month_usd", "part_of_machines", "plan_usd", "replica_usd"]

HOURS_PER_MONTH = 730.0

Number = TypeVar("Number", float, NDArray[np.float64])


def month_usd(usd_per_hour: float, count: float = 1.0) -> float:
    """What `count` machines cost in a month.

    >>> month_usd(0.5, 2)
    730.0
    """
    return usd_per_hour * count * HOURS_PER_MONTH


def part_of_machines(vcpu_share: Number, memory_share: Number) -> Number:
    """What share of the machines' price a function bears, of its shares of vCPU and memory.

    >>> part_of_machines(0.5, 0.25)
    0.375
    """
    return (vcpu_share + memory_share) / 2


def plan_usd(plan: Plan) -> float:
    """Dollars a month of the plan's nodes; 0 where it was made without any."""
    return sum(month_usd(group.usd_per_hour, group.count) for group in plan.nodes)


def replica_usd(plan: Plan) -> dict[str, float]:
    """Dollars a month of one replica of each function that the plan priced, by its name."""
    prices = {"gateway": plan.gateway.usd_per_month / plan.gateway.replicas}
    for shard in plan.shards:
        if shard.tier is not Tier.RESIDENT:
            prices[shard.name] = shard.usd_per_month / max(1, shard.replicas)
    if plan.dense is not None:
        prices["dense"] = plan.dense.usd_per_month / max(1, plan.dense.replicas)
    return prices
