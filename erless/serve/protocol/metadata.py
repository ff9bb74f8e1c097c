"""What a model's metadata says beside the protocol's own: enough to make queries that fit."""

from __future__ import annotations

from typing import Any

from erless.specs.model import ModelSpec

__all__ = ["model_facts"]


def model_facts(model: ModelSpec) -> dict[str, Any]:
    """Tables in the model's order, for the `parameters` of `/v2/models/{m}`.

    Where features share tables, each is told as a table under its own name.
    """
    return {
        "dense_features": model.dense_features,
        "tables": [
            {
                "name": each.name,
                "rows": each.rows,
                "dim": each.dim,
                "pooling": each.pooling.value,
            }
            for each in model.feature_tables
        ],
    }
