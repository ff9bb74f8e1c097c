"""What a tower must be: in evaluation mode, with one output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from erless.dlrm.archive import load_exported
from erless.errors import ArtifactError


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        kept: Tensor = self.drop(dense)
        return kept.sum(1) + pooled.sum((1, 2))


class Norming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        rows: Tensor = self.norm(dense)
        return rows.sum(1) + pooled.sum((1, 2))


class Two(nn.Module):
    def forward(self, dense: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return dense.sum(1), pooled.sum((1, 2))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Dropping().train(), r"dropout.default is in training mode; call \.eval\(\)"),
        (Norming().train(), r"training mode; call \.eval\(\)"),
        (Two(), r"gives 2 outputs \(output_0, output_1\); a tower gives one prediction"),
    ],
    ids=["dropout", "batch norm", "two outputs"],
)
def test_an_export_that_cannot_be_served_is_refused(
    tmp_path: Path, module: nn.Module, message: str
) -> None:
    path = tmp_path / "tower.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.randn(3, 3), torch.randn(3, 2, 4))
    dynamic = {"dense": {0: batch}, "pooled": {0: batch}}
    torch.export.save(torch.export.export(module, example, dynamic_shapes=dynamic), path)
    with pytest.raises(ArtifactError, match=message):
        load_exported(path)
