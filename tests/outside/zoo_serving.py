"""Serve models of the public zoos, and compare every answer with the model's own.

    python -m tests.outside.zoo_serving PYTHON --fuxictr CHECKOUT --dlrm CHECKOUT [--all]

PYTHON is the interpreter of the zoos' environment, see CONTRIBUTING.md. There `zoo_sweep.py`
exports the models and records 1,000 random queries of three samples with the models' own answers,
eager and in float32. Here each bundle is packed into four remote shards and asked all of them
through its gateway. The exit code is 1 where a number differs by more than 1e-5 of the model's own,
and where a model of `MODELS` was not recorded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from erless.dlrm.graph_queries import GraphQueryFile
from erless.specs.bundle import BundleManifest
from erless.storage.tensors import TensorFile
from tests.outside.serving import SHARDS, TOLERANCE, serve

# Sequences, several outputs as columns of one and as two, scores of all items, bags.
MODELS = (
    *("deepctr-DIN", "deepctr-MMOE", "fuxictr-DIN", "fuxictr-MMoE", "recbole-SASRec"),
    *("dlrm-dot", "dlrm-cat", "dlrm-weighted", "dlrm-QR", "dlrm-MD"),
)
ANSWERS = "answers.safetensors"


def record(python: Path, folder: Path, zoos: list[str], rest: list[str]) -> list[Path]:
    """Have the sweep record models of `zoos`; the folder of each."""
    sweep = [str(python), "-W", "ignore", "-m", "tests.outside.zoo_sweep", *zoos, *rest]
    subprocess.run([*sweep, "--record", str(folder)], check=True)
    return sorted(path.parent for path in folder.glob(f"*/{ANSWERS}"))


def fault(folder: Path) -> str:
    """What is wrong with the answers for the bundle `folder/model`; empty where nothing is."""
    spec = BundleManifest.open(folder / "model").model
    queries = GraphQueryFile(folder / "queries.safetensors", spec.inputs)
    with serve(folder) as client:
        answers = [client.infer(query) for query in queries]
    recorded = TensorFile(folder / ANSWERS)
    shards = min(answered.fan_out for _, answered in answers)
    told = [f"{len(answers):,} queries to {SHARDS} shards, to {shards} at least each"]
    faults = ["degraded"] if any(answered.degraded for _, answered in answers) else []
    for output in spec.outputs:
        wanted = recorded.map(output.name).astype(np.float64)
        found = np.concatenate([outputs[output.name] for outputs, _ in answers])
        off = np.abs(found - wanted)
        apart = np.max(np.divide(off, np.abs(wanted), out=np.zeros_like(off), where=off != 0))
        told.append(f"{output.name} {list(wanted.shape)} {apart:.1e} relative")
        if not (apart <= TOLERANCE and found.shape == wanted.shape):
            faults.append(f"{output.name} is off by {apart:.1e}")
        if np.min(np.ptp(wanted, axis=0)) <= 1000 * TOLERANCE * np.max(np.abs(wanted)):
            faults.append(f"{output.name} is nearly the same for all samples: that shows nothing")
    print(f"{folder.name:20} {', '.join(told)}", flush=True)
    return ", ".join(faults)


def main() -> int:
    """Record the models, serve each, print a line for each."""
    parser = argparse.ArgumentParser(description="Compare served models with the zoos' own.")
    parser.add_argument("python", type=Path, help="an interpreter that imports the zoos")
    parser.add_argument("--fuxictr", type=Path, help="checkout of reczoo/FuxiCTR; else without it")
    parser.add_argument("--dlrm", type=Path, help="checkout of facebookresearch/dlrm; else without")
    parser.add_argument("--all", action="store_true", help="every model of the zoos")
    options = parser.parse_args()
    zoos = ["deepctr", "recbole"]
    rest: list[str] = []
    for zoo in ("fuxictr", "dlrm"):
        if checkout := vars(options)[zoo]:
            zoos, rest = [*zoos, zoo], [*rest, f"--{zoo}", str(checkout)]
    expected = {name for name in MODELS if name.partition("-")[0] in zoos}
    if not options.all:
        rest += ["--only", *sorted({name.partition("-")[2] for name in expected})]
    with tempfile.TemporaryDirectory(prefix="erless-zoos-") as name:
        folders = record(options.python, Path(name), zoos, rest)
        missing = expected - {folder.name for folder in folders}
        faults = dict.fromkeys(sorted(missing), "was not recorded")
        faults |= {folder.name: fault(folder) for folder in folders}
    for model, found in faults.items():
        if found:
            print(f"{model}: {found}")
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
