"""A plan as Python has it: the artifact, its verdict, and how both are shown."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from erless.errors import PlanError
from erless.pages.page import table
from erless.plan.nodes.prices import read_prices
from erless.plan.planner import POLICIES, Planner
from erless.plan.report import tables
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import PlanSource
from erless.specs.plan import Plan
from erless.specs.strict.findings import first_finding

__all__ = ["Planned"]

WIDTH = 80


@dataclass(frozen=True)
class Planned:
    """`plan`: what `plan.json` holds. `verdict`: whether sharding pays here, and from what on."""

    plan: Plan
    verdict: str

    @classmethod
    def of(
        cls, source: PlanSource, fields: Mapping[str, Any], prices: Path | None, *, compare: bool
    ) -> Self:
        """Plan `source` as `fields` of a `PlanRequest` ask.

        Raises:
            PlanError: a field has a mistake, or no plan meets them.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            request = PlanRequest.model_validate(given)
        except ValidationError as error:
            keys, words = first_finding(error)
            raise PlanError(f"{'.'.join(keys)}: {words}") from error
        planner = Planner(
            source.model, source.tables, request, read_prices(prices), source.measured
        )
        outcome = planner.outcome(POLICIES if compare else ())
        plan = plan_document(outcome, source.model_digest, source.profile_digest, source.notes)
        return cls(plan, tables.verdict(plan))

    def __str__(self) -> str:
        from rich.console import Console

        drawn = io.StringIO()
        console = Console(file=drawn, width=WIDTH, highlight=False)
        for line in (*filter(None, [self.verdict]), *self.plan.notes, tables.node_line(self.plan)):
            console.print(f"- {line}")
        console.print(tables.shard_table(self.plan))
        if self.plan.policies:
            console.print(tables.policy_table(self.plan))
        return drawn.getvalue().rstrip()

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        from html import escape

        shown = (tables.shard_table(self.plan), tables.policy_table(self.plan))
        lines = (self.verdict, *self.plan.notes, tables.node_line(self.plan))
        said = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
        return f"<ul>{said}</ul>" + "".join(
            table(
                [str(column.header) for column in drawn.columns],
                [
                    list(row)
                    for row in zip(*(column.cells for column in drawn.columns), strict=True)
                ],
                str(drawn.title),
            )
            for drawn in shown
        )
