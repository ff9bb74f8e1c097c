"""An exported tower loads; one that brings code along does not, and none of it runs."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from erless.dlrm.exported import load_exported
from erless.errors import ArtifactError
from tests.towers import DeepFm, export

Files = dict[str, bytes]


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(self.path),))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tower") / "tower.pt2"
    export(DeepFm(3, 2, 4), path, 3, 2, 4)
    return path


def rewritten(archive: Path, out: Path, change: Callable[[Files], None]) -> Path:
    with zipfile.ZipFile(archive) as source:
        files = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    change(files)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name, data in files.items():
            target.writestr(f"tower/{name}", data)
    return out


def test_it_predicts_as_the_module_it_was_made_of(archive: Path) -> None:
    module = DeepFm(3, 2, 4)
    loaded = load_exported(archive)
    for batch in (1, 2, 33):
        dense, pooled = torch.randn(batch, 3), torch.randn(batch, 2, 4)
        assert torch.allclose(loaded(dense, pooled), module(dense, pooled))


def replace_in_program(before: str, after: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        text = files["models/model.json"].decode()
        assert before in text
        files["models/model.json"] = text.replace(before, after).encode()

    return change


def pickle_payloads(bomb: Path) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        name = "data/weights/model_weights_config.json"
        config = json.loads(files[name])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        files[f"data/weights/{entry['path_name']}"] = pickle.dumps(Bomb(bomb))
        files[name] = json.dumps(config).encode()

    return change


def opaque_constant(bomb: Path) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}
        config = {"config": {"c": {**entry, "tensor_meta": None}}}
        files["data/constants/model_constants_config.json"] = json.dumps(config).encode()
        files["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(bomb))

    return change


def sample_inputs(bomb: Path) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        buffer = io.BytesIO()
        torch.save((Bomb(bomb),), buffer)
        files["data/sample_inputs/model.pt"] = buffer.getvalue()

    return change


ATTACKS = {
    "pickled weight": (pickle_payloads, "is a pickled object"),
    "opaque constant": (opaque_constant, "is a pickled object"),
    "sample inputs": (sample_inputs, "sample inputs hold pickled objects"),
    "operator": (
        lambda bomb: replace_in_program("torch.ops.aten.relu.default", "torch.load"),
        "operator torch.load is not an ATen operator",
    ),
    "expression": (
        lambda bomb: replace_in_program(
            "Symbol('", f"__import__('pathlib').Path('{bomb}').touch() or Symbol('"
        ),
        "is not plain arithmetic",
    ),
    "guard": (
        lambda bomb: replace_in_program(
            '"guards_code": [', f"\"guards_code\": [\"open('{bomb}', 'w')\", "
        ),
        "is not plain arithmetic",
    ),
    "pytree": (
        lambda bomb: replace_in_program("builtins.tuple", "os.path"),
        "takes a os.path",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_could_run_code_is_refused(archive: Path, tmp_path: Path, attack: str) -> None:
    change, message = ATTACKS[attack]
    bomb = tmp_path / "bomb"
    path = rewritten(archive, tmp_path / "tower.pt2", change(bomb))
    with pytest.raises(ArtifactError, match=message):
        load_exported(path)
    assert not bomb.exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "bomb")))  # noqa: S301
    assert (tmp_path / "bomb").exists()


def test_other_damage(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ArtifactError, match="not a torch.export archive"):
        load_exported(path)
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(ArtifactError, match="not a torch.export archive of PyTorch"):
        load_exported(path)
    data = bytearray(archive.read_bytes())
    data[data.index(b'"graph_module"') + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged|not a torch.export archive"):
        load_exported(path)
    rewritten(archive, path, lambda files: files.update({"data/aotinductor/model/a.so": b""}))
    with pytest.raises(ArtifactError, match="holds compiled code"):
        load_exported(path)
    rewritten(archive, path, replace_in_program('"graph"', '"grph"'))
    with pytest.raises(ArtifactError, match="cannot load it"):
        load_exported(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        load_exported(tmp_path / "none.pt2")
