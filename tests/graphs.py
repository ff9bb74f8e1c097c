"""Models cut from a graph, for tests: their modules, their bundle, and what they are whole."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST, BundleManifest
from erless.specs.features import FeatureSpec, NamedTensor
from erless.specs.model import GraphTower, ModelSpec, Pooling, TableSpec
from erless.storage.digests import digest_file
from erless.storage.tensors import write_tensors

__all__ = ["ITEMS", "USERS", "Ranker", "ranker_inputs", "ranker_spec", "write_ranker"]

ITEMS, USERS, DIM = 2000, 900, 8
TAGS = 300
BATCH = torch.export.Dim("batch", min=2, max=4096)
LENGTH = torch.export.Dim("length", min=2, max=20_000)


class Front(nn.Module):
    """Raw numbers of a history become rows; what is no item is masked."""

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        return torch.remainder(history, ITEMS), (history > 0).to(torch.float32)


class Tower(nn.Module):
    """A mean over the masked history, the target beside it, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * DIM + 1, 16)
        self.heads = nn.Linear(16, 2)

    def forward(
        self,
        mask: Tensor,
        price: Tensor,
        history: Tensor,
        target: Tensor,
        tags: Tensor,
        user: Tensor,
    ) -> tuple[Tensor, Tensor]:
        weights = mask.unsqueeze(2)
        mean = (history * weights).sum(1) / (weights.sum(1) + 1e-6)
        joined = torch.cat([mean, target * mean, tags, user, price], dim=1)
        both = torch.sigmoid(self.heads(torch.relu(self.hidden(joined))))
        return both[:, 0], both[:, 1]


class Ranker(nn.Module):
    """The model whole, as a user would have written it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.items = nn.Embedding(ITEMS, DIM)
        self.users = nn.Embedding(USERS, DIM)
        self.tags = nn.EmbeddingBag(TAGS, DIM, mode="mean", padding_idx=0)
        self.front, self.tower = Front(), Tower()

    def forward(
        self, user: Tensor, history: Tensor, target: Tensor, tags: Tensor, price: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, mask = self.front(history)
        ctr, cvr = self.tower(
            mask, price, self.items(rows), self.items(target), self.tags(tags), self.users(user)
        )
        return ctr, cvr


def ranker_spec(**changes: Any) -> ModelSpec:
    """The model cut; `changes` are of the features by their name."""
    features = (
        FeatureSpec(name="f_history", table="items", pooling=Pooling.NONE, ids="history_rows"),
        FeatureSpec(name="f_target", table="items", pooling=Pooling.NONE, ids="target"),
        FeatureSpec(name="f_tags", table="tags", pooling=Pooling.MEAN, ids="tags", padding_idx=0),
        FeatureSpec(name="f_user", table="users", pooling=Pooling.NONE, ids="user"),
    )
    per = changes.pop("per", {})
    return ModelSpec(
        name="ranker",
        dense_features=0,
        tables=(
            TableSpec(name="items", rows=ITEMS, dim=DIM),
            TableSpec(name="tags", rows=TAGS, dim=DIM),
            TableSpec(name="users", rows=USERS, dim=DIM),
        ),
        tower=GraphTower(
            takes=("mask", "price", "f_history", "f_target", "f_tags", "f_user"),
            front_takes=() if per.get("history") else ("history",),
            front_gives=() if per.get("history") else ("history_rows", "mask"),
            request_front_takes=("history",) if per.get("history") else (),
            request_front_gives=("history_rows", "mask") if per.get("history") else (),
            batch_min=2,
            batch_max=4096,
        ),
        features=tuple(f.model_copy(update=changes.get(f.name, {})) for f in features),
        inputs=tuple(
            NamedTensor(name=name, datatype=datatype, shape=shape, per=per.get(name, "sample"))
            for name, datatype, shape in (
                ("user", changes.get("user_type", "INT64"), (-1,)),
                ("history", "INT64", (-1, -1)),
                ("target", "INT64", (-1,)),
                ("tags", "INT64", (-1, 4)),
                ("price", "FP32", (-1, 1)),
            )
        ),
        outputs=(
            NamedTensor(name="ctr", datatype="FP32", shape=(-1,)),
            NamedTensor(name="cvr", datatype="FP32", shape=(-1,)),
        ),
    )


def _save(module: nn.Module, example: tuple[Tensor, ...], path: Path, dims: Any) -> FileEntry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself
        program = torch.export.export(module, example, dynamic_shapes=dims)
        torch.export.save(program.run_decompositions({}), path)
    digest = digest_file(path)
    return FileEntry(path=path.name, size_bytes=digest.size_bytes, sha256=digest.sha256)


def write_ranker(folder: Path, model: Ranker, spec: ModelSpec) -> BundleManifest:
    """The bundle of `model`, cut as `spec` says."""
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    weights: dict[str, nn.Embedding | nn.EmbeddingBag] = {
        "items": model.items,
        "tags": model.tags,
        "users": model.users,
    }
    tables = []
    for name, module in weights.items():
        path = f"tables/{name}.safetensors"
        rows = module.weight.detach().numpy()
        digest = write_tensors(folder / path, {"rows": rows})
        tables.append(FileEntry(path=path, size_bytes=digest.size_bytes, sha256=digest.sha256))
    batch, length = 3, 5
    once = bool(spec.tower.request_front_takes)  # type: ignore[union-attr]
    front = _save(
        model.front,
        (torch.zeros(1 if once else batch, length, dtype=torch.int64),),
        folder / ("request_front.pt2" if once else "front.pt2"),
        ({1: LENGTH} if once else {0: BATCH, 1: LENGTH},),
    )
    vector = torch.zeros(batch, DIM)
    tower = _save(
        model.tower,
        (
            torch.ones(batch, length),
            torch.ones(batch, 1),
            torch.zeros(batch, length, DIM),
            vector,
            vector.clone(),
            vector.clone(),
        ),
        folder / "tower.pt2",
        (
            {0: BATCH, 1: LENGTH},
            {0: BATCH},
            {0: BATCH, 1: LENGTH},
            {0: BATCH},
            {0: BATCH},
            {0: BATCH},
        ),
    )
    manifest = BundleManifest.create(
        model=spec,
        tables=tuple(tables),
        tower=tower,
        front=None if once else front,
        request_front=front if once else None,
    )
    manifest.save(folder / MANIFEST)
    return manifest


def ranker_inputs(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A query of `batch` samples, histories of `length`."""
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, USERS, batch),
        "history": rng.integers(0, 10 * ITEMS, (batch, length)),
        "target": rng.integers(0, ITEMS, batch),
        "tags": rng.integers(0, TAGS, (batch, 4)),
        "price": rng.normal(size=(batch, 1)).astype(np.float32),
    }
