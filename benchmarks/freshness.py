"""What fresh rows cost, and how soon they are answered with.

    python -m benchmarks.freshness --output json        # RM1, 800,000 rows a table: 1 GB

lookup_ratio     time to pool 40,960 gathers where a share of the rows was changed ÷ where none was,
                 in one process, in turns
cpu_ratio        CPU per query of gateway and shards with that share changed ÷ by a gateway that
                 stays at the release, on the same shards in turns
visible_s        from the call of `publish` until the gateway answers with the generation, while
                 queries come; 0.95 quantile of all
wrong            answers that differ from those of the whole model with the rows of the generation
                 that they name; half of the changed rows are rows that the queries ask for
p99_ratio        p99 of the queries meanwhile ÷ p99 of as long a time without publishing
moved_ratio      bytes of the generations ÷ bytes of their rows and ids
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.functions import Client, Fleet, fleet
from benchmarks.serving import Side, prepare, spread
from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.patches import RowChanges
from erless.dlrm.queries import Query, QueryFile
from erless.dlrm.reference import Monolith
from erless.dlrm.rows import RowIndex
from erless.observe.loadtest.encoded_queries import Body, build
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.publish import Publisher
from erless.specs.model import TableSpec
from erless.specs.plan import Precision
from erless.specs.release import ReleaseManifest
from erless.storage.stores import open_store

VISIBLE_S = 60.0
DIM = 32


class Trainer:
    """Changes rows, and knows what each generation has to answer.

    Args:
        folder: of the bundle; its tables are mapped, and changed in memory alone.
        queries: that are asked.
    """

    def __init__(self, folder: Path, queries: Sequence[Query]) -> None:
        self._whole, self._queries = Monolith.load(folder, mapped=True, verify=False), queries
        model = self._whole.model
        ends = [np.cumsum(query.lengths.sum(axis=1)) for query in queries]
        self._asked = [
            np.unique(
                np.concatenate(
                    [
                        query.values[end[table] - int(query.lengths[table].sum()) : end[table]]
                        for query, end in zip(queries, ends, strict=True)
                    ]
                )
            )
            for table in range(len(model.tables))
        ]
        self.random = np.random.default_rng(5)
        self.expected: dict[int, list[NDArray[np.float32]]] = {}
        self.remember(0)

    def remember(self, generation: int) -> None:
        """The answers of now are those of `generation`."""
        self.expected[generation] = [self._whole.predict(query) for query in self._queries]

    def change(self, rows: int) -> list[TableChanges]:
        """New vectors for `rows` rows of all tables together, half of them rows asked for."""
        model, changes = self._whole.model, []
        for spec, table, asked in zip(model.tables, self._whole.tables, self._asked, strict=True):
            each = max(1, rows // len(model.tables))
            hot = self.random.choice(asked, min(each // 2, len(asked)), replace=False)
            cold = self.random.integers(0, spec.rows, each - len(hot))
            ids = np.unique(np.concatenate([hot, cold])).astype(np.int64)
            vectors = self.random.normal(size=(len(ids), spec.dim)).astype(np.float32) * 0.01
            table[torch.from_numpy(ids)] = torch.from_numpy(vectors)
            changes.append(TableChanges(spec.name, ids, vectors))
        return changes


def lookup_ratios(rows: int, share: float, rounds: int) -> list[float]:
    """`lookup_ratio` of each round."""
    random = np.random.default_rng(3)
    table = TableSpec(name="rows", rows=rows, dim=DIM)
    stored = random.normal(size=(rows, DIM)).astype(np.float32)
    base = StoredSlice(table, Precision.FP32, stored, RowIndex.build(rows, np.arange(rows)))
    ids = random.choice(rows, int(share * rows), replace=False)
    sides = [
        EmbeddingShard([base]),
        EmbeddingShard([base.changed(RowChanges(ids, stored[ids], rows))]),
    ]
    values = (random.zipf(1.2, 40_960) % rows).astype(np.int32)
    lengths = np.full((1, 320), 128, np.int32)
    ratios = []
    for _ in range(rounds):
        took = []
        for side in sides:
            begin = time.thread_time()
            for _ in range(20):
                side.pool(values, lengths)
            took.append(time.thread_time() - begin)
        ratios.append(took[1] / took[0])
    return ratios


def generation_of(client: Client, model: str) -> int:
    """That the gateway answers with."""
    return int(client.get(f"/v2/models/{model}")["parameters"]["generation"])


def publish_and_wait(
    publisher: Publisher, trainer: Trainer, rows: int, client: Client
) -> tuple[float, float]:
    """Seconds until a generation is answered with, and its bytes ÷ those of its rows and ids."""
    changes = trainer.change(rows)
    trainer.remember(max(trainer.expected) + 1)
    begin = time.monotonic()
    manifest = publisher.publish(changes)
    while generation_of(client, publisher.release.model.name) < manifest.number:
        if time.monotonic() - begin > VISIBLE_S:
            raise SystemExit(f"generation {manifest.number} was not seen in {VISIBLE_S:g} s")
        time.sleep(0.005)
    own = sum(change.vectors.nbytes + change.ids.nbytes for change in changes)
    return time.monotonic() - begin, manifest.size_bytes / own


class _Load:
    """Queries at a fixed rate from one thread: latencies, and answers that are wrong."""

    def __init__(
        self, client: Client, bodies: Sequence[Body], rate: float, trainer: Trainer
    ) -> None:
        self.latency_ms: list[float] = []
        self.wrong = 0
        self._client, self._bodies, self._rate = client, bodies, rate
        self._expected = trainer.expected
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._over.is_set():
            due += 1 / self._rate
            number = len(self.latency_ms) % len(self._bodies)
            time.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            answered, parameters = self._client.infer_named(self._bodies[number])
            self.latency_ms.append((time.perf_counter() - begin) * 1e3)
            expected = self._expected[parameters["generation"]][number]
            self.wrong += not np.allclose(answered, expected, rtol=1e-4, atol=1e-6)

    def stop(self) -> list[float]:
        """End; the latencies."""
        self._over.set()
        self._thread.join()
        return self.latency_ms


def measure(
    running: Fleet, store: str, release: ReleaseManifest, work: Path, options: Any
) -> dict[str, Any]:
    """All but the lookups alone."""
    queries = list(QueryFile(work / "model" / "queries.safetensors"))
    bodies, trainer = [build(query) for query in queries], Trainer(work / "model", queries)
    model = release.model.name
    shards = running.shards(store, release)
    still = running.gateway(store, release, shards, ERLESS_FOLLOW_S="0")
    fresh = running.gateway(store, release, shards)
    running.ready()
    publisher = Publisher(open_store(store), release.digest)
    client = Client(fresh.port, model)
    rows = sum(table.rows for table in release.model.tables)
    for body in bodies[:8]:
        client.infer(body)
    publish_and_wait(publisher, trainer, int(options.share * rows), client)
    sides = [Side(gateway, [gateway, *shards.values()], model) for gateway in (still, fresh)]
    for _ in range(options.rounds):
        for side in sides:
            side.many(bodies, options.seconds)
    quiet_ms: list[float] = []
    busy_ms: list[float] = []
    visible, moved, wrong = [], [], 0
    for _ in range(options.publications):
        load = _Load(Client(fresh.port, model), bodies, options.rate, trainer)
        time.sleep(options.every)
        quiet_ms += load.stop()
        wrong += load.wrong
        load = _Load(Client(fresh.port, model), bodies, options.rate, trainer)
        begin = time.monotonic()
        seconds, ratio = publish_and_wait(publisher, trainer, options.changed, client)
        visible.append(seconds)
        moved.append(ratio)
        time.sleep(max(0.0, options.every - (time.monotonic() - begin)))
        busy_ms += load.stop()
        wrong += load.wrong
    publisher.close()
    still_ms, fresh_ms = (side.cpu_ms for side in sides)
    return {
        "cpu_ratio": spread([b / a for a, b in zip(still_ms, fresh_ms, strict=True)]),
        "cpu_ms": spread(fresh_ms),
        "visible_s": {
            "median": round(float(np.median(visible)), 3),
            "p95": round(float(np.quantile(visible, 0.95)), 3),
            "largest": round(max(visible), 3),
        },
        "p99_ratio": round(float(np.quantile(busy_ms, 0.99) / np.quantile(quiet_ms, 0.99)), 3),
        "p99_ms": round(float(np.quantile(busy_ms, 0.99)), 2),
        "queries": len(busy_ms) + len(quiet_ms),
        "wrong": wrong,
        "moved_ratio": spread(moved),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what fresh rows cost.")
    parser.add_argument("--rows", type=int, default=800_000, help="per table, of ten")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.01, help="of the rows, changed")
    parser.add_argument("--changed", type=int, default=10_000, help="rows of each publication")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between publications")
    parser.add_argument("--publications", type=int, default=10)
    parser.add_argument("--rate", type=float, default=200.0, help="queries/s meanwhile")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--work", type=Path, help="keep model and release here")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="erless-fresh-") as folder, fleet() as running:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        release = prepare(work, options.rows, options.shards, None)
        store = str(work / f"store-{options.shards}-None")
        document = {
            "rows": options.rows,
            "changed_share": options.share,
            "lookup_ratio": spread(lookup_ratios(options.rows, options.share, 15)),
            **measure(running, store, release, work, options),
        }
    if options.output == "json":
        print(json.dumps(document, indent=2))
    else:
        for name, value in document.items():
            print(f"{name:14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
