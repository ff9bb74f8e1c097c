"""Each name, type and shape in a checkpoint changed, one at a time: the same model, or an error.

What torch predicts with the unchanged model is what every bundle that comes out must predict. The
weights are multiples of 1/64, which float16 and bfloat16 hold too.
"""

from __future__ import annotations

import itertools
import json
import pickletools
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from erless.dlrm.reference import Monolith
from erless.errors import ErlessError
from erless.importers.checkpoint import open_checkpoint, whole
from erless.importers.dlrm import import_dlrm
from erless.importers.options import ImportOptions
from erless.importers.poolings import Poolings
from erless.importers.torchrec import import_torchrec
from erless.specs.model import Pooling
from tests.importers.test_dlrm import Dlrm, TorchrecDlrm, queries

State = OrderedDict[str, Tensor]

MODELS = {"dlrm": Dlrm, "torchrec": TorchrecDlrm}
CONTAINERS = ("zip", "safetensors")
SAFETENSORS_ORDER = ["t_x", "t_y", "t_z"]
OTHER_TYPES = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool),
    torch.float8_e4m3fn,
)


class Sweep:
    """A model of torch, what it predicts, and how its changed checkpoints come out."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        model: nn.Module = MODELS[kind]()
        with torch.no_grad():
            for weights in model.parameters():
                weights.copy_((weights * 64).round() / 64)
        self.state: State = OrderedDict(model.state_dict())
        self.query, bags, dense = queries()
        logits = model(dense, bags).detach().numpy()[:, 0]
        self.expected = logits if kind == "dlrm" else 1 / (1 + np.exp(-logits))
        self.outcomes: Counter[str] = Counter()

    def save(self, state: State, container: str) -> Path:
        """`state` as a file of `container`."""
        path = self.folder / f"checkpoint.{container}"
        if container == "safetensors":
            whole = {name: tensor.contiguous() for name, tensor in state.items()}
            safetensors.torch.save_file(whole, path)
        else:
            torch.save(state, path)
        return path

    def check(self, path: Path, changed: str) -> None:
        """Import `path`: the same predictions, or an error."""
        bundle = self.folder / "bundle"
        options = ImportOptions(overwrite=True)
        try:
            if self.kind == "dlrm":
                import_dlrm(path, bundle, options)
            else:
                sorts = path.suffix == ".safetensors"
                order = SAFETENSORS_ORDER if sorts else None
                mean = ImportOptions(Poolings(Pooling.MEAN), tables=order, overwrite=True)
                import_torchrec(path, bundle, mean)
            predictions = Monolith.load(bundle).predict(self.query)
        except ErlessError as error:  # of the import, or of a row that its table lacks
            assert str(error), changed
            self.outcomes["refused"] += 1
            return
        assert np.abs(predictions - self.expected).max() <= 1e-6, f"{changed}: another model"
        self.outcomes["same"] += 1


@pytest.fixture(params=MODELS)
def sweep(request: pytest.FixtureRequest, tmp_path: Path) -> Sweep:
    return Sweep(request.param, tmp_path)


def renamed(state: State) -> Iterator[tuple[str, State]]:
    """Each key as a misspelling, another number, another place, in other case, or gone."""
    for name in state:
        number = next((part for part in name.split(".") if part.isdigit()), "0")
        for other in (
            f"{name}_x",
            f"x{name}",
            f"more.{name}",
            name.replace("weight", "weigth").replace("bias", "biass"),
            name.replace(number, str(int(number) + 1), 1),
            name.replace(number, str(int(number) + 40), 1),
            name.upper(),
            name.replace(".", "_"),
            None,
        ):
            if other != name and other not in state:
                items = ((other if key == name else key, t) for key, t in state.items())
                yield (
                    f"{name} called {other}",
                    OrderedDict((key, t) for key, t in items if key is not None),
                )


def retyped(state: State) -> Iterator[tuple[str, State]]:
    """Each tensor in every other dtype; the numbers change where the type cannot hold them."""
    for name, tensor in state.items():
        for dtype in OTHER_TYPES:
            yield f"{name} as {dtype}", OrderedDict(state, **{name: tensor.to(dtype)})


def reshaped(state: State) -> Iterator[tuple[str, State]]:
    """Each tensor turned, flattened, cut, grown, or with one dimension more."""
    shapes: dict[str, Callable[[Tensor], Tensor]] = {
        "turned": lambda tensor: tensor.t(),
        "flattened": lambda tensor: tensor.reshape(-1),
        "in a row": lambda tensor: tensor.reshape(1, -1),
        "deeper": lambda tensor: tensor.unsqueeze(0),
        "cut": lambda tensor: tensor[: len(tensor) // 2],
        "grown": lambda tensor: torch.cat([tensor, tensor[:1]]),
        "narrower": lambda tensor: tensor[..., :-1],
        "wider": lambda tensor: torch.cat([tensor, tensor[..., :1]], -1),
        "empty": lambda tensor: tensor[:0],
        "scalar": lambda tensor: tensor.reshape(-1)[0],
    }
    for name, tensor in state.items():
        for word, change in shapes.items():
            other = change(tensor)
            if other.shape != tensor.shape:
                yield f"{name} {word}", OrderedDict(state, **{name: other})


def added(state: State) -> Iterator[tuple[str, State]]:
    """One tensor more, called like those that are there."""
    for name in (*(f"{name}_bar" for name in state), "v_W_l.0", "emb_l.3.bias", "bot_l.1.weight"):
        for tensor in (torch.ones(1), torch.ones(3, 4)):
            yield f"and {name} {tuple(tensor.shape)}", OrderedDict(state, **{name: tensor})


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("change", [renamed, retyped, reshaped, added])
def test_a_changed_tensor_never_makes_another_model(
    sweep: Sweep, container: str, change: Callable[[State], Iterator[tuple[str, State]]]
) -> None:
    sweep.check(sweep.save(sweep.state, container), "nothing")
    assert sweep.outcomes["same"] == 1
    for changed, state in change(sweep.state):
        sweep.check(sweep.save(state, container), changed)
    assert sweep.outcomes["refused"] > 10


STATE = OrderedDict(
    {
        "emb.weight": torch.arange(12.0).reshape(3, 4),
        "of.half": torch.arange(6.0).half().reshape(2, 3).t(),
        "bias": torch.ones(5),
    }
)


def repickled(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every argument of a pickle changed, one at a time: texts, names, numbers, flags."""
    steps = [*pickletools.genops(data), (None, None, len(data))]
    for (opcode, argument, begin), (_, _, end) in itertools.pairwise(steps):
        assert begin is not None
        assert end is not None
        others: list[bytes] = []
        if opcode is None:
            continue
        if opcode.name == "BINUNICODE":
            text = str(argument).encode()
            texts = (text[:-1] + b"_", text + b"x", b"", b"0", b"storage")
            others += [b"X" + struct.pack("<I", len(other)) + other for other in texts]
        elif opcode.name == "GLOBAL":
            kinds = ("HalfStorage", "DoubleStorage", "LongStorage", "BFloat16Storage", "Size")
            others += [f"ctorch\n{kind}\n".encode() for kind in kinds]
            others.append(b"ctorch._utils\n_rebuild_tensor\n")
        elif opcode.name in ("BININT", "BININT1", "BININT2"):
            number = int(str(argument))
            others += [
                b"J" + struct.pack("<i", other)
                for other in (number + 1, number - 1, number * 2, 0, -1, 2**31 - 1)
                if other != number
            ]
            others += [b"N", b"\x88", b"]"]
        elif opcode.name in ("NEWTRUE", "NEWFALSE"):
            others += [b"\x88", b"\x89", b"N"]
        for other in others:
            yield f"{opcode.name} {argument} as {other!r}", data[:begin] + other + data[end:]


def same_as(library: Callable[[], dict[str, Tensor]], path: Path, changed: str) -> str:
    """What comes of `path`: what `library` reads of it, or a refusal."""
    try:
        tensors = open_checkpoint(path).tensors
    except ErlessError as error:
        assert str(path) in str(error), f"{changed}: {error}"
        return "refused"
    try:
        expected = library()
    except (RuntimeError, ValueError, KeyError, TypeError):
        expected = dict(STATE)  # a record that only the library needs
    assert sorted(tensors) == sorted(expected), changed
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, changed
        assert torch.equal(whole(tensors[name]), tensor), changed
    return "same"


def test_what_a_pickle_says_is_read_as_torch_does_or_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    path = tmp_path / "changed.pt"
    outcomes: Counter[str] = Counter()
    for changed, data in repickled(records[pickled]):
        with zipfile.ZipFile(path, "w") as archive:
            for name, record in (records | {pickled: data}).items():
                archive.writestr(name, record)
        outcomes[same_as(lambda: torch.load(path, weights_only=True), path, changed)] += 1
    assert outcomes["same"] > 10
    assert outcomes["refused"] > 100


def test_records_of_another_name_are_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "c.pt")
    path = tmp_path / "changed.pt"
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    outcomes: Counter[str] = Counter()
    for renamed_record in records:
        for other in (f"{renamed_record}_x", f"x{renamed_record}", "data", None):
            with zipfile.ZipFile(path, "w") as archive:
                for name, record in records.items():
                    called = other if name == renamed_record else name
                    if called is not None:
                        archive.writestr(called, record)
            changed = f"{renamed_record} called {other}"
            outcomes[same_as(lambda: torch.load(path, weights_only=True), path, changed)] += 1
    assert outcomes["refused"] > 10


def reheaded(header: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a safetensors header renamed, retyped, lost, or of another value."""
    for tensor, fields in header.items():
        for name in (f"{tensor}_x", ""):
            items = header.items()
            yield f"{tensor} {name}", {name if key == tensor else key: f for key, f in items}
        for field, value in fields.items():
            lost = {key: item for key, item in fields.items() if key != field}
            yield f"{tensor} without {field}", header | {tensor: lost}
            yield f"{tensor} with {field}_x", header | {tensor: lost | {f"{field}_x": value}}
            others: list[Any] = [None, 7, "F16", "I32", "BF16", "F64", "f32", [], {}, [0, 1], True]
            if isinstance(value, list):
                for place, number in enumerate(value):
                    for other in (number + 1, number - 1, 0, -1, str(number), float(number), 2**63):
                        others.append([*value[:place], other, *value[place + 1 :]])
                others += [value[::-1], [*value, 1], [value]]
            for other in others:
                if other != value or type(other) is not type(value):
                    yield f"{tensor} {field} {other}", header | {tensor: fields | {field: other}}


def test_what_a_header_says_is_read_as_safetensors_does_or_refused(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in STATE.items()}
    data = safetensors.torch.save(state)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    path = tmp_path / "c.safetensors"
    outcomes: Counter[str] = Counter()
    for changed, other in reheaded(header):
        text = json.dumps(other).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        outcomes[same_as(lambda: safetensors.torch.load_file(path), path, changed)] += 1
    assert outcomes["same"] > 5
    assert outcomes["refused"] > 100
