"""A plan as it was asked for, to be asked for again a little otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erless.plan.costs.curves import TableLoad
from erless.plan.costs.measured import MeasuredSpeed
from erless.plan.nodes.prices import Prices
from erless.plan.planner import Outcome, Planner
from erless.plan.request import PlanRequest, Policy
from erless.specs.model import ModelSpec

__all__ = ["AskedPlan"]


@dataclass(frozen=True)
class AskedPlan:
    """What was planned for.

    Args:
        model: tables and tower.
        tables: with their traffic.
        request: all knobs.
        qps: queries/s that were planned for.
        prices: instance types.
        measured: curves of the profile; None: the shipped defaults.
    """

    model: ModelSpec
    tables: Sequence[TableLoad]
    request: PlanRequest
    qps: float
    prices: Prices
    measured: MeasuredSpeed | None = None

    def again(
        self,
        request: PlanRequest,
        policies: Sequence[Policy] = (),
        tables: Sequence[TableLoad] | None = None,
    ) -> Outcome:
        """Another request for the same model, planned coarsely.

        Raises:
            PlanError, InfeasibleError: as of `Planner`.
        """
        rows = self.tables if tables is None else tables
        planner = Planner(self.model, rows, request, self.prices, self.measured, coarse=True)
        return planner.outcome(policies)
