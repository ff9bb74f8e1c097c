"""The model's shape: embedding tables, pooling, dense tower, and the signature of a query."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from erless.specs.artifact import Frozen

__all__ = [
    "DlrmTower",
    "ExportedTower",
    "Interaction",
    "ModelSpec",
    "Pooling",
    "TableSpec",
    "TowerSpec",
]

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"  # of models and tables: in URLs and file names
ROW_ELEMENT_BYTES = 4  # a bundle's rows are fp32; lower precisions are a plan's choice


class Pooling(StrEnum):
    """How the rows of one bag become one vector. An empty bag is the zero vector under each."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    WEIGHTED_SUM = "weighted_sum"


class Interaction(StrEnum):
    """How the bottom MLP's output x and the pooled vectors meet (DLRM, arXiv 1906.00091, §3).

    Dot products of the vectors (x, pooled_0, …, pooled_T-1) enter the top MLP after x itself:
    below the diagonal row by row (facebookresearch/dlrm), with the diagonal
    (`--arch-interaction-itself`), or above it (torchrec). `cat` appends the vectors.
    """

    DOT = "dot"
    DOT_ITSELF = "dot_itself"
    DOT_UPPER = "dot_upper"
    CAT = "cat"


class TableSpec(Frozen):
    """One embedding table: `rows` × `dim` fp32."""

    name: str = Field(pattern=NAME)
    rows: int = Field(gt=0)
    dim: int = Field(gt=0)
    pooling: Pooling = Pooling.SUM

    @property
    def row_bytes(self) -> int:
        """Bytes of one fp32 row."""
        return self.dim * ROW_ELEMENT_BYTES

    @property
    def table_bytes(self) -> int:
        """Bytes of all fp32 rows."""
        return self.rows * self.row_bytes


class DlrmTower(Frozen):
    """The built-in DLRM tower. MLP sizes are layer outputs; ReLU between, none after the last top.

    The bottom MLP ends in ReLU too, as in both DLRM and torchrec.
    """

    kind: Literal["dlrm"] = "dlrm"
    bottom_mlp: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    top_mlp: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    interaction: Interaction = Interaction.DOT
    sigmoid: bool = True


class ExportedTower(Frozen):
    """A `torch.export` archive: `dense (B,F)`, `pooled (B,T,D)` → prediction `(B,)` or `(B,1)`.

    Where tables differ in dim, D is the largest and shorter vectors are padded with zeros. The
    export was made for `batch_min` to `batch_max` samples (None: any); a smaller batch is filled
    up, a larger query is refused.
    """

    kind: Literal["exported"] = "exported"
    batch_min: int = Field(default=1, ge=1)
    batch_max: int | None = Field(default=None, ge=1)


TowerSpec = Annotated[DlrmTower | ExportedTower, Field(discriminator="kind")]


class ModelSpec(Frozen):
    """Tables in the order of a query's KeyedJaggedTensor, dense features F, tower."""

    name: str = Field("model", pattern=NAME, description="part of URLs")
    dense_features: int = Field(ge=0)
    tables: tuple[TableSpec, ...] = Field(min_length=1)
    tower: TowerSpec

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [table.name for table in self.tables]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"table {twice} is listed twice")
        if isinstance(self.tower, DlrmTower):
            if self.tower.top_mlp[-1] != 1:
                raise ValueError(f"the top MLP ends in {self.tower.top_mlp[-1]} outputs, not 1")
            if self.tower.interaction is not Interaction.CAT:
                self._check_dot(self.tower)
        return self

    def _check_dot(self, tower: DlrmTower) -> None:
        for table in self.tables:
            if table.dim != tower.bottom_mlp[-1]:
                raise ValueError(
                    f"table {table.name} has dim {table.dim}, the bottom MLP ends in "
                    f"{tower.bottom_mlp[-1]}: a dot interaction needs them equal"
                )

    @property
    def embedding_bytes(self) -> int:
        """Bytes of all tables in fp32."""
        return sum(table.table_bytes for table in self.tables)

    @property
    def has_weights(self) -> bool:
        """Whether queries must carry one weight per id."""
        return any(table.pooling is Pooling.WEIGHTED_SUM for table in self.tables)

    def largest_batch(self, most: int) -> int:
        """The most samples of one query, `most` being the server's own limit."""
        if isinstance(self.tower, DlrmTower):
            return most
        return min(most, self.tower.batch_max or most)

    def table(self, name: str) -> TableSpec:
        """The table called `name`.

        Raises:
            KeyError: there is none.
        """
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(name)
