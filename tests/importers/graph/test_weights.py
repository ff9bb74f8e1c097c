"""Weights that lie elsewhere than in the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import erless
from erless.dlrm.whole_graph import WholeGraph
from erless.errors import ModelError


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(200, 4)
        self.out = nn.Linear(4, 1)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, ids: Tensor) -> Tensor:
        score: Tensor = self.out(self.items(ids).mean(1)) * self.scale
        return score


IDS = torch.arange(12).reshape(4, 3)


def on_meta() -> Scores:
    with torch.device("meta"):
        return Scores()


@pytest.mark.parametrize("form", ["safetensors", "torch.save", "tensors"])
def test_a_model_without_values_takes_those_of_a_checkpoint(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Scores().eval()
    state = model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "m.safetensors")
    torch.save(state, tmp_path / "m.pt")
    places = {"safetensors": tmp_path / "m.safetensors", "torch.save": tmp_path / "m.pt"}
    empty = on_meta()
    erless.export(empty, IDS, tmp_path / "bundle", weights=places.get(form, state), small_rows=0)
    (found,) = WholeGraph(tmp_path / "bundle").predict({"ids": IDS.numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(found), model(IDS).detach())
    assert {weight.device.type for weight in empty.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "lies on the meta device, so it has no values: give weights="),
        ({"out.bias": None}, "out.bias lies on the meta device"),
        ({"items.weight": torch.zeros(200, 5)}, r"items.weight has shape \[200, 4\], given is"),
        ({"more": torch.zeros(1)}, "weights name more, which the model lacks"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    changes: dict[str, Tensor | None] | None, reason: str, tmp_path: Path
) -> None:
    weights = None
    if changes is not None:
        given = {**Scores().state_dict(), **changes}
        weights = {name: value for name, value in given.items() if value is not None}
    empty = on_meta()
    with pytest.raises(ModelError, match=reason):
        erless.export(empty, IDS, tmp_path / "m", weights=weights, small_rows=0)
    assert {weight.device.type for weight in empty.state_dict().values()} == {"meta"}
    assert not (tmp_path / "m").exists()


def test_tied_weights_need_one_of_their_names(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clicked, self.bought = nn.Embedding(60, 4), nn.Embedding(60, 4)
            self.bought.weight = self.clicked.weight

        def forward(self, ids: Tensor) -> Tensor:
            product: Tensor = self.clicked(ids) * self.bought(ids)
            return product.sum((1, 2))

    with torch.device("meta"):
        model = Tied()
    rows = torch.randn(60, 4)
    manifest = erless.export(
        model, IDS, tmp_path / "m", weights={"bought.weight": rows}, small_rows=0
    )
    assert len(manifest.model.tables) == 1
    assert model.bought.weight is model.clicked.weight
    (found,) = WholeGraph(tmp_path / "m").predict({"ids": IDS.numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(found), (rows[IDS] ** 2).sum((1, 2)))


def test_neither_export_nor_pack_holds_a_table_in_memory(tmp_path: Path) -> None:
    megabytes = 320
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.large_export", "--ways", "weights", "pack"),
            *("--gigabytes", str(megabytes / 1000), "--scratch", str(tmp_path / "large")),
        ],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    peaks = [int(line.split('"peak_mb": ')[1].split(",")[0]) for line in done.stdout.splitlines()]
    assert len(peaks) == 2 and max(peaks) < megabytes // 2
