"""Model-wise and table-wise allocation: what is deployed today."""

from __future__ import annotations

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, Slice

__all__ = ["model_wise", "table_wise"]


def model_wise(demand: Demand, terms: CostTerms) -> Layout:
    """Every replica holds the whole model and the tower: all rows are resident."""
    rows = [Slice(index, 0, table.rows) for index, table in enumerate(demand.tables)]
    return Layout.of(demand, terms, [], rows)


def table_wise(demand: Demand, terms: CostTerms) -> Layout:
    """One function per table; rows are not split."""
    shards = [[Slice(index, 0, table.rows)] for index, table in enumerate(demand.tables)]
    return Layout.of(demand, terms, shards, why=["one table"] * len(shards))
