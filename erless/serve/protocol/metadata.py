"""Facts in a model's metadata beside the protocol's own: enough to make queries that fit."""

from __future__ import annotations

from typing import Any

from erless.specs.model import ModelSpec

__all__ = ["model_facts"]


def model_facts(model: ModelSpec) -> dict[str, Any]:
    """Tables in the model's order, for the `parameters` of `/v2/models/{m}`.

    Where features share tables, each feature is listed as a table under its own name.
    """
    return {
        "dense_features": model.dense_features,
        "tables": [
            {
                "name": table.name,
                "rows": table.rows,
                "dim": table.dim,
                "pooling": table.pooling.value,
            }
            for table in model.feature_tables
        ],
    }
