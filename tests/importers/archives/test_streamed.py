"""Whole models in a bucket: their large tables go into the bundle by ranges, once."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from erless.cli.main import app
from erless.dlrm.archive import read_archive
from erless.errors import ArtifactError, StoreError
from erless.importers.archives import streamed
from erless.importers.archives.streamed import archive_here
from erless.importers.archives.whole_model import import_archive
from erless.importers.inspect import inspect_checkpoint
from erless.storage.ranged import BLOCK_BYTES
from tests.buckets import S3
from tests.importers.test_from_buckets import reads, upload

__all__ = ["reads"]
pytestmark = pytest.mark.filterwarnings("ignore:table tied .* is kept in the tower too")

ROWS, DIM = 60_000, 8


class Ranker(nn.Module):
    """Tables of every kind: large, of bags, tied to the output, of float16, small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(ROWS, DIM)
        self.tags = nn.EmbeddingBag(40_000, DIM, mode="mean")
        self.tied = nn.Embedding(40_000, DIM)
        self.narrow = nn.Embedding(80_000, DIM).half()
        self.days = nn.Embedding(7, DIM)
        self.out = nn.Linear(DIM, 1)

    def forward(self, item: Tensor, tags: Tensor, day: Tensor) -> Tensor:
        x = self.items(item) + self.tags(tags) + self.days(day)
        x = x + self.tied(item % 40_000) + self.narrow(item).float() + self.tied.weight.mean(0)
        score: Tensor = self.out(x)
        return score.squeeze(1)


def saved(path: Path) -> Path:
    example = (torch.arange(4), torch.arange(12).view(4, 3), torch.arange(4))
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in example)
    torch.export.save(torch.export.export(Ranker().eval(), example, dynamic_shapes=shapes), path)
    return path


def test_the_bundle_is_that_of_the_file_and_no_table_is_copied_or_read_twice(
    s3: S3, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "ranker.pt2")
    url = upload(s3, path)
    chunk = 8 * BLOCK_BYTES
    monkeypatch.setattr("erless.importers.bundle.CHUNK_BYTES", chunk)
    monkeypatch.setattr(streamed, "CHUNK_BYTES", chunk)
    remote = import_archive(url, tmp_path / "there", endpoint_url=s3.endpoint_url)
    assert [table.name for table in remote.model.tables] == ["items", "tags", "tied", "narrow"]
    assert max(reads) <= chunk  # what is held at a time
    assert sum(reads) <= path.stat().st_size + 24 * BLOCK_BYTES
    local = import_archive(path, tmp_path / "here")
    assert remote.digest == local.digest
    assert sorted(file.name for file in tmp_path.iterdir()) == ["here", "ranker.pt2", "there"]


def test_the_copy_is_an_archive_with_zeros_for_its_large_tables(s3: S3, tmp_path: Path) -> None:
    path = saved(tmp_path / "ranker.pt2")
    url = upload(s3, path)
    with archive_here(url, tmp_path / "m", 1_000, s3.endpoint_url) as here:
        assert set(here.tables) == {"items.weight", "tags.weight"}
        missing = 4 * DIM * (ROWS + 40_000)
        assert here.path.stat().st_size == path.stat().st_size
        assert 512 * here.path.stat().st_blocks <= path.stat().st_size - missing + 16 * 4096
        copy, whole = read_archive(here.path), read_archive(path)
        for name in whole.signature.tensors.values():
            tensor = whole.payloads.tensor(name)
            if name in here.tables:
                assert torch.equal(here.tables[name].whole(), tensor)
                tensor = torch.zeros_like(tensor)
            assert torch.equal(copy.payloads.tensor(name), tensor)
    assert not here.path.exists()


@pytest.mark.parametrize("size", [0, 1, 1000, 4096])
def test_checksums_of_zeros(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "CHUNK_BYTES", 1000)
    assert streamed._checksum_of_zeros(size) == zlib.crc32(bytes(size))


def test_what_is_absent_damaged_or_written_over_is_told(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    with pytest.raises(ArtifactError, match=r"absent\.pt2"):
        import_archive(f"s3://{s3.bucket}/absent.pt2", out, endpoint_url=s3.endpoint_url)
    path = saved(tmp_path / "ranker.pt2")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ArtifactError, match=r"s3://.*ranker\.pt2: truncated or not a torch"):
        import_archive(upload(s3, path), out, endpoint_url=s3.endpoint_url)
    path.write_bytes(whole)
    url = upload(s3, path)
    build = streamed._copy

    def written_over(*given: object) -> None:
        build(*given)  # type: ignore[arg-type]
        path.write_bytes(whole + b"\0")
        upload(s3, path)

    monkeypatch.setattr(streamed, "_copy", written_over)
    with pytest.raises(StoreError, match="was written by someone else meanwhile"):
        import_archive(url, out, endpoint_url=s3.endpoint_url)
    assert [file.name for file in tmp_path.iterdir()] == ["ranker.pt2"]


def test_the_command_line_takes_a_bucket(s3: S3, tmp_path: Path) -> None:
    url = upload(s3, saved(tmp_path / "ranker.pt2"))
    found = inspect_checkpoint(url, s3.endpoint_url)
    assert found.made_by == "torch.export.save"
    assert found.command == f"erless import torch {url} --out model"
    command = [*found.command.split()[1:-1], str(tmp_path / "m")]
    done = CliRunner().invoke(app, [*command, "--endpoint-url", s3.endpoint_url])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m" / "model.json").is_file()
