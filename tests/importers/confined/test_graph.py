"""A whole model of an archive runs in a process that can do nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from erless.errors import ArtifactError, ModelError
from erless.importers.archives.whole_model import import_archive
from erless.importers.confined.graph import TriedModel


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(50, 4)

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.items(ids)
        return vectors.sum((1, 2))


class Greedy(Scores):
    """A batch of three needs 24 GB."""

    def forward(self, ids: Tensor) -> Tensor:
        wide = self.items(ids).flatten(1).repeat(1, 4096)
        square: Tensor = wide.unsqueeze(2) * wide.unsqueeze(1)
        return square.sum((1, 2))


def save(module: nn.Module, path: Path) -> Path:
    batch = torch.export.Dim("batch", min=1)
    example = (torch.zeros(4, 11, dtype=torch.int64),)
    program = torch.export.export(module.eval(), example, dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def test_the_process_has_no_rights_and_compares(tmp_path: Path) -> None:
    archive = save(Scores(), tmp_path / "m.pt2")
    import_archive(archive, tmp_path / "good", small_rows=0)
    other = save(Scores(), tmp_path / "other.pt2")
    import_archive(other, tmp_path / "bad", small_rows=0)
    with TriedModel(archive) as model:
        assert model.enforced[0] == "limits"
        assert model.smallest_batch(tmp_path / "good") == 1
        with pytest.raises(ModelError, match="differs from the model's"):
            model.smallest_batch(tmp_path / "bad")


def test_a_model_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not take a made-up example"):
        import_archive(save(Greedy(), tmp_path / "m.pt2"), tmp_path / "m", small_rows=0)
    assert not (tmp_path / "m").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"PK" + bytes(100))
    with pytest.raises(ArtifactError, match=r"m\.pt2"):
        import_archive(tmp_path / "m.pt2", tmp_path / "m")
