"""How much memory the export and the pack of a model take whose table exceeds it.

    python -m benchmarks.large_export --gigabytes 20 --scratch /tmp/large

Makes checkpoints of one table, dim 128, and a small tower; most of their rows are holes in the
file. Then, each in a process of its own: `erless.export` of the model on the meta device with
`weights=` a safetensors file, `erless.export` of the model whose weights `torch.load(mmap=True)`
mapped, `erless import torch` of a `.pt2` archive, and the packing of the bundle in int8. Each is
told with the highest RssAnon of /proc/PID/status, of all its processes, sampled every 10 ms, beyond
what it was when torch was imported. Needs 1.3 times the bytes on the disk, twice for the ways
`mmap` and `archive`, whose files have no holes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from torch import nn

DIM = 128
WAYS = ("weights", "mmap", "archive", "pack")


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process and of those that it started."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        except OSError:  # it has ended
            continue
        found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
        total += sum(int(kilobytes) << 10 for kilobytes in found)
    return total


class Peak:
    """The highest `anonymous_bytes` while the block runs, beyond those at its begin."""

    def __enter__(self) -> Self:
        self._before, self.bytes, self._running = anonymous_bytes(), 0, True
        self._began, self.seconds = time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, anonymous_bytes() - self._before)
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._running = False
        self._thread.join()


def make_model(rows: int) -> nn.Module:
    """One table and a tower."""
    from torch import Tensor, nn

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(rows, DIM)
            self.out = nn.Linear(DIM, 1)

        def forward(self, ids: Tensor) -> Tensor:
            score: Tensor = self.out(self.items(ids).mean(1))
            return score

    return Large()


def make_checkpoint(path: Path, rows: int) -> None:
    """A safetensors file of the model's weights; but for some rows the table is a hole."""
    import numpy as np

    shapes = {"items.weight": (rows, DIM), "out.weight": (1, DIM), "out.bias": (1,)}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    values = np.memmap(path, np.float32, "r+", 8 + len(text))
    values[-DIM - 1 :] = 0.1  # the tower's
    values[: rows * DIM].reshape(rows, DIM)[:: max(1, rows // 1000)] = 0.5
    values.flush()


def prepare(way: str, folder: Path, rows: int) -> None:
    """Make what `way` starts from."""
    import safetensors.torch
    import torch

    checkpoint = folder / "model.safetensors"
    if way == "weights":
        make_checkpoint(checkpoint, rows)
        return
    with torch.device("meta"):
        model = make_model(rows).eval()
    model.load_state_dict(safetensors.torch.load_file(checkpoint), assign=True)
    if way == "mmap":
        torch.save(model.state_dict(), folder / "model.pt")
        return
    ids = torch.zeros(4, 3, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (ids,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")


def bring_in(way: str, folder: Path, rows: int) -> None:
    """Do what is measured."""
    import torch

    import erless
    from erless.importers.archives.whole_model import import_archive

    ids = torch.arange(12).reshape(4, 3)
    if way == "archive":
        import_archive(folder / "model.pt2", folder / "bundle")
    elif way == "pack":
        pack(folder)
    else:
        with torch.device("meta"):
            model = make_model(rows)
        weights: Any = folder / "model.safetensors"
        if way == "mmap":
            weights = torch.load(folder / "model.pt", mmap=True, weights_only=True)
        erless.export(model, ids, folder / "bundle", weights=weights)


def pack(folder: Path) -> None:
    """Pack the bundle in int8."""
    from erless.pack.inputs import PackInputs
    from erless.pack.packer import Packer
    from erless.storage.stores import open_store

    store = open_store(str(folder / "store"), create=True)
    Packer(PackInputs(folder / "bundle", folder / "profile", folder / "plan.json"), store).pack()


def prepare_pack(folder: Path, rows: int) -> None:
    """A profile in which one row in a hundred is touched, and a plan of two int8 shards."""
    import numpy as np

    from benchmarks.packing import tally
    from erless.specs.bundle import BundleManifest
    from erless.specs.plan import Plan, Precision, RankRange, ShardPlan, Tier
    from erless.specs.profile import MANIFEST, Profile

    manifest = BundleManifest.open(folder / "bundle")
    table = manifest.model.tables[0].name
    touched = max(1, rows // 100)
    ids = np.arange(touched, dtype=np.int64) * 100
    (folder / "profile" / "counts").mkdir(parents=True)
    access = tally(folder / "profile", table, rows, ids)
    profile = Profile.create(model_digest=manifest.digest, sources=("benchmark",), tables=(access,))
    profile.save(folder / "profile" / MANIFEST)
    shards = tuple(
        ShardPlan(
            name=tier.value,
            tier=tier,
            slices=(RankRange(table=table, start=start, stop=stop),),
            precision=Precision.INT8,
        )
        for tier, start, stop in ((Tier.HOT, 0, touched), (Tier.FROZEN, touched, rows))
    )
    Plan.create(
        model_digest=manifest.digest, profile_digest=profile.digest, policy="joint", shards=shards
    ).save(folder / "plan.json")


def child(way: str, folder: Path, rows: int) -> None:
    """Be the process of one way: print its peak as JSON."""
    import torch  # noqa: F401 - what it takes is no part of the peak

    import erless.importers.archives.whole_model
    import erless.pack.packer  # noqa: F401

    with Peak() as peak:
        bring_in(way, folder, rows)
    print(json.dumps({"peak_mb": round(peak.bytes / 1e6), "seconds": round(peak.seconds, 1)}))


def measure(way: str, folder: Path, rows: int) -> dict[str, Any]:
    """Make what `way` starts from, and run it in a process of its own."""
    if way == "pack":
        prepare_pack(folder, rows)
    else:
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        prepare(way, folder, rows)
    command = [sys.executable, "-m", "benchmarks.large_export", "--child", way]
    done = subprocess.run(
        [*command, "--scratch", str(folder), "--rows", str(rows)],
        check=True,
        stdout=subprocess.PIPE,
    )
    for made in ("model.pt", "model.pt2"):
        (folder / made).unlink(missing_ok=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure, and print a line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--scratch", type=Path, required=True, help="a new folder")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.scratch, given.rows)
        return
    rows = int(given.gigabytes * 1e9 / (4 * DIM))
    given.scratch.mkdir(parents=True)
    try:
        for way in given.ways:
            result = measure(way, given.scratch, rows)
            print(json.dumps({"way": way, "gigabytes": given.gigabytes, **result}), flush=True)
    finally:
        shutil.rmtree(given.scratch)


if __name__ == "__main__":
    main()
