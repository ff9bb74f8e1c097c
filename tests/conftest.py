"""What the whole suite shares: real data where it is, small bundles, the CLI as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from erless.importers.bundle import new_bundle
from erless.specs.bundle import BundleManifest
from erless.specs.model import ModelSpec

ROOT = Path(__file__).parents[1]

settings.register_profile("erless", deadline=None, max_examples=60)
settings.load_profile("erless")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("ERLESS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run `erless ARGS` as a process of its own."""

    def run(*args: object, cwd: Path | None = None, **more: object) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, "-m", "erless", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=cwd,
            env=env,
            check=False,
            **more,
        )

    return run


def write_bundle(folder: Path, model: ModelSpec, seed: int = 0) -> BundleManifest:
    """A bundle of `model` (built-in tower) with random weights."""
    from erless.dlrm.tower import tower_layers

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
