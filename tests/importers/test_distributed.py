"""Distributed checkpoints: pieces put together, and refused where they do not fit."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_saver import save

from erless.errors import CheckpointError, ErlessError, OptionError
from erless.importers.checkpoint import open_checkpoint, whole
from erless.importers.torchrec import import_torchrec
from tests.importers.test_torchrec import SHARED, assert_imports, state


class Pieces(DefaultSavePlanner):
    """Saves tables cut in two, as two trainers do: by rows and by columns."""

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        items = []
        for item in plan.items:
            data = item.tensor_data
            axis = 0 if ".a." in item.index.fqn else 1
            if data is None or "embedding_bags" not in item.index.fqn:
                items.append(item)
                continue
            for half in range(2):
                offsets, sizes = [0, 0], list(data.size)
                sizes[axis] //= 2
                offsets[axis] = half * sizes[axis]
                sizes[axis] = sizes[axis] if not half else data.size[axis] - sizes[axis]
                chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                items.append(
                    WriteItem(
                        index=MetadataIndex(item.index.fqn, torch.Size(offsets), half),
                        type=WriteItemType.SHARD,
                        tensor_data=TensorWriteData(chunk, data.properties, data.size),
                    )
                )
        self.plan = SavePlan(items, planner_data=plan.planner_data)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        index, data = write_item.index, write_item.tensor_data
        if data is None:  # a number
            return super().resolve_data(write_item)
        first = MetadataIndex(index.fqn, torch.Size([0] * len(data.size)))
        found = super().resolve_data(replace(write_item, index=first))
        assert isinstance(found, torch.Tensor)
        bounds = zip(data.chunk.offsets, data.chunk.sizes, strict=True)
        return found[tuple(slice(begin, begin + size) for begin, size in bounds)].clone()


def save_pieces(folder: Path, document: dict[str, Any]) -> None:
    """Write a distributed checkpoint whose tables are in pieces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not distributed
        save(document, checkpoint_id=folder, planner=Pieces(), no_dist=True)


@pytest.mark.parametrize("nested", [True, False])
def test_a_distributed_checkpoint_in_pieces(tmp_path: Path, nested: bool) -> None:
    tensors = state(2)
    more = {"epoch": 3, "optimizer": {"step": torch.ones(2)}, "scalar": torch.tensor(2.0)}
    save_pieces(tmp_path / "c", {"model": tensors, **more} if nested else dict(tensors))
    if nested:
        with pytest.raises(CheckpointError, match="tensors under 'scalar' are not used"):
            import_torchrec(tmp_path / "c", tmp_path / "m", SHARED)
        del more["scalar"]
        save_pieces(tmp_path / "d", {"model": tensors, **more})
    folder = tmp_path / ("d" if nested else "c")
    opened = open_checkpoint(folder)
    assert not opened.ordered
    assert {name: whole(found).tolist() for name, found in opened.tensors.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    assert_imports(folder, tmp_path / "m", tensors, SHARED)
    with pytest.raises(OptionError, match="does not record the order"):
        import_torchrec(folder, tmp_path / "n", replace(SHARED, tables=None))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


Spoil = Callable[[Path, Any], Any]


def without_a_piece(_: Path, metadata: Any) -> Any:
    name = next(name for name in metadata.state_dict_metadata if ".a." in name)
    del metadata.state_dict_metadata[name].chunks[0]
    return metadata


def with_a_piece_twice(_: Path, metadata: Any) -> Any:
    name = next(name for name in metadata.state_dict_metadata if ".a." in name)
    chunks = metadata.state_dict_metadata[name].chunks
    chunks[0] = chunks[1]
    return metadata


def of_another_size(_: Path, metadata: Any) -> Any:
    for entry in metadata.state_dict_metadata.values():
        if len(entry.size) == 1 and entry.size[0] == 6:
            entry.size = torch.Size([5])
            entry.chunks[0].sizes = torch.Size([5])
    return metadata


def outside(folder: Path, metadata: Any) -> Any:
    (folder.parent / "away").write_bytes((folder / "__0_0.distcp").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../away"
    return metadata


def beyond(_: Path, metadata: Any) -> Any:
    for place in metadata.storage_data.values():
        place.offset += 1 << 40
    return metadata


def compressed(_: Path, metadata: Any) -> Any:
    for place in metadata.storage_data.values():
        place.transform_descriptors = ["zstd"]
    return metadata


def with_a_gadget(folder: Path, metadata: Any) -> Any:
    metadata.storage_meta = Bomb(folder.parent / "bomb")
    return metadata


def of_nothing(_: Path, metadata: Any) -> Any:
    return metadata.state_dict_metadata


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_piece, "pieces of .* do not add up"),
        (with_a_piece_twice, "pieces of .* do not add up"),
        (of_another_size, "altered, or of another save"),
        (outside, "leads out of"),
        (beyond, "truncated"),
        (compressed, "stored through"),
        (with_a_gadget, "erless executes none"),
        (of_nothing, "Metadata is missing"),
    ],
)
def test_a_spoilt_distributed_checkpoint_is_refused(
    tmp_path: Path, spoil: Spoil, message: str
) -> None:
    folder = tmp_path / "c"
    save_pieces(folder, {"model": state()})
    path = folder / ".metadata"
    own = pickle.loads(path.read_bytes())  # noqa: S301 - written three lines above
    metadata = spoil(folder, own)
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ErlessError, match=message):
        import_torchrec(folder, tmp_path / "m", SHARED)
    assert not (tmp_path / "bomb").exists()
    assert not (tmp_path / "m").exists()


def test_a_lost_or_damaged_file_of_a_trainer_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    save_pieces(folder, {"model": state()})
    file = folder / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    for place in range(0, len(data), 7):
        data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(ErlessError, match="distcp"):
        import_torchrec(folder, tmp_path / "m", SHARED)
    file.unlink()
    with pytest.raises(ErlessError, match=r"__0_0\.distcp"):
        import_torchrec(folder, tmp_path / "m", SHARED)
