"""Archives as an attacker writes them: a good one taken apart, changed and put together again."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Files = dict[str, bytes]
Document = dict[str, Any]
Change = Callable[[Files, Path], None]

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(self.path),))


def pickled(bomb: Path) -> bytes:
    """What `torch.save` writes of a bomb."""
    buffer = io.BytesIO()
    torch.save({"weight": Bomb(bomb)}, buffer)
    return buffer.getvalue()


def take_apart(archive: Path) -> Files:
    with zipfile.ZipFile(archive) as source:
        return {name.partition("/")[2]: source.read(name) for name in source.namelist()}


def put_together(files: Files, out: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(out, "w", compression) as target:
        for name, data in files.items():
            target.writestr(f"tower/{name}", data)
    return out


def in_json(change: Callable[[Document], None], record: str = MODEL) -> Change:
    """Change the parsed document in `record`."""

    def apply(files: Files, bomb: Path) -> None:
        document = json.loads(files[record])
        change(document)
        files[record] = json.dumps(document).encode()

    return apply


def in_text(before: str, after: str, record: str = MODEL) -> Change:
    """Replace text in `record`; BOMB stands for the path of a file that must not appear."""

    def apply(files: Files, bomb: Path) -> None:
        text = files[record].decode()
        assert before in text
        files[record] = text.replace(before, after.replace("BOMB", str(bomb))).encode()

    return apply


def graph(document: Document) -> Document:
    graph: Document = document["graph_module"]["graph"]
    return graph


def add_node(target: str, *arguments: tuple[str, Document], output: str = "extra") -> Change:
    """Put a node in front of all others."""
    node: Document = {
        "target": target,
        "inputs": [{"name": name, "arg": given, "kind": 1} for name, given in arguments],
        "outputs": [{"as_tensor": {"name": output}}],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": output,
    }
    return in_json(lambda document: graph(document)["nodes"].insert(0, node))


def every(*changes: Change) -> Change:
    def apply(files: Files, bomb: Path) -> None:
        for change in changes:
            change(files, bomb)

    return apply


def set_record(name: str, data: bytes | Callable[[Path], bytes]) -> Change:
    def apply(files: Files, bomb: Path) -> None:
        files[name] = data if isinstance(data, bytes) else data(bomb)

    return apply


def weight(change: Callable[[Document], None]) -> Change:
    """Change the description of the first weight."""
    return in_json(lambda document: change(next(iter(document["config"].values()))), WEIGHTS)


def pickled_weight(files: Files, bomb: Path) -> None:
    config = json.loads(files[WEIGHTS])
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    files[f"data/weights/{entry['path_name']}"] = pickle.dumps(Bomb(bomb))
    files[WEIGHTS] = json.dumps(config).encode()


def custom_object(prefix: str) -> Change:
    def apply(files: Files, bomb: Path) -> None:
        entry = {"path_name": f"{prefix}_0", "is_param": False, "use_pickle": False}
        config = {"config": {"c": {**entry, "tensor_meta": None}}}
        files[CONSTANTS] = json.dumps(config).encode()
        files[f"data/constants/{prefix}_0"] = pickle.dumps(Bomb(bomb))

    return apply


def second_program(change: Change) -> Change:
    """A second program beside the first, with a change of its own."""

    def apply(files: Files, bomb: Path) -> None:
        other = dict(files)
        change(other, bomb)
        files["models/other.json"] = other[MODEL]
        files["data/sample_inputs/other.pt"] = other[SAMPLES]
        for record in (WEIGHTS, CONSTANTS):
            files[record.replace("model_", "other_")] = files[record]

    return apply


def entry(
    name: bytes,
    data: bytes,
    offset: int,
    *,
    method: int = 0,
    flags: int = 0,
    size: int | None = None,
    inner_name: bytes | None = None,
) -> tuple[bytes, bytes]:
    """One record by hand: (header and data, entry of the directory)."""
    length = len(data) if size is None else size
    common = struct.pack("<5H3L", 20, flags, method, 0, 33, zlib.crc32(data), len(data), length)
    local = b"PK\x03\x04" + common + struct.pack("<2H", len(inner_name or name), 0)
    central = b"PK\x01\x02" + struct.pack("<H", 20) + common
    central += struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, offset) + name
    return local + (inner_name or name) + data, central


def by_hand(path: Path, records: list[tuple[bytes, bytes, dict[str, Any]]]) -> Path:
    """A zip file in which each record's header says what it is told to say."""
    body, directory = b"", b""
    for name, data, options in records:
        local, central = entry(name, data, options.pop("offset", len(body)), **options)
        body += local
        directory += central
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, len(records), len(records), len(directory), len(body), 0
    )
    path.write_bytes(body + directory + end)
    return path


def zeros_deflated(gigabytes: float) -> bytes:
    """A deflate stream of about 1 MB per GB of zeros, made without inflating anything."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block + again * int(gigabytes * 1024) + packer.flush()
