"""What fresh rows cost, and how soon they are answered with.

    python -m benchmarks.freshness --output json        # RM1, 800,000 rows a table: 1 GB

lookup_ratio     time to pool 40,960 gathers where a share of the rows was changed ÷ where none was,
                 in one process, in turns; changed rows beside the others
rewritten_ratio  the same, changed rows in the places of the release's
cpu_ratio        CPU per query of gateway and shards with that share changed ÷ by a gateway that
                 stays at the release, on the same shards in turns
gateway_ratio    the gateways' part of it
memory_mb        memory that the functions' processes take by themselves, before and after the rows
                 were changed
visible_s        from the call of `publish` until the gateway answers with the generation, while
                 queries come; 0.95 quantile of all
wrong            answers that differ from those of the whole model with the rows of the generation
                 that they name; half of the changed rows are rows that the queries ask for
p99_ratio        p99 of the queries meanwhile ÷ p99 of as long a time without publishing. The rows
                 are published from this process, which has drawn them and reckoned their answers
                 before; queries come from another
busy_cpu_ratio   CPU of gateway and shards per query meanwhile ÷ without publishing
moved_ratio      bytes of the generations ÷ bytes of their rows and ids
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.functions import Client, Fleet, Process, fleet
from benchmarks.serving import Side, prepare, spread
from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.patches import RowChanges
from erless.dlrm.queries import Query, QueryFile
from erless.dlrm.reference import Monolith
from erless.dlrm.rows import RowIndex
from erless.observe.loadtest.encoded_queries import Body, build
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.publish import Publisher
from erless.specs.generations import newest_generation
from erless.specs.model import TableSpec
from erless.specs.plan import Precision
from erless.specs.release import ReleaseManifest
from erless.storage.stores import open_store

Answer = tuple[float, int, int, NDArray[np.float32]]  # ms, generation, query, predictions
VISIBLE_S = 60.0
IDLE_S, IDLE_SHARE = 1.0, 0.1
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
        """New vectors for `rows` rows of all tables together, half of them rows asked for.

        The next generation has to answer with them.
        """
        model, changes = self._whole.model, []
        for spec, table, asked in zip(model.tables, self._whole.tables, self._asked, strict=True):
            each = max(1, rows // len(model.tables))
            hot = self.random.choice(asked, min(each // 2, len(asked)), replace=False)
            cold = self.random.integers(0, spec.rows, each - len(hot))
            ids = np.unique(np.concatenate([hot, cold])).astype(np.int64)
            vectors = self.random.normal(size=(len(ids), spec.dim)).astype(np.float32) * 0.01
            table[torch.from_numpy(ids)] = torch.from_numpy(vectors)
            changes.append(TableChanges(spec.name, ids, vectors))
        self.remember(max(self.expected) + 1)
        return changes


def lookup_ratios(rows: int, share: float, rounds: int) -> dict[str, Any]:
    """`lookup_ratio` and `rewritten_ratio`."""
    random = np.random.default_rng(3)
    table = TableSpec(name="rows", rows=rows, dim=DIM)
    stored = random.normal(size=(rows, DIM)).astype(np.float32)
    base = StoredSlice(table, Precision.FP32, stored, RowIndex.build(rows, np.arange(rows)))
    ids = random.choice(rows, int(share * rows), replace=False)
    changed = base.changed(RowChanges(ids, stored[ids], rows))
    sides = [EmbeddingShard([part]) for part in (base, changed, changed.rewritten())]
    values = (random.zipf(1.2, 40_960) % rows).astype(np.int32)
    lengths = np.full((1, 320), 128, np.int32)
    ratios: list[tuple[float, float]] = []
    for _ in range(rounds):
        took = []
        for side in sides:
            begin = time.thread_time()
            for _ in range(20):
                side.pool(values, lengths)
            took.append(time.thread_time() - begin)
        ratios.append((took[1] / took[0], took[2] / took[0]))
    names = ("lookup_ratio", "rewritten_ratio")
    return {name: spread(each) for name, each in zip(names, zip(*ratios, strict=True), strict=True)}


def generation_of(client: Client, model: str) -> int:
    """That the gateway answers with."""
    return int(client.get(f"/v2/models/{model}")["parameters"]["generation"])


def publish_and_wait(
    publisher: Publisher, changes: Sequence[TableChanges], client: Client
) -> tuple[float, float]:
    """Seconds until a generation is answered with, and its bytes ÷ those of its rows and ids."""
    begin = time.monotonic()
    manifest = publisher.publish(changes)
    while generation_of(client, publisher.release.model.name) < manifest.number:
        if time.monotonic() - begin > VISIBLE_S:
            raise SystemExit(f"generation {manifest.number} was not seen in {VISIBLE_S:g} s")
        time.sleep(0.02)
    own = sum(change.vectors.nbytes + change.ids.nbytes for change in changes)
    return time.monotonic() - begin, manifest.size_bytes / own


def settle(processes: Sequence[Process]) -> None:
    """Wait until these do nothing: until rows are copied, where there is room."""
    until = time.monotonic() + VISIBLE_S
    while time.monotonic() < until:
        begin = sum(process.cpu_s() for process in processes)
        time.sleep(IDLE_S)
        if sum(process.cpu_s() for process in processes) - begin < IDLE_SHARE * IDLE_S:
            return
    raise SystemExit(f"functions still work {VISIBLE_S:g} s after a generation came")


def _ask(orders: Connection, port: int, model: str, bodies: Sequence[Body], rate: float) -> None:
    """Ask at a fixed rate between two orders, again and again."""
    client = Client(port, model)
    while orders.recv():
        answers: list[Answer] = []
        due = time.perf_counter()
        while not orders.poll():
            due += 1 / rate
            number = len(answers) % len(bodies)
            time.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            predictions, parameters = client.infer_named(bodies[number])
            latency_ms = (time.perf_counter() - begin) * 1e3
            answers.append((latency_ms, parameters["generation"], number, predictions))
        orders.recv()
        orders.send(answers)


class _Load:
    """Queries at a fixed rate, from a process that does nothing else.

    Args:
        expected: by generation the answers to all queries.
    """

    def __init__(
        self,
        port: int,
        model: str,
        bodies: Sequence[Body],
        rate: float,
        expected: Mapping[int, Sequence[NDArray[np.float32]]],
    ) -> None:
        self.wrong, self._expected = 0, expected
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_ask, args=(theirs, port, model, bodies, rate))
        self._process.start()

    def begin(self) -> None:
        """Ask from now on."""
        self._orders.send(True)

    def end(self) -> list[float]:
        """Ask no more; the latencies since `begin`, in ms."""
        self._orders.send(True)
        answers: list[Answer] = self._orders.recv()
        for _, generation, number, predictions in answers:
            expected = self._expected[generation][number]
            self.wrong += not np.allclose(predictions, expected, rtol=1e-4, atol=1e-6)
        return [latency_ms for latency_ms, *_ in answers]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _private_mb(processes: Sequence[Process]) -> float:
    """Memory that these take and share with no other."""
    return round(sum(process.memory_mb()["anonymous"] for process in processes), 1)


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
    if newest_generation(open_store(store), release.digest) is not None:
        raise SystemExit(f"{work} holds generations of an earlier run: give another --work")
    publisher = Publisher(open_store(store), release.digest)
    client = Client(fresh.port, model)
    rows = sum(table.rows for table in release.model.tables)
    for body in bodies[:8]:
        client.infer(body)
    before_mb = _private_mb([fresh, *shards.values()])
    publish_and_wait(publisher, trainer.change(int(options.share * rows)), client)
    settle([still, fresh, *shards.values()])
    sides = [Side(gateway, [gateway, *shards.values()], model) for gateway in (still, fresh)]
    gateways_ms: list[list[float]] = [[], []]
    for _ in range(options.rounds):
        for side, own_ms in zip(sides, gateways_ms, strict=True):
            own, all_of_it = side.processes[0].cpu_s(), side.cpu_s()
            side.many(bodies, options.seconds)
            share = (side.processes[0].cpu_s() - own) / (side.cpu_s() - all_of_it)
            own_ms.append(share * side.cpu_ms[-1])
    still_ms, fresh_ms = (side.cpu_ms for side in sides)
    cost = {
        "cpu_ratio": spread([b / a for a, b in zip(still_ms, fresh_ms, strict=True)]),
        "gateway_ratio": spread([b / a for a, b in zip(*gateways_ms, strict=True)]),
        "cpu_ms": spread(fresh_ms),
        "memory_mb": [before_mb, _private_mb([fresh, *shards.values()])],
    }
    if not options.publications:
        publisher.close()
        return cost
    quiet_ms: list[float] = []
    busy_ms: list[float] = []
    visible, moved = [], []
    quiet_cpu_s, busy_cpu_s = 0.0, 0.0
    with _Load(fresh.port, model, bodies, options.rate, trainer.expected) as load:
        for _ in range(options.publications):
            changes = trainer.change(options.changed)
            load.begin()
            quiet_cpu_s -= sides[1].cpu_s()
            time.sleep(options.every)
            quiet_cpu_s += sides[1].cpu_s()
            quiet_ms += load.end()
            load.begin()
            busy_cpu_s -= sides[1].cpu_s()
            begin = time.monotonic()
            seconds, ratio = publish_and_wait(publisher, changes, client)
            visible.append(seconds)
            moved.append(ratio)
            time.sleep(max(0.0, options.every - (time.monotonic() - begin)))
            busy_cpu_s += sides[1].cpu_s()
            busy_ms += load.end()
    publisher.close()
    return {
        **cost,
        "visible_s": {
            "median": round(float(np.median(visible)), 3),
            "p95": round(float(np.quantile(visible, 0.95)), 3),
            "largest": round(max(visible), 3),
        },
        "p99_ratio": round(float(np.quantile(busy_ms, 0.99) / np.quantile(quiet_ms, 0.99)), 3),
        "p99_ms": round(float(np.quantile(busy_ms, 0.99)), 2),
        "busy_cpu_ratio": round(busy_cpu_s / len(busy_ms) / (quiet_cpu_s / len(quiet_ms)), 3),
        "queries": len(busy_ms) + len(quiet_ms),
        "wrong": load.wrong,
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
            **lookup_ratios(options.rows, options.share, 15),
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
