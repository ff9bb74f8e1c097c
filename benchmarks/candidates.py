"""One user, many candidates: user features once per request, against the same tiled.

    python -m benchmarks.candidates [--candidates 500] [--rounds 10]

A model of 20 user and 6 item features is served both ways, each by a process of its own that holds
the whole model, and asked in turn. Prints bytes of a request, gathers of user rows and the server's
CPU of a query, each way: reading the request, lookups, tower and answer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.functions import Client, fleet
from erless.dlrm.infer_request import infer_request
from erless.observe.loadtest.encoded_queries import Body
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST, BundleManifest
from erless.specs.features import FeatureSpec, NamedTensor, Pooling
from erless.specs.model import GraphTower, ModelSpec, TableSpec
from erless.storage.digests import digest_file
from erless.storage.tensors import write_tensors
from loadtests.closed_loop import run_closed_loop

USERS, ITEMS, ROWS, DIM, BAG = 20, 6, 20_000, 16, 20
IN_FLIGHT = 4
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


def body(inputs: dict[str, np.ndarray]) -> Body:
    """A request for `inputs`."""
    head, buffers = infer_request(inputs)
    return Body(b"".join([head, *buffers]), len(head), max(map(len, inputs.values())), 0)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description="One user, many candidates.")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    count, generator = arguments.candidates, np.random.default_rng(1)
    once = {
        name: generator.integers(0, ROWS, (1 if name.startswith("user") else count, bag(name)))
        for name in NAMES
    }
    tiled = {
        name: np.ascontiguousarray(np.repeat(a, count // len(a), 0)) for name, a in once.items()
    }
    bodies = {way: body(inputs) for way, inputs in (("once", once), ("tiled", tiled))}
    spent: dict[str, list[float]] = {way: [] for way in bodies}
    with tempfile.TemporaryDirectory() as scratch, fleet() as started:
        servers = {}
        for way in bodies:
            write_model(Path(scratch) / way, way == "once")
            servers[way] = started.monolith(Path(scratch) / way, way)
        started.ready()
        clients = {way: Client(server.port, "candidates") for way, server in servers.items()}
        scores = {way: clients[way].infer(bodies[way]) for way in bodies}
        np.testing.assert_allclose(scores["once"], scores["tiled"], rtol=1e-5)
        for _ in range(arguments.rounds):
            for way, query in bodies.items():
                began, server = servers[way].cpu_s(), servers[way]
                asked = run_closed_loop(server.url, clients[way].path, [query], IN_FLIGHT, 1.0)
                if asked.failures:
                    raise SystemExit(f"{way}: {asked.failures[0]}")
                spent[way].append((server.cpu_s() - began) / len(asked.latency_ms))
    found = {
        way: {
            "request_bytes": len(query.data),
            "user_gathers": sum(
                array.size
                for name, array in (once if way == "once" else tiled).items()
                if name.startswith("user")
            ),
            "cpu_ms": round(1e3 * float(np.median(spent[way])), 3),
        }
        for way, query in bodies.items()
    }
    ratios = {key: round(found["tiled"][key] / found["once"][key], 2) for key in found["once"]}
    print(json.dumps({**found, "tiled ÷ once": ratios}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
