"""One user, many candidates: user features once per request, against the same tiled.

    python -m benchmarks.candidates [--candidates 500] [--rounds 20]

A model of 20 user and 6 item features is asked both ways, in turn, in one process (the gateway's
code without its sockets). Prints bytes of a request, gathers of user rows and CPU of a query, each
way.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from erless.dlrm.whole_graph import WholeGraph
from erless.serve.protocol.client import infer_request
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST, BundleManifest
from erless.specs.features import FeatureSpec, NamedTensor, Pooling
from erless.specs.model import GraphTower, ModelSpec, TableSpec
from erless.storage.digests import digest_file
from erless.storage.tensors import write_tensors

USERS, ITEMS, ROWS, DIM, BAG = 20, 6, 20_000, 16, 20
NAMES = [*(f"user_{n}" for n in range(USERS)), *(f"item_{n}" for n in range(ITEMS))]


class Tower(nn.Module):
    """A small MLP over all vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(len(NAMES) * DIM, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        """The score of each sample, (B,)."""
        return torch.sigmoid(self.head(torch.relu(self.hidden(torch.cat(vectors, 1))))[:, 0])


def write_model(folder: Path, once: bool) -> None:
    """The bundle; `once`: user features come once per request."""
    (folder / "tables").mkdir(parents=True)
    torch.manual_seed(0)
    tower = Tower().eval()
    example = [torch.zeros(3, DIM) for _ in NAMES]
    batch = torch.export.Dim("batch", min=2, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself
        program = torch.export.export(
            tower, (example,), dynamic_shapes=([{0: batch}] * len(NAMES),)
        )
        torch.export.save(program.run_decompositions({}), folder / "tower.pt2")
    generator = np.random.default_rng(0)
    files = []
    for name in NAMES:
        rows = generator.normal(size=(ROWS, DIM)).astype(np.float32)
        digest = write_tensors(folder / f"tables/{name}.safetensors", {"rows": rows})
        files.append(FileEntry(path=f"tables/{name}.safetensors", **digest._asdict()))
    per = ["request" if once and name.startswith("user") else "sample" for name in NAMES]
    digest = digest_file(folder / "tower.pt2")
    BundleManifest.create(
        model=ModelSpec(
            name="candidates",
            dense_features=0,
            tables=tuple(TableSpec(name=name, rows=ROWS, dim=DIM) for name in NAMES),
            tower=GraphTower(takes=tuple(f"v_{name}" for name in NAMES), batch_min=2),
            features=tuple(
                FeatureSpec(name=f"v_{name}", table=name, pooling=Pooling.SUM, ids=name, per=each)
                for name, each in zip(NAMES, per, strict=True)
            ),
            inputs=tuple(
                NamedTensor(name=name, datatype="INT64", shape=(-1, bag(name)), per=each)
                for name, each in zip(NAMES, per, strict=True)
            ),
            outputs=(NamedTensor(name="score", datatype="FP32", shape=(-1,)),),
        ),
        tables=tuple(files),
        tower=FileEntry(path="tower.pt2", **digest._asdict()),
    ).save(folder / MANIFEST)


def bag(name: str) -> int:
    """Ids of a feature for each sample: users have histories, items are one."""
    return BAG if name.startswith("user") else 1


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description="One user, many candidates.")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    count, generator = arguments.candidates, np.random.default_rng(1)
    once = {
        name: generator.integers(0, ROWS, (1 if name.startswith("user") else count, bag(name)))
        for name in NAMES
    }
    tiled = {
        name: np.ascontiguousarray(np.repeat(a, count // len(a), 0)) for name, a in once.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        models = {}
        for way in ("once", "tiled"):
            write_model(Path(scratch) / way, way == "once")
            models[way] = WholeGraph(Path(scratch) / way, verify=False)
        queries = {"once": once, "tiled": tiled}
        spent = dict.fromkeys(queries, 0.0)
        scores = {way: models[way].predict(queries[way])["score"] for way in queries}
        np.testing.assert_allclose(scores["once"], scores["tiled"], rtol=1e-5)
        for _ in range(arguments.rounds):
            for way, inputs in queries.items():
                began = time.process_time()
                models[way].predict(inputs)
                spent[way] += time.process_time() - began
    found = {}
    for way, inputs in queries.items():
        text, buffers = infer_request(inputs)
        found[way] = {
            "request_bytes": len(text) + sum(map(len, buffers)),
            "user_gathers": sum(a.size for name, a in inputs.items() if name.startswith("user")),
            "cpu_ms": round(1e3 * spent[way] / arguments.rounds, 3),
        }
    ratios = {key: round(found["tiled"][key] / found["once"][key], 2) for key in found["once"]}
    print(json.dumps({**found, "tiled ÷ once": ratios}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
