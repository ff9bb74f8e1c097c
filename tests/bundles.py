"""Small model bundles for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from erless.importers.bundle import new_bundle
from erless.specs.bundle import BundleManifest
from erless.specs.model import ModelSpec

__all__ = ["write_bundle"]


def write_bundle(folder: Path, model: ModelSpec, seed: int = 0) -> BundleManifest:
    """A bundle of `model` (built-in tower) with random weights."""
    from erless.dlrm.layers import tower_layers

    generator = np.random.default_rng(seed)
    with new_bundle(folder, model) as bundle:
        for table in model.tables:
            bundle.add_table(
                table, [generator.standard_normal((table.rows, table.dim), np.float32)]
            )
        bundle.add_tower(
            {
                name: generator.standard_normal(shape, np.float32) * np.float32(0.3)
                for name, shape in tower_layers(model).items()
            }
        )
        return bundle.finish()
