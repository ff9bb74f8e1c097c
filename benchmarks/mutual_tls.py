"""What mutual TLS between gateway and shards costs, and what traces cost, in CPU per query.

    python -m benchmarks.mutual_tls [--rounds 10]          # pip install -e '.[tls,otel]'

Queries of RM1's size against one release, served in several ways that are asked in turns:

plain      HTTP between gateway and shards
again      the same once more: how far two equal ways are apart here
tls        mutual TLS between them
traced     plain, with a collector named and 1 % of the queries sampled

Printed is the CPU of gateway and shards per query, with several queries in flight and with one:
medians, and medians of the ratios to `plain` of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.functions import Client, Fleet, Process, fleet
from benchmarks.http_libraries import shown
from benchmarks.serving import LANES, prepare
from erless.deploy.local.supervisor.folder.identities import Identities
from erless.dlrm.queries import QueryFile
from erless.observe.loadtest.encoded_queries import Body, build
from erless.serve.identity import GATEWAY, function_name
from erless.specs.release import ReleaseManifest
from loadtests.closed_loop import run_closed_loop

PREFIX = "spiffe://erless/benchmark/"
DAY_S = 86_400.0
Side = tuple[Process, list[Process]]  # the gateway, and all whose CPU counts


class Collector(BaseHTTPRequestHandler):
    """Takes traces and forgets them."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Take what comes."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """The URL of a collector on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def start_plain(running: Fleet, store: str, release: ReleaseManifest, **env: str) -> Side:
    """Gateway and shards that speak HTTP."""
    shards = running.shards(store, release, **env)
    gateway = running.gateway(store, release, shards, **env)
    return gateway, [gateway, *shards.values()]


def start_tls(running: Fleet, store: str, release: ReleaseManifest, folder: Path) -> Side:
    """Gateway and shards that know each other by certificates."""
    digests = {function_name("sparse", shard.digest): shard.digest for shard in release.remote}
    identities = Identities(folder)
    identities.keep({name: PREFIX + name for name in (GATEWAY, *digests)}, DAY_S)

    def identity(name: str) -> dict[str, str]:
        return {"ERLESS_IDENTITY": str(folder / name), "ERLESS_IDENTITY_PREFIX": PREFIX}

    shards = {
        digest: running.start(
            name,
            ["-m", "erless.serve", "sparse"],
            {"ERLESS_STORE": store, "PORT": "0", "ERLESS_SHARD": digest, **identity(name)},
        )
        for name, digest in digests.items()
    }
    urls = {digest: f"https://127.0.0.1:{shard.port}" for digest, shard in shards.items()}
    gateway = running.start(
        "secured",
        ["-m", "erless.serve", "gateway"],
        {
            "ERLESS_STORE": store,
            "PORT": "0",
            "ERLESS_RELEASE": release.digest,
            "ERLESS_SHARD_URLS": json.dumps(urls),
            **identity(GATEWAY),
        },
    )
    return gateway, [gateway, *shards.values()]


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; what is printed."""
    release = prepare(work, options.rows, options.shards, None)
    store = str(work / f"store-{options.shards}-None")
    queries = [build(query) for query in QueryFile(work / "model" / "queries.safetensors")]
    cpu: dict[str, list[float]] = {}
    with fleet() as running, collector() as url:
        traces = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
        }
        sides = {
            "plain": start_plain(running, store, release),
            "again": start_plain(running, store, release),
            "tls": start_tls(running, store, release, running.folder / "identities"),
            "traced": start_plain(running, store, release, **traces),
        }
        running.ready()
        clients = {way: Client(gateway.port, "rm1") for way, (gateway, _) in sides.items()}
        answers = {way: client.infer(queries[0]) for way, client in clients.items()}
        if any((answers[way] != answers["plain"]).any() for way in sides):
            raise SystemExit("the ways do not answer alike")

        def count(way: str, lanes: int, run: Callable[[], int]) -> None:
            everything = sides[way][1]
            before = [process.cpu_s() for process in everything]
            asked = run()
            spent = [p.cpu_s() - b for p, b in zip(everything, before, strict=True)]
            cpu.setdefault(f"gateway, {lanes} in flight: {way}", []).append(spent[0] / asked)
            cpu.setdefault(f"all, {lanes} in flight: {way}", []).append(sum(spent) / asked)

        def many(way: str) -> int:
            gateway = sides[way][0]
            path = clients[way].path
            asked = run_closed_loop(gateway.url, path, queries, LANES, options.seconds)
            if asked.failures:
                raise SystemExit(f"{way}: {asked.failures[0]}")
            return len(asked.latency_ms)

        for number in range(options.rounds):
            for way in sides if number % 2 else reversed(sides):
                count(way, LANES, lambda way=way: many(way))  # type: ignore[misc]
                count(way, 1, lambda way=way: one(clients[way], queries, options.seconds))  # type: ignore[misc]
    return {
        key: shown(values, cpu[key.rpartition(": ")[0] + ": plain"]) for key, values in cpu.items()
    }


def one(client: Client, queries: list[Body], seconds: float) -> int:
    """Queries one after the other for `seconds`; returns how many."""
    until, asked = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        client.infer(queries[asked % len(queries)])
        asked += 1
    return asked


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keep what is made here, for the next run")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, each way")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(work, options), indent=2))


if __name__ == "__main__":
    main()
