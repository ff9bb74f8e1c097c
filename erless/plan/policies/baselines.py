"""Model-wise and table-wise allocation: what is deployed today."""

from __future__ import annotations

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, Slice
from erless.specs.plan import Precision

__all__ = ["model_wise", "one_remote", "table_wise"]


def model_wise(demand: Demand, terms: CostTerms, precision: Precision = Precision.FP32) -> Layout:
    """Every replica holds the whole model and the tower: all rows are resident."""
    return Layout.of(demand, terms, [], _all_rows(demand), resident_precision=precision)


def one_remote(demand: Demand, terms: CostTerms, precision: Precision) -> Layout:
    """A gateway without rows, and one function with all of them."""
    why = ["all rows: the gateway's replicas hold none"]
    return Layout.of(demand, terms, [_all_rows(demand)], (), precision, why=why)


def table_wise(demand: Demand, terms: CostTerms) -> Layout:
    """One function per table; rows are not split."""
    shards = [[Slice(index, 0, table.rows)] for index, table in enumerate(demand.tables)]
    return Layout.of(demand, terms, shards, why=["one table"] * len(shards))


def _all_rows(demand: Demand) -> list[Slice]:
    return [Slice(index, 0, table.rows) for index, table in enumerate(demand.tables)]
