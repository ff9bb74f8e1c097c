"""Checkpoints: what wrappers do is undone, what cannot be used is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from erless.errors import CheckpointError, ErlessError
from erless.importers.checkpoint import open_checkpoint, whole

STATE = {"emb.weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(5)}


def same(path: Path, expected: dict[str, Tensor]) -> None:
    tensors = open_checkpoint(path).tensors
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(whole(tensors[name]), tensor)
        assert tensors[name].dtype == tensor.dtype


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_without_torch(tmp_path: Path, zipped: bool) -> None:
    base = torch.randn(6, 4)
    marked = torch.randn(3)
    vars(marked)["of_python"] = True
    state = {
        "marked": marked,
        "parameter": nn.Parameter(torch.randn(2, 3)),
        "transposed": base.t(),
        "part": base[1:4, 1:3],
        "shared": base,
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "double": base.double(),
        "ids": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    same(tmp_path / "c.pt", {name: tensor.detach() for name, tensor in state.items()})


@pytest.mark.parametrize(
    "document",
    [
        {"model": STATE},
        {"module": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        {"state_dict": STATE, "epoch": 3, "loss": torch.tensor(1.0)},
        {"model_state_dict": STATE, "iter": np.int64(3)},
        {"model": {"state_dict": STATE}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {f"_orig_mod.module.{name}": tensor for name, tensor in STATE.items()},
        {"emb.module.weight": STATE["emb.weight"], "bias": STATE["bias"]},
    ],
    ids=["model", "module", "state_dict", "lightning", "twice", "ddp", "compiled", "inner"],
)
def test_wrappers_are_undone(tmp_path: Path, document: dict[str, Any]) -> None:
    torch.save(document, tmp_path / "c.pt")
    same(tmp_path / "c.pt", STATE)


def test_only_a_state_dict_tells_the_order_of_its_tables(tmp_path: Path) -> None:
    state = nn.ModuleDict({name: nn.Linear(2, 2) for name in "zam"}).state_dict()
    for document, ordered in (
        (state, True),
        ({"model": state, "epoch": 3}, True),
        (dict(state), False),  # as a merged distributed checkpoint is
        (OrderedDict(model=dict(state)), False),
    ):
        for zipped in (True, False):
            torch.save(document, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
            checkpoint = open_checkpoint(tmp_path / "c.pt")
            assert list(checkpoint.tensors) == list(state)
            assert checkpoint.ordered is ordered


def test_safetensors_are_told_by_their_content(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path / "pytorch_model.bin")
    assert not checkpoint.ordered
    assert torch.equal(whole(checkpoint.tensors["bias"]), STATE["bias"])


def test_tensors_that_nobody_takes_are_refused(tmp_path: Path) -> None:
    torch.save({"model": STATE, "ema": {"bias": torch.zeros(5)}}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="under 'ema' are not used: .* from 'model'"):
        open_checkpoint(tmp_path / "c.pt")


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        rows = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8)
        self.register_buffer("weight", rows)


@pytest.mark.filterwarnings("ignore")
def test_other_tensors_are_refused_by_what_they_are(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for name, tensor in {
        "nested": nested,
        "meta": torch.ones(3, 4, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": Quantized().weight,
        "complex": torch.ones(3, dtype=torch.complex64),
    }.items():
        torch.save({"weight": tensor}, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match="only plain dense tensors import|other pickled"):
            open_checkpoint(tmp_path / f"{name}.pt")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "c.pt")
    data = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt.gz").write_bytes(gzip.compress(data))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("state_dict")
    (tmp_path / "deep.safetensors").write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)
    for name, message in (
        ("c.pt.gz", "is compressed \\(gzip\\); decompress it first"),
        ("folder", "is a folder without .metadata"),
        ("empty.pt", "truncated or not a checkpoint \\(0 bytes\\)"),
        ("text.pt", "truncated or not a checkpoint"),
        ("deep.safetensors", "header at offset 8 is damaged"),
    ):
        with pytest.raises(ErlessError, match=message):
            open_checkpoint(tmp_path / name)


def repacked(path: Path, out: Path, changes: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            inner = name.partition("/")[2]
            target.writestr(name, changes.get(inner, source.read(name)))
    return out


def test_a_short_record_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(200.0)}, tmp_path / "c.pt")
    short = repacked(tmp_path / "c.pt", tmp_path / "s.pt", {"data/0": b"\0" * 8})
    with pytest.raises(CheckpointError, match="storage 0 needs 800 bytes, the file has 8"):
        open_checkpoint(short)


def test_a_tensor_that_repeats_its_elements_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1).expand(1 << 40)}, tmp_path / "c.pt")
    assert (tmp_path / "c.pt").stat().st_size < 4096
    with pytest.raises(CheckpointError, match="weight repeats its elements: 1,099,511,627,776"):
        open_checkpoint(tmp_path / "c.pt")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(self.path),))


def tuples(depth: int, last: bytes) -> bytes:
    return b"\x80\x02}(" + b")" + b"\x85" * depth + last + b"."


def laughs(levels: int) -> bytes:
    """Dictionaries of dictionaries, each named ten times by the next."""
    text = b"\x80\x04}\x94"
    for level in range(levels):
        text += b"}(" + b"".join(b"K%ch%c" % (n, level) for n in range(10)) + b"u\x94"
    return text + b"."


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "a call": lambda bomb: pickle.dumps({"a": Bomb(bomb)}),
    "protocol 0": lambda bomb: pickle.dumps({"a": Bomb(bomb)}, protocol=0),
    "a global": lambda bomb: b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.",
    "a name on the stack": lambda bomb: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "an instance": lambda bomb: b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",
    "an extension": lambda bomb: b"\x80\x02\x82\x01.",
    "a nested load": lambda bomb: b"\x80\x02ctorch.storage\n_load_from_bytes\n.",
    "no end": lambda bomb: b"\x80\x02}",
    "an empty stack": lambda bomb: b"\x80\x02R.",
    "no mark": lambda bomb: b"\x80\x02u.",
    "memory of nobody": lambda bomb: b"\x80\x02h\x07.",
    "memory far out": lambda bomb: b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7f0.",
    "a long string": lambda bomb: b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "a key of tuples": lambda bomb: tuples(100_000, b"Nu"),
    "nested tuples": lambda bomb: tuples(100_000, b"0000"),
    "a list in itself": lambda bomb: b"\x80\x02]q\x00h\x00a.",
    "a number of digits": lambda bomb: b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "many laughs": lambda bomb: laughs(30),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_pickle_is_only_read(tmp_path: Path, attack: str) -> None:
    torch.save(STATE, tmp_path / "c.pt")
    data = HOSTILE[attack](tmp_path / "bomb")
    hostile = repacked(tmp_path / "c.pt", tmp_path / "h.pt", {"data.pkl": data})
    with pytest.raises(CheckpointError):
        open_checkpoint(hostile)
    (tmp_path / "plain.pt").write_bytes(data)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "plain.pt")
    assert not (tmp_path / "bomb").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    buffers = {}
    for name, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save({"model": STATE, "n": 1}, buffer, _use_new_zipfile_serialization=zipped)
        buffers[name] = buffer.getvalue()
    return buffers


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(["zip", "legacy"]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1),
    cut=st.floats(0.1, 1) | st.just(1.0),
)
def test_a_changed_checkpoint_loads_or_is_refused(
    saved: dict[str, bytes],
    tmp_path: Path,
    kind: str,
    changes: list[tuple[int, int]],
    cut: float,
) -> None:
    data = bytearray(saved[kind])
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / "c.pt").write_bytes(data[: int(len(data) * cut)])
    try:
        tensors = open_checkpoint(tmp_path / "c.pt").tensors
    except ErlessError as error:
        assert str(tmp_path) in str(error)
    else:
        for tensor in tensors.values():
            whole(tensor).double().sum()  # every element lies in the file


def test_a_table_larger_than_its_file_is_never_made(tmp_path: Path) -> None:
    header = json.dumps({"t": {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 16]}})
    data = struct.pack("<Q", len(header)) + header.encode() + bytes(16)
    (tmp_path / "c.safetensors").write_bytes(data)
    with pytest.raises(ErlessError):
        open_checkpoint(tmp_path / "c.safetensors")
    shutil.copy(tmp_path / "c.safetensors", tmp_path / "c.bin")
    with pytest.raises(ErlessError):
        open_checkpoint(tmp_path / "c.bin")
