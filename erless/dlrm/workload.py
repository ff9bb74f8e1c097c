"""The reference workloads RM1, RM2, RM3 after ElasticRec (table 2) and their power-law access.

Access follows a power law with locality P, the share of accesses that the hottest 10 % of rows
take: F(x) = x^α over the fraction x of rows, hottest first, with α = -log10(P), so F(0.1) = P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.specs.model import DlrmTower, ModelSpec, TableSpec

__all__ = ["WORKLOADS", "PowerLaw", "RowOrder", "Workload"]

PAPER_ROWS = 20_000_000
PAPER_BATCH = 32
PAPER_DIM = 32
PAPER_LOCALITY = 0.9


@dataclass(frozen=True, slots=True)
class Workload:
    """A synthetic model and its traffic: `tables` tables of `rows` rows, `pooling` ids per bag.

    `bottom_mlp` is written as DLRM's `--arch-mlp-bot`: the first number is the dense features F.
    """

    name: str
    tables: int
    pooling: int
    bottom_mlp: tuple[int, ...]
    top_mlp: tuple[int, ...]
    rows: int = PAPER_ROWS
    batch: int = PAPER_BATCH
    locality: float = PAPER_LOCALITY

    def model(self) -> ModelSpec:
        """The model's shape."""
        return ModelSpec(
            name=self.name,
            dense_features=self.bottom_mlp[0],
            tables=tuple(
                TableSpec(name=f"table_{index}", rows=self.rows, dim=self.bottom_mlp[-1])
                for index in range(self.tables)
            ),
            tower=DlrmTower(bottom_mlp=self.bottom_mlp[1:], top_mlp=self.top_mlp),
        )


WORKLOADS = {
    "rm1": Workload("rm1", 10, 128, (256, 128, PAPER_DIM), (256, 64, 1)),
    "rm2": Workload("rm2", 32, 128, (256, 128, PAPER_DIM), (512, 128, 1)),
    "rm3": Workload("rm3", 10, 32, (2560, 1024, 256, PAPER_DIM), (512, 256, 1)),
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
