"""The model's shape: embedding tables, pooling, dense tower, and the signature of a query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from erless.specs.artifact import Frozen
from erless.specs.features import NAME, FeatureSpec, HashedIds, ModuloIds, NamedTensor, Pooling
from erless.storage.digests import digest_json

__all__ = [
    "CrossNet",
    "DlrmTower",
    "ExportedTower",
    "FeatureSpec",
    "GraphTower",
    "Interaction",
    "ModelSpec",
    "NamedTensor",
    "Pooling",
    "TableSpec",
    "TowerSpec",
    "shape_digest",
]

ROW_ELEMENT_BYTES = 4  # a bundle's rows are fp32; lower precisions are a plan's choice


class Interaction(StrEnum):
    """How the bottom MLP's output x and the pooled vectors meet (DLRM, arXiv 1906.00091, §3).

    Dot products of the vectors (x, pooled_0, …, pooled_T-1) enter the top MLP after x itself:
    below the diagonal row by row (facebookresearch/dlrm), with the diagonal
    (`--arch-interaction-itself`), or above it (torchrec). `cat` appends the vectors; `dcn` sends
    them, so appended, through a cross net (DCN-v2, arXiv 2008.13535; MLPerf's DLRM-v2).
    """

    DOT = "dot"
    DOT_ITSELF = "dot_itself"
    DOT_UPPER = "dot_upper"
    CAT = "cat"
    DCN = "dcn"


DOTS = (Interaction.DOT, Interaction.DOT_ITSELF, Interaction.DOT_UPPER)


class TableSpec(Frozen):
    """One embedding table: `rows` × `dim` fp32.

    `pooling` is what a shard computes of its rows; of a table that features share, it is what
    serves all of them.
    """

    name: str = Field(pattern=NAME)
    rows: int = Field(gt=0)
    dim: int = Field(gt=0)
    pooling: Pooling = Pooling.SUM

    @model_validator(mode="after")
    def _pools(self) -> Self:
        if self.pooling is Pooling.NONE:
            raise ValueError(f"table {self.name}: a feature may pool nothing, a table may not")
        return self

    @property
    def row_bytes(self) -> int:
        """Bytes of one fp32 row."""
        return self.dim * ROW_ELEMENT_BYTES

    @property
    def table_bytes(self) -> int:
        """Bytes of all fp32 rows."""
        return self.rows * self.row_bytes


class CrossNet(Frozen):
    """Cross layers of low rank: x_l+1 = x_0 * (W·(V·x_l) + b) + x_l, V (rank, n) and W (n, rank).

    x_0, (n,), is what enters the first (arXiv 2008.13535, §3.4, with one expert).
    """

    layers: int = Field(gt=0)
    rank: int = Field(gt=0)


class DlrmTower(Frozen):
    """The built-in DLRM tower. MLP sizes are layer outputs; ReLU between, none after the last top.

    The bottom MLP ends in ReLU too, as in both DLRM and torchrec.
    """

    kind: Literal["dlrm"] = "dlrm"
    bottom_mlp: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    top_mlp: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    interaction: Interaction = Interaction.DOT
    sigmoid: bool = True
    cross: CrossNet | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out the cross net where there is none, so that digests stay what they were."""
        fields = dump(self)
        return {key: value for key, value in fields.items() if key != "cross" or value}

    @model_validator(mode="after")
    def _crosses(self) -> Self:
        if (self.interaction is Interaction.DCN) != (self.cross is not None):
            raise ValueError("a cross net goes with the interaction dcn, and only with it")
        return self


class ExportedTower(Frozen):
    """A `torch.export` archive: `dense (B,F)`, `pooled (B,T,D)` → prediction `(B,)` or `(B,1)`.

    Where tables differ in dim, D is the largest and shorter vectors are padded with zeros. The
    export was made for `batch_min` to `batch_max` samples (None: any); a smaller batch is filled
    up, a larger query is refused.
    """

    kind: Literal["exported"] = "exported"
    batch_min: int = Field(default=1, ge=1)
    batch_max: int | None = Field(default=None, ge=1)


class GraphTower(Frozen):
    """A model of any architecture, cut at its lookups into two `torch.export` archives.

    Values have names: the model's inputs, the results of its front, the vectors of its features.
    The *front* takes the inputs named in `front_takes`, and gives `front_gives`; without an archive
    there is nothing to compute before the lookups. The *request front* is the same for what comes
    once per request. The tower takes `takes` and gives the model's outputs, in their order. A
    feature's vectors are (bags, dim), or of its ids' shape and dim where nothing is pooled; those
    of a feature that comes once per request are repeated for each sample before the tower.
    """

    kind: Literal["graph"] = "graph"
    takes: tuple[str, ...] = Field(min_length=1)
    front_takes: tuple[str, ...] = ()
    front_gives: tuple[str, ...] = ()
    request_front_takes: tuple[str, ...] = ()
    request_front_gives: tuple[str, ...] = ()
    batch_min: int = Field(default=1, ge=1)
    batch_max: int | None = Field(default=None, ge=1)


TowerSpec = Annotated[DlrmTower | ExportedTower | GraphTower, Field(discriminator="kind")]


_LATER = ("features", "inputs", "outputs")  # left out where they say nothing: digests stay


class ModelSpec(Frozen):
    """Tables, features in the order of a query's KeyedJaggedTensor, dense features F, tower.

    Where `features` is empty, each table has one feature of its name. A graph's inputs and outputs
    are its own; other models take the KeyedJaggedTensor form and give `prediction`.
    """

    name: str = Field("model", pattern=NAME, description="part of URLs")
    dense_features: int = Field(ge=0)
    tables: tuple[TableSpec, ...] = Field(min_length=1)
    tower: TowerSpec
    features: tuple[FeatureSpec, ...] = ()
    inputs: tuple[NamedTensor, ...] = ()
    outputs: tuple[NamedTensor, ...] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what a plain DLRM does not have, so that its digests stay what they were."""
        fields = dump(self)
        return {key: value for key, value in fields.items() if value or key not in _LATER}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_twice("table", [table.name for table in self.tables])
        self._check_features()
        if isinstance(self.tower, GraphTower):
            self._check_graph(self.tower)
        elif self.inputs or self.outputs:
            raise ValueError(f"a {self.tower.kind} model has no inputs and outputs of its own")
        if isinstance(self.tower, DlrmTower):
            loose = next((f.name for f in self.lookups if f.pooling is Pooling.NONE), None)
            if loose:
                raise ValueError(
                    f"feature {loose} pools nothing, which the tower dlrm does not take"
                )
            if self.tower.top_mlp[-1] != 1:
                raise ValueError(f"the top MLP ends in {self.tower.top_mlp[-1]} outputs, not 1")
            if self.tower.interaction in DOTS:
                self._check_dot(self.tower)
        return self

    def with_rows(self, rows: Mapping[str, int]) -> Self:
        """This model where the tables that `rows` names have so many."""
        tables = tuple(
            table.model_copy(update={"rows": rows.get(table.name, table.rows)})
            for table in self.tables
        )
        return self.model_copy(update={"tables": tables})

    def _check_features(self) -> None:
        """Each feature has a table that can serve it, and each table a feature."""
        _refuse_twice("feature", [feature.name for feature in self.features])
        tables = {table.name: table for table in self.tables}
        for feature in self.features:
            table = tables.get(feature.table)
            if table is None:
                raise ValueError(f"feature {feature.name}: there is no table {feature.table}")
            if not _serves(table.pooling, feature.pooling):
                raise ValueError(
                    f"feature {feature.name} pools by {feature.pooling.value}, "
                    f"table {table.name} by {table.pooling.value}"
                )
            rows = feature.rule.rows if isinstance(feature.rule, ModuloIds | HashedIds) else 0
            row = feature.unknown if isinstance(feature.unknown, int) else 0
            if max(rows, row + 1) > table.rows:
                raise ValueError(
                    f"feature {feature.name}: row {max(rows - 1, row):,} is not one of table "
                    f"{table.name}, which has {table.rows:,}"
                )
        unused = set(tables) - {feature.table for feature in self.features}
        if self.features and unused:
            raise ValueError(f"no feature reads table {min(unused)}")

    def _check_graph(self, tower: GraphTower) -> None:
        """Each value that the graph takes has one source: an input, a front, or a feature."""
        if not self.features or not self.inputs or not self.outputs:
            raise ValueError("a graph has features, inputs and outputs")
        names = [tensor.name for tensor in self.inputs]
        names += [*tower.front_gives, *tower.request_front_gives]
        _refuse_twice("output", [tensor.name for tensor in self.outputs])
        _refuse_twice("value", names + [feature.name for feature in self.features])
        for feature in self.features:
            if feature.ids is None:
                raise ValueError(f"feature {feature.name} names no ids")
            for name in filter(
                None, (feature.ids, feature.offsets, feature.lengths, feature.weights)
            ):
                if name not in names:
                    raise ValueError(f"feature {feature.name}: nothing gives {name}")
        inputs = {tensor.name for tensor in self.inputs}
        for name in (*tower.front_takes, *tower.request_front_takes):
            if name not in inputs:
                raise ValueError(f"the front takes {name}, which is no input")
        values = {*names, *(feature.name for feature in self.features)}
        for name in tower.takes:
            if name not in values:
                raise ValueError(f"the tower takes {name}, which nothing gives")

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

    @property
    def lookups(self) -> tuple[FeatureSpec, ...]:
        """The features; where none are named, one per table."""
        return self.features or tuple(
            FeatureSpec(name=table.name, table=table.name, pooling=table.pooling)
            for table in self.tables
        )

    @property
    def feature_tables(self) -> tuple[TableSpec, ...]:
        """For each feature, in a query's order, its table under the feature's name and pooling.

        Of a plain model these are the tables. A feature that pools nothing has its table's pooling.
        """
        tables = {table.name: table for table in self.tables}
        return tuple(
            tables[feature.table].model_copy(
                update={"name": feature.name}
                | ({} if feature.pooling is Pooling.NONE else {"pooling": feature.pooling})
            )
            for feature in self.lookups
        )

    @property
    def feature_dims(self) -> tuple[int, ...]:
        """The dim of each feature's vectors."""
        return tuple(table.dim for table in self.feature_tables)

    @property
    def plain(self) -> bool:
        """Whether each table has one pooled feature of its name with exact ids, and no more."""
        return not self.features

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


def _refuse_twice(noun: str, names: list[str]) -> None:
    """Raise ValueError where a name stands twice."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{noun} {twice} is listed twice")


def _serves(table: Pooling, feature: Pooling) -> bool:
    """Whether a shard that pools by `table` can answer for a feature that pools by `feature`.

    Sums serve means, which the gateway divides, and single rows; so do weighted sums, with weights
    of 1. Maxima serve single rows.
    """
    if table is Pooling.MAX:
        return feature in (Pooling.MAX, Pooling.NONE)
    if table is Pooling.WEIGHTED_SUM:
        return feature is not Pooling.MAX
    return feature in (Pooling.SUM, Pooling.MEAN, Pooling.NONE)


def shape_digest(model: ModelSpec) -> str:
    """What identifies a model of which no weights are known: its shape."""
    return digest_json(model.model_dump(mode="json"))
