"""Small bundles for the profile's tests, and where the real data lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST, TABLE_TENSOR, BundleManifest
from erless.specs.model import DlrmTower, Interaction, ModelSpec, TableSpec
from erless.storage.tensors import write_tensors

MakeBundle = Callable[[dict[str, int]], Path]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """A real bundle with tables of dim 1; its tower is not used by the profile."""

    def make(tables: dict[str, int]) -> Path:
        folder = tmp_path / "model"
        (folder / "tables").mkdir(parents=True)
        entries = []
        for name, rows in tables.items():
            path = f"tables/{name}.safetensors"
            digest = write_tensors(folder / path, {TABLE_TENSOR: np.zeros((rows, 1), np.float32)})
            entries.append(FileEntry(path=path, **digest._asdict()))
        tower = write_tensors(folder / "tower.safetensors", {"x": np.zeros(1, np.float32)})
        BundleManifest.create(
            model=ModelSpec(
                dense_features=1,
                tables=tuple(
                    TableSpec(name=name, rows=rows, dim=1) for name, rows in tables.items()
                ),
                tower=DlrmTower(bottom_mlp=(1,), top_mlp=(1,), interaction=Interaction.CAT),
            ),
            tables=tuple(entries),
            tower=FileEntry(path="tower.safetensors", **tower._asdict()),
        ).save(folder / MANIFEST)
        os.utime(folder / MANIFEST, (1_600_000_000, 1_600_000_000))  # older than any log
        return folder

    return make


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data; skips where it is absent."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("ERLESS_SHARED_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
