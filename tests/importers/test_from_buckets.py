"""Checkpoints in a bucket: read by ranges as they are asked for, into the bundle of a file's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from erless.cli.main import app
from erless.errors import CheckpointError, StoreError
from erless.importers.checkpoint import open_checkpoint, whole
from erless.importers.distributed import METADATA
from erless.importers.inspect import inspect_checkpoint
from erless.importers.lazy import LazyTensor
from erless.importers.torchrec import import_torchrec
from erless.storage.ranged import BLOCK_BYTES
from erless.storage.s3.ranges import S3Ranges
from tests.buckets import S3
from tests.importers.test_distributed import save_pieces
from tests.importers.test_torchrec import DIM, SHARED, State, state

ROWS = 20_000
TABLE = "sparse_arch.embedding_bag_collection.embedding_bags.a.weight"


def save_legacy(tensors: State, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


SAVERS: dict[str, Callable[[State, Path], None]] = {
    "c.safetensors": save_file,
    "c.pt": torch.save,
    "old.pt": save_legacy,
    "folder": lambda tensors, path: save_pieces(path, dict(tensors)),
}


@pytest.fixture
def large() -> State:
    """A model of which one table is nearly all."""
    tensors = state()
    tensors[TABLE] = torch.randn(ROWS, DIM)
    return tensors


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read of a bucket."""
    counted: list[int] = []
    read_into = S3Ranges.read_into

    def counting(self: S3Ranges, offset: int, view: memoryview) -> None:
        counted.append(len(view))
        read_into(self, offset, view)

    monkeypatch.setattr(S3Ranges, "read_into", counting)
    return counted


def upload(s3: S3, path: Path) -> str:
    """Put a file or folder into the bucket, and return its URL."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        key = file.relative_to(path.parent).as_posix()
        s3.client().put_object(Bucket=s3.bucket, Key=key, Body=file.read_bytes())
    return f"s3://{s3.bucket}/{path.name}"


@pytest.mark.parametrize("name", SAVERS)
def test_rows_come_as_they_are_asked_for_and_no_byte_twice(
    name: str,
    large: State,
    s3: S3,
    tmp_path: Path,
    reads: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / name
    SAVERS[name](large, path)
    url = upload(s3, path)
    opened = open_checkpoint(url, s3.endpoint_url).tensors
    assert sum(reads) <= 8 * BLOCK_BYTES  # directories, pickles, the header
    table = opened[TABLE]
    assert isinstance(table, LazyTensor)
    reads.clear()
    assert torch.equal(table[7:107], large[TABLE][7:107])
    pieces = 2 if name == "folder" else 1
    assert sum(reads) <= pieces * (100 * DIM * 4 + 4 * BLOCK_BYTES)
    assert {key: whole(each).tolist() for key, each in opened.items()} == {
        key: each.tolist() for key, each in large.items()
    }
    reads.clear()
    chunk = 32 * BLOCK_BYTES // 8
    monkeypatch.setattr("erless.importers.bundle.CHUNK_BYTES", chunk)
    remote = import_torchrec(url, tmp_path / "r", replace(SHARED, endpoint_url=s3.endpoint_url))
    local = import_torchrec(path, tmp_path / "l", SHARED)
    assert remote.digest == local.digest
    assert max(reads) <= chunk  # what is held at a time
    assert sum(reads) <= ROWS * DIM * 4 + 24 * BLOCK_BYTES


def test_what_is_not_there_altered_or_cut_short_is_told(
    large: State, s3: S3, tmp_path: Path
) -> None:
    absent = f"s3://{s3.bucket}/absent"
    with pytest.raises(CheckpointError, match=rf"absent.*, and no {METADATA} below it"):
        open_checkpoint(absent, s3.endpoint_url)
    path = tmp_path / "c.safetensors"
    save_file(large, path)
    url = upload(s3, path)
    table = open_checkpoint(url, s3.endpoint_url).tensors[TABLE]
    torch.save(large, path)  # written over meanwhile
    upload(s3, path)
    with pytest.raises(StoreError, match=r"c\.safetensors was written by someone else meanwhile"):
        table[0:ROWS]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"c\.safetensors: not a safetensors file but a zip"):
        open_checkpoint(upload(s3, path), s3.endpoint_url)
    save_pieces(tmp_path / "folder", dict(large))
    url = upload(s3, tmp_path / "folder")
    piece = next(file for file in (tmp_path / "folder").iterdir() if file.name != METADATA)
    s3.client().delete_object(Bucket=s3.bucket, Key=f"folder/{piece.name}")
    with pytest.raises(CheckpointError, match=piece.name):
        open_checkpoint(url, s3.endpoint_url)


def test_pieces_do_not_lead_out_of_the_prefix(large: State, s3: S3, tmp_path: Path) -> None:
    save_pieces(tmp_path / "folder", dict(large))
    metadata = tmp_path / "folder" / METADATA
    name = next(file.name for file in metadata.parent.iterdir() if file.name != METADATA)
    other = b"../" + name.encode()[3:]  # as long, so that the pickle stays whole
    metadata.write_bytes(metadata.read_bytes().replace(name.encode(), other))
    with pytest.raises(CheckpointError, match="leads out of"):
        open_checkpoint(upload(s3, tmp_path / "folder"), s3.endpoint_url)


def test_the_command_line_takes_a_bucket(large: State, s3: S3, tmp_path: Path) -> None:
    save_file(large, tmp_path / "c.safetensors")
    url = upload(s3, tmp_path / "c.safetensors")
    command = ["import", "torchrec", url, "--endpoint-url", s3.endpoint_url, "--pooling", "sum"]
    command += ["--tables", "a,b", "--features", "a=a1,a2", "--out", str(tmp_path / "m")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m" / "model.json").is_file()
    found = inspect_checkpoint(url, s3.endpoint_url)
    assert (found.made_by, found.command.split()[:4]) == (
        "torchrec",
        ["erless", "import", "torchrec", url],
    )
