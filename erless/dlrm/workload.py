"""The reference workloads and their power-law access.

RM1, RM2, RM3 are ElasticRec's (table 2); `dlrmv2` is MLPerf's DLRM-v2: Criteo's 26 tables with the
multi-hot sizes of its data set, and a cross net (mlcommons/training).

Access follows a power law with locality P, the share of accesses that the hottest 10 % of rows
take: F(x) = x^α over the fraction x of rows, hottest first, with α = -log10(P), so F(0.1) = P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from erless.specs.model import CrossNet, DlrmTower, Interaction, ModelSpec, TableSpec

__all__ = ["WORKLOADS", "PowerLaw", "RowOrder", "Workload"]

PAPER_ROWS = 20_000_000
PAPER_BATCH = 32
PAPER_DIM = 32
PAPER_LOCALITY = 0.9
FEW_ROWS = 1000
_MLPERF_ROWS = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956),
    *(405_282, 10, 2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152),
    *(12_973, 108, 36),
)
_MLPERF_POOLING = (
    *(3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """A synthetic model and its traffic: `tables` tables of `rows` rows, `pooling` ids per bag.

    Where tables differ, `sizes` gives (rows, ids per bag) of each instead. `bottom_mlp` is written
    as DLRM's `--arch-mlp-bot`: the first number is the dense features F. `live` is the share of
    each table's rows that its traffic asks for; nobody asks for the rest (items no longer offered).
    """

    name: str
    tables: int
    pooling: int
    bottom_mlp: tuple[int, ...]
    top_mlp: tuple[int, ...]
    rows: int = PAPER_ROWS
    batch: int = PAPER_BATCH
    locality: float = PAPER_LOCALITY
    sizes: tuple[tuple[int, int], ...] = ()
    cross: CrossNet | None = None
    live: float = 1.0

    @property
    def table_sizes(self) -> tuple[tuple[int, int], ...]:
        """(rows, ids per bag) of each table."""
        return self.sizes or ((self.rows, self.pooling),) * self.tables

    def traffic(self, rows: int) -> PowerLaw:
        """How a table of `rows` rows is asked for: the law over its live rows."""
        return PowerLaw(max(1, round(rows * self.live)), self.locality)

    def scaled(self, scale: float) -> Workload:
        """The workload with `scale` times the rows; tables of few rows keep them."""
        sizes = tuple(
            (max(min(rows, FEW_ROWS), round(rows * scale)), pooling) for rows, pooling in self.sizes
        )
        return replace(self, sizes=sizes, rows=max(1, round(self.rows * scale)))

    def model(self) -> ModelSpec:
        """The model's shape."""
        return ModelSpec(
            name=self.name,
            dense_features=self.bottom_mlp[0],
            tables=tuple(
                TableSpec(name=f"table_{index}", rows=rows, dim=self.bottom_mlp[-1])
                for index, (rows, _) in enumerate(self.table_sizes)
            ),
            tower=DlrmTower(
                bottom_mlp=self.bottom_mlp[1:],
                top_mlp=self.top_mlp,
                interaction=Interaction.DCN if self.cross else Interaction.DOT,
                cross=self.cross,
            ),
        )


WORKLOADS = {
    "rm1": Workload("rm1", 10, 128, (256, 128, PAPER_DIM), (256, 64, 1)),
    "rm2": Workload("rm2", 32, 128, (256, 128, PAPER_DIM), (512, 128, 1)),
    "rm3": Workload("rm3", 10, 32, (2560, 1024, 256, PAPER_DIM), (512, 256, 1)),
    "dlrmv2": Workload(
        "dlrmv2",
        tables=len(_MLPERF_ROWS),
        pooling=max(_MLPERF_POOLING),
        bottom_mlp=(13, 512, 256, 128),
        top_mlp=(1024, 1024, 512, 256, 1),
        rows=max(_MLPERF_ROWS),
        sizes=tuple(zip(_MLPERF_ROWS, _MLPERF_POOLING, strict=True)),
        cross=CrossNet(layers=3, rank=512),
    ),
}


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Access CDF of a table of `rows` rows with locality P.

    >>> law = PowerLaw(rows=1000, locality=0.9)
    >>> round(float(law.cdf(100)), 6), float(law.cdf(1000))
    (0.9, 1.0)
    """

    rows: int
    locality: float

    @property
    def exponent(self) -> float:
        """α = -log10(P)."""
        return -math.log10(self.locality)

    def cdf(self, ranks: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of accesses that the hottest `ranks` rows take, in 0 … 1."""
        return (np.asarray(ranks, np.float64) / self.rows) ** self.exponent

    def sample(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` ranks drawn from the law: F⁻¹(u) = rows·u^(1/α)."""
        ranks = (self.rows * generator.random(count) ** (1 / self.exponent)).astype(np.int64)
        return np.minimum(ranks, self.rows - 1)


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Where the row of each hotness rank lies: id = (stride·rank + start) mod rows.

    A bijection without a permutation array, so that it costs nothing at any scale; hot rows are
    strewn over the table as they are in a trained one.
    """

    rows: int
    stride: int
    start: int

    @classmethod
    def seeded(cls, rows: int, generator: np.random.Generator) -> RowOrder:
        """A random order: any stride coprime to `rows`."""
        stride = int(generator.integers(1, max(2, rows)))
        while math.gcd(stride, rows) != 1:
            stride += 1
        return cls(rows, stride, int(generator.integers(rows)))

    def ids(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row ids of `ranks`. Exact for tables below 3·10^9 rows (int64 products)."""
        return (ranks * self.stride + self.start) % self.rows
