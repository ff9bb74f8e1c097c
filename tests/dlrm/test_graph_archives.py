"""Who is at fault where an archive does not compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erless.dlrm import archive
from erless.dlrm.bfloat16 import from_bfloat16, to_bfloat16
from erless.dlrm.graph_archives import from_numpy, open_compute, to_numpy
from erless.errors import QueryError, ServeError


class Positions(nn.Module):
    """A small table, which stays in the tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, places: Tensor) -> Tensor:
        vectors: Tensor = self.table(places)
        return vectors.sum(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Positions(), (torch.arange(4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "tower.pt2")
    return tmp_path / "tower.pt2"


def test_an_input_that_does_not_fit_is_the_clients_fault(path: Path) -> None:
    compute = open_compute(path, ["places"], ["scores"])
    with pytest.raises(QueryError, match=r"the model does not take places \[2\]: index out of"):
        compute({"places": np.array([3, 10])})
    assert compute({"places": np.array([3])})["scores"].shape == (1,)


def test_memory_that_is_not_there_is_the_servers_fault(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(nn.Module):
        def forward(self, places: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(archive, "build_module", lambda _: Full())
    with pytest.raises(ServeError, match="cannot compute: CUDA out of memory") as raised:
        open_compute(path, ["places"], ["scores"])({"places": np.array([3])})
    assert raised.value.status == 503


def test_bfloat16_is_its_bits() -> None:
    values = torch.randn(500) * 1e3
    values[0], values[1] = float("inf"), 0.0
    bits = to_numpy(values.to(torch.bfloat16))
    assert bits.tolist() == to_bfloat16(values.numpy()).tolist()
    assert from_numpy(bits).dtype is torch.bfloat16
    assert from_bfloat16(bits).tolist() == values.to(torch.bfloat16).float().tolist()
