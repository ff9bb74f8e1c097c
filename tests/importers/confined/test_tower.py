"""Trying a tower: what it takes is found out, what cannot be served is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erless.errors import ArtifactError, ModelError
from erless.importers.confined.tower import try_tower
from erless.specs.model import ExportedTower, ModelSpec, TableSpec
from tests.dlrm.archive.hostile import add_node, put_together, take_apart

MODEL = ModelSpec(
    dense_features=3,
    tables=(TableSpec(name="a", rows=5, dim=4), TableSpec(name="b", rows=5, dim=4)),
    tower=ExportedTower(),
)


class Sum(nn.Module):
    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        return dense.sum(1) + pooled.sum((1, 2))


class Mixing(nn.Module):
    """Each prediction depends on the whole batch."""

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        return dense.sum(1).softmax(0) + pooled.mean()


class NotZero(nn.Module):
    """Zeros give no finite number."""

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        norms: Tensor = pooled / pooled.norm(dim=2, keepdim=True)
        return norms.sum((1, 2)) + dense.sum(1)


class Greedy(nn.Module):
    """A batch of one needs 16 GB."""

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        wide = pooled.flatten(1).repeat(1, 1 << 14)
        return (wide.unsqueeze(2) * wide.unsqueeze(1)[:, :, : 1 << 15]).sum((1, 2)) + dense.sum(1)


class Wide(nn.Module):
    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        return dense + pooled.sum((1, 2)).unsqueeze(1)


def save(module: nn.Module, path: Path, **limits: int) -> Path:
    batch: Any = torch.export.Dim("batch", **(limits or {"min": 1, "max": 4096}))
    example = (torch.randn(3, 3), torch.randn(3, 2, 4))
    dynamic = {"dense": {0: batch}, "pooled": {0: batch}}
    torch.export.save(torch.export.export(module, example, dynamic_shapes=dynamic), path)
    return path


def test_the_batches_that_a_tower_takes_are_read(tmp_path: Path) -> None:
    tried = try_tower(save(Sum().eval(), tmp_path / "t.pt2", min=2, max=4), MODEL)
    assert (tried.batch_min, tried.batch_max) == (2, 4)
    assert "limits" in tried.enforced


def test_zeros_need_not_be_predicted(tmp_path: Path) -> None:
    assert try_tower(save(NotZero().eval(), tmp_path / "t.pt2"), MODEL).batch_max == 4096


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Mixing(), "depends on the other samples of its batch"),
        (Greedy(), "not enough memory|can't allocate"),
        (Wide(), "to one prediction per sample"),
    ],
    ids=["mixing", "greedy", "wide"],
)
def test_a_tower_that_predicts_wrongly_is_refused(
    tmp_path: Path, module: nn.Module, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        try_tower(save(module.eval(), tmp_path / "t.pt2"), MODEL)


def test_a_tower_of_other_features_is_refused(tmp_path: Path) -> None:
    other = MODEL.model_copy(update={"dense_features": 5})
    with pytest.raises(ModelError, match=r"takes dense \(B, 3\).*the model has dense \(B, 5\)"):
        try_tower(save(Sum().eval(), tmp_path / "t.pt2"), other)


def test_a_hostile_archive_is_refused_by_name(tmp_path: Path) -> None:
    files = take_apart(save(Sum().eval(), tmp_path / "t.pt2"))
    add_node("torch.ops.aten.from_file.default")(files, tmp_path / "bomb")
    hostile = put_together(files, tmp_path / "hostile.pt2")
    with pytest.raises(ArtifactError, match="from_file.default is not on"):
        try_tower(hostile, MODEL)
