"""Packing by one process and by two in turn, `dd` beside them: wall and CPU seconds, digests.

    python -m benchmarks.pack_workers --folder /tmp/packing --gigabytes 8 --rounds 2
    python -m benchmarks.pack_workers --folder /tmp/packing --gigabytes 4 --rounds 3 --tables 8

Needs three times the bytes on the disk of --folder, which is emptied at the end. Page caches of the
bundle are dropped before each run, so that the disk takes part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.measured import measured
from benchmarks.packing import DIM, drop, make


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--tables", type=int, default=1, help="which have the bytes together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True)
    rows = int(options.gigabytes * 1e9 / (4 * DIM) / options.tables)
    runs: dict[str, list[dict[str, Any]]] = {}
    try:
        make(folder, rows, options.tables)
        for _ in range(options.rounds):
            for name, command in (
                ("one", _pack(folder, 1)),
                ("many", _pack(folder, options.workers)),
                ("dd", _copy(folder)),
            ):
                drop(*(folder / "model" / "tables").iterdir())
                spent, out = measured(command)
                spent["load_average"] = os.getloadavg()[0]
                if name != "dd":
                    spent["release"] = json.loads(out)["release"]
                runs.setdefault(name, []).append(spent)
                for made in ("store", "copy"):
                    shutil.rmtree(folder / made, ignore_errors=True)
    finally:
        shutil.rmtree(folder)
    pairs = list(zip(runs["one"], runs["many"], strict=True))
    found = {
        "bytes": options.tables * rows * 4 * DIM,
        "tables": options.tables,
        "workers": options.workers,
        "digests": len({run["release"] for name in ("one", "many") for run in runs[name]}),
        "speed_up": statistics.median(one["wall_s"] / many["wall_s"] for one, many in pairs),
        "cpu_s": {
            name: statistics.median(run["cpu_s"] for run in each) for name, each in runs.items()
        },
        "wall_s": {
            name: statistics.median(run["wall_s"] for run in each) for name, each in runs.items()
        },
        "runs": runs,
    }
    print(json.dumps(found, indent=2))


def _pack(folder: Path, workers: int) -> list[str]:
    command = [sys.executable, "-m", "erless", "pack", "--model", str(folder / "model")]
    command += ["--profile", str(folder / "profile"), "--plan", str(folder / "plan.json")]
    return [*command, "--store", str(folder / "store"), "--workers", str(workers), "-o", "json"]


def _copy(folder: Path) -> list[str]:
    """The same bytes read and written by dd, and made durable."""
    target = folder / "copy"
    script = f'mkdir "{target}" && cd "{folder}/model/tables" && for table in *; do '
    script += f'dd if="$table" of="{target}/$table" bs=8M conv=fsync status=none; done'
    return ["sh", "-c", script]


if __name__ == "__main__":
    main()
