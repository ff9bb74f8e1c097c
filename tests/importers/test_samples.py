"""`--check`: a bundle that does not predict as the original did is not written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn

from erless.errors import CheckpointError, QueryError
from erless.importers.dlrm import import_dlrm
from erless.importers.options import ImportOptions
from erless.importers.poolings import Poolings
from erless.importers.tables import import_tables
from erless.specs.model import Pooling
from tests.conftest import Cli
from tests.importers.test_dlrm import Dlrm, queries, save
from tests.towers import DeepFm, export


def samples(path: Path, predictions: NDArray[np.float32] | None) -> Path:
    query, _, _ = queries()
    tensors = {"dense": query.dense, "lengths": query.lengths, "values": query.values}
    if predictions is not None:
        tensors["predictions"] = predictions
    save_file(tensors, path)
    return path


def original(model: Dlrm) -> NDArray[np.float32]:
    _, bags, dense = queries()
    with torch.no_grad():
        predictions: NDArray[np.float32] = model(dense, bags).flatten().numpy()
    return predictions


def test_a_bundle_that_predicts_the_same_is_written(tmp_path: Path) -> None:
    model = Dlrm()
    file = samples(tmp_path / "s.safetensors", original(model))
    checkpoint = save(tmp_path / "c.pt", model)
    import_dlrm(checkpoint, tmp_path / "m", ImportOptions(samples=file))
    assert (tmp_path / "m" / "model.json").exists()


def test_a_clamp_in_the_code_is_found_and_the_worst_sample_named(tmp_path: Path) -> None:
    model = Dlrm()
    predictions = original(model)
    clamped = np.clip(predictions, None, np.sort(predictions)[-2])  # as --loss-threshold does
    worst = int(np.argmax(predictions))
    file = samples(tmp_path / "s.safetensors", clamped)
    checkpoint = save(tmp_path / "c.pt", model)
    with pytest.raises(CheckpointError, match=f"sample {worst} is predicted as .*, at most 1e-05"):
        import_dlrm(checkpoint, tmp_path / "m", ImportOptions(samples=file))
    assert not (tmp_path / "m").exists()


def test_samples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "c.pt", Dlrm())
    for predictions, message in (
        (None, "no tensor predictions"),
        (np.ones(3, np.float32), "3 predictions for 6 samples"),
        (np.full(6, np.nan, np.float32), "not a finite number"),
    ):
        file = samples(tmp_path / "s.safetensors", predictions)
        with pytest.raises(QueryError, match=message):
            import_dlrm(checkpoint, tmp_path / "m", ImportOptions(samples=file))


def test_tables_in_another_order_are_found(tmp_path: Path, cli: Cli) -> None:
    generator = np.random.default_rng(0)
    for name in ("ad", "item", "user"):
        np.save(tmp_path / f"{name}.npy", generator.standard_normal((9, 4)).astype(np.float32))
    tower = DeepFm(3, 3, 4)
    first = tower.deep[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight[:, 3:].mul_(5)  # so that the order tells
    export(tower, tmp_path / "tower.pt2", 3, 3, 4)
    order = ["user", "item", "ad"]
    dense = generator.standard_normal((5, 3)).astype(np.float32)
    ids = generator.integers(0, 9, (3, 5))
    rows = [np.load(tmp_path / f"{name}.npy")[ids[n]] for n, name in enumerate(order)]
    with torch.no_grad():
        pooled = torch.from_numpy(np.stack(rows, 1))
        expected = tower.eval()(torch.from_numpy(dense), pooled).flatten().numpy()
    tensors = {
        "dense": dense,
        "lengths": np.ones((3, 5), np.int32),
        "values": ids.reshape(-1),
        "predictions": expected,
    }
    save_file(tensors, tmp_path / "s.safetensors")
    options = ImportOptions(Poolings(Pooling.SUM), order, tmp_path / "s.safetensors")
    (tmp_path / "t").mkdir()
    for name in order:
        (tmp_path / f"{name}.npy").rename(tmp_path / "t" / f"{name}.npy")
    import_tables([str(tmp_path / "t")], tmp_path / "tower.pt2", 3, tmp_path / "m", options)
    with pytest.raises(CheckpointError, match="not the same model"):
        import_tables(
            [str(tmp_path / "t")],
            tmp_path / "tower.pt2",
            3,
            tmp_path / "n",
            replace(options, tables=["ad", "item", "user"]),
        )
    done = cli(
        *("import", "tables", str(tmp_path / "t"), "--tower", str(tmp_path / "tower.pt2")),
        *("--dense-features", "3", "--pooling", "sum", "--tables", "user, item,ad"),
        *("--check", str(tmp_path / "s.safetensors"), "--out", str(tmp_path / "o")),
    )
    assert done.returncode == 0, done.stderr
