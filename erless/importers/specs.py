"""Build model specs from what a checkpoint holds, telling what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from erless.dlrm.tower import top_inputs
from erless.errors import CheckpointError, ModelError, OptionError
from erless.specs.model import DlrmTower, ExportedTower, FeatureSpec, ModelSpec, Pooling, TableSpec

__all__ = ["make_features", "make_model", "table_spec"]


def table_spec(name: str, shape: tuple[int, ...], pooling: Pooling) -> TableSpec:
    """The spec of a table found with `shape`.

    Raises:
        CheckpointError: the shape is not (rows, dim), or the name cannot be a file's.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise CheckpointError(f"table {name} has shape {shape}, expected (rows, dim)")
    try:
        return TableSpec(name=name, rows=shape[0], dim=shape[1], pooling=pooling)
    except ValidationError as error:
        raise CheckpointError(
            f"table name {name!r}: use letters, digits, '_', '.' and '-', at most 100 characters"
        ) from error


def make_model(
    dense_features: int,
    tables: Sequence[TableSpec],
    tower: DlrmTower | ExportedTower,
    top_mlp_inputs: int | None = None,
    name: str = "model",
    features: Sequence[FeatureSpec] = (),
) -> ModelSpec:
    """The model, checked as a whole.

    Raises:
        ModelError: tables, interaction and MLPs contradict each other.
    """
    try:
        model = ModelSpec(
            name=name,
            dense_features=dense_features,
            tables=tuple(tables),
            tower=tower,
            features=tuple(features),
        )
    except ValidationError as error:
        raise ModelError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error
    if top_mlp_inputs is not None and top_mlp_inputs != top_inputs(model):
        raise ModelError(
            f"the top MLP takes {top_mlp_inputs} inputs, the interaction gives "
            f"{top_inputs(model)}: a table or a feature is missing, or of a wrong dim"
        )
    return model


def make_features(
    tables: Sequence[TableSpec], named: Mapping[str, Sequence[str]]
) -> list[FeatureSpec]:
    """The features of `tables`, table by table; empty where each table has one of its own name.

    Args:
        named: the features that read a table, in the model's order; a table that is not named has
            one feature of its own name.

    Raises:
        OptionError: a table is not there, or a feature's name cannot be one.
        ModelError: a feature is listed twice.
    """
    unknown = next((name for name in named if name not in {table.name for table in tables}), None)
    if unknown is not None:
        known = ", ".join(table.name for table in tables)
        raise OptionError(f"features of table {unknown}: the model has tables {known}")
    try:
        features = [
            FeatureSpec(name=name, table=table.name, pooling=table.pooling)
            for table in tables
            for name in named.get(table.name, [table.name])
        ]
    except ValidationError as error:
        raise OptionError(
            "a feature's name has letters, digits, '_', '.' and '-', at most 100 characters"
        ) from error
    names = [feature.name for feature in features]
    return [] if names == [table.name for table in tables] else features
