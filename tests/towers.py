"""Towers of other architectures, exported as a user would."""

from pathlib import Path

import torch
from torch import Tensor, nn


class DeepFm(nn.Module):
    """DeepFM's second-order term and a small deep part (arXiv 1703.04247)."""

    def __init__(self, dense: int, tables: int, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.deep = nn.Sequential(nn.Linear(dense + tables * dim, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        summed = pooled.sum(1)
        second = 0.5 * (summed * summed - (pooled * pooled).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.deep(torch.cat([dense, pooled.flatten(1)], 1)) + second)


class CrossV2(nn.Module):
    """DCN-v2: two cross layers (arXiv 2008.13535)."""

    def __init__(self, dense: int, tables: int, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = dense + tables * dim
        self.cross = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.out = nn.Linear(width, 1)

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        first = torch.cat([dense, pooled.flatten(1)], 1)
        x = first
        for layer in self.cross:
            x = first * layer(x) + x
        return torch.sigmoid(self.out(x)).squeeze(1)


def export(module: nn.Module, path: Path, dense: int, tables: int, dim: int) -> None:
    batch = torch.export.Dim("batch", min=1, max=65536)
    example = (torch.randn(4, dense), torch.randn(4, tables, dim))
    program = torch.export.export(
        module.eval(), example, dynamic_shapes={"dense": {0: batch}, "pooled": {0: batch}}
    )
    torch.export.save(program, path)
