"""What a plan says of a measured run: its dollars at the replicas that ran, and its disks.

A replica's dollars are its part of the machines that the plan packs its containers onto, scaled by
how many there were on average (`erless/specs/dollars.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from erless.specs.dollars import replica_usd
from erless.specs.plan import Plan
from erless.specs.result import FunctionResult

__all__ = ["priced", "whole_model_usd"]


def priced(functions: Iterable[FunctionResult], plan: Plan) -> tuple[FunctionResult, ...]:
    """The functions with dollars a month, and what reads of disks were planned to take.

    One that the plan does not know stays at 0.
    """
    each_usd = replica_usd(plan)
    disks = {shard.name: shard.disk.latency_ms for shard in plan.shards if shard.disk}
    return tuple(
        function.model_copy(
            update={
                "usd_per_month": function.replicas.mean * each_usd.get(function.name, 0.0),
                "disk_ms": disks.get(function.name),
            }
        )
        for function in functions
    )


def whole_model_usd(plan: Plan) -> float:
    """Dollars a month of one model-wise replica; 0 where the plan did not reckon any."""
    whole = next((policy for policy in plan.policies if policy.policy == "model-wise"), None)
    return whole.usd_per_month / whole.containers if whole and whole.containers else 0.0
