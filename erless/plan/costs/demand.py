"""What must be served: tables with their traffic, queries/s, and the dense tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.curves import TableLoad
from erless.plan.costs.many_tables import MANY_TABLES, AllTables, Slices
from erless.plan.costs.planned import Slice
from erless.specs.plan import Precision

__all__ = ["Demand", "DenseDemand"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class DenseDemand:
    """The dense tower as a function of its own.

    Args:
        device: cpu, or cuda.
        service_s: seconds of one vCPU, or of one GPU, per query.
        memory_bytes: of one replica.
        cpu_s: seconds of one vCPU per query beside the GPU.
        source: where the GPU's seconds are from.
    """

    device: Literal["cpu", "cuda"]
    service_s: float
    memory_bytes: float
    cpu_s: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class Demand:
    """What must be served: tables with traffic, λ queries/s, tower seconds per query.

    With `dense`, `tower_s` is what the gateway spends on calling that function.
    """

    tables: tuple[TableLoad, ...]
    qps: float
    tower_s: float
    batch: int = 32
    min_replicas: int = 1
    dense: DenseDemand | None = None

    @cached_property
    def many(self) -> AllTables | None:
        """All tables as arrays, where there are many."""
        return AllTables(self.tables) if len(self.tables) >= MANY_TABLES else None

    def held(self, slices: Sequence[Slice]) -> Sequence[Slice]:
        """The slices that have rows; in arrays where tables are many."""
        if self.many is not None:
            return Slices.of(slices)
        return tuple(part for part in slices if part.stop > part.start)

    def gathers_between(self, start: Ints, stop: Ints) -> list[float]:
        """Per table, gathers per query of ranks start … stop-1; both are (T,)."""
        if self.many is not None:
            slices = Slices.between(start, stop)
            gathered = np.zeros(len(self.tables))
            gathered[slices.table] = self.many.gathers(slices)
            return gathered.tolist()
        return [
            table.gathers_between(int(low), int(high))
            for table, low, high in zip(self.tables, start, stop, strict=True)
        ]

    def least_s(self, terms: CostTerms) -> float:
        """Least latency of a query on one vCPU, in seconds: the tower and the calls around it."""
        apart = self.dense.service_s + terms.hop_s if self.dense else 0.0
        return terms.call_s + self.tower_s + apart

    def sparse_s(self, terms: CostTerms, precision: Precision = Precision.FP32) -> float:
        """Seconds of one vCPU per query for all gathers."""
        return sum(table.gathers * terms.beta_for(table, precision) for table in self.tables)

    def monolith_s(self, terms: CostTerms) -> float:
        """Seconds of one vCPU per query in a model-wise replica: a + β·(all gathers) + tower."""
        return terms.call_s + self.sparse_s(terms) + self.tower_s
