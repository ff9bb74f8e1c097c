"""Serve for minutes at a share of what the gateway can take: memory flat, no errors.

    python -m benchmarks.soak --minutes 10 --load 0.8

Finds the rate that the gateway sustains, offers `load` of it (open loop: queries start on time
whether or not earlier ones are answered), and reports memory per process over time, its slope after
the first quarter, errors, and latency.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.functions import Fleet, fleet
from benchmarks.serving import Side, prepare
from erless.dlrm.queries import QueryFile
from erless.http.client.endpoint import CallError, Endpoint, Reply
from erless.observe.loadtest.encoded_queries import Body, build
from loadtests.closed_loop import head_of

CALIBRATE_S = 5.0
SAMPLE_S = 10.0


class Soak:
    """An open loop of queries, and what became of them."""

    def __init__(self, url: str, path: str, queries: list[Body]) -> None:
        self.url, self.path, self.queries = url, path, queries
        self.codes: Counter[str] = Counter()
        self.took_ms: list[float] = []
        self.series: list[dict[str, float]] = []

    async def run(self, running: Fleet, rate: float, seconds: float) -> None:
        """Offer `rate` queries/s for `seconds`."""
        loop = asyncio.get_running_loop()
        endpoint = Endpoint(self.url, 3600, lambda: None)
        heads = [head_of(query, self.path, endpoint.authority) for query in self.queries]
        begin, sent, sampled = loop.time(), 0, -SAMPLE_S

        def answered(result: Reply | CallError) -> None:
            if isinstance(result, CallError):
                self.codes[str(result)] += 1
            else:
                self.codes[str(result.status)] += 1
                self.took_ms.append(result.took_s * 1e3)

        while (now := loop.time() - begin) < seconds:
            while sent < now * rate:
                number = sent % len(heads)
                endpoint.send([heads[number], self.queries[number].data], answered)
                sent += 1
            if now - sampled >= SAMPLE_S:
                sampled = now
                memory = {p.name: p.memory_mb()["anonymous"] for p in running.processes}
                self.series.append({"s": round(now), **memory})
            await asyncio.sleep(0.001)
        until = loop.time() + 30
        while sum(self.codes.values()) < sent and loop.time() < until:
            await asyncio.sleep(0.05)
        self.codes["unanswered"] = sent - sum(self.codes.values())
        endpoint.close()

    def report(self, rate: float) -> dict[str, Any]:
        """What is printed. Slopes: MB per hour after the first quarter, by least squares."""
        later = self.series[len(self.series) // 4 :]
        seconds = np.array([row["s"] for row in later], float)
        names = [name for name in self.series[0] if name != "s"]
        return {
            "offered_qps": round(rate, 1),
            "answers": {code: count for code, count in self.codes.items() if count},
            "latency_ms": {
                f"p{q:g}": round(float(np.percentile(self.took_ms, q)), 2) for q in (50, 95, 99)
            },
            "private_mb": {
                name: {
                    "first": round(self.series[0][name], 1),
                    "quarter": round(later[0][name], 1),
                    "last": round(later[-1][name], 1),
                    "most": round(max(row[name] for row in self.series), 1),
                    "mb_per_hour": round(
                        float(np.polyfit(seconds, [e[name] for e in later], 1)[0]) * 3600, 2
                    )
                    if len(later) > 1
                    else 0.0,
                }
                for name in names
            },
        }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--load", type=float, default=0.8, help="of what the gateway sustains")
    parser.add_argument("--qps", type=float, help="offer this, on a machine that others use too")
    parser.add_argument("--work", type=Path, help="keep what is made here, for the next run")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="erless-soak-") as temporary, fleet() as running:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        release = prepare(work, options.rows, options.shards, None)
        store = str(work / f"store-{options.shards}-None")
        shards = running.shards(store, release)
        gateway = running.gateway(store, release, shards)
        running.ready()
        queries = [build(query) for query in QueryFile(work / "model" / "queries.safetensors")]
        side = Side(gateway, running.processes, release.model.name)
        side.many(queries, CALIBRATE_S)
        rate = options.qps or side.qps[0] * options.load
        soak = Soak(gateway.url, side.path, queries)
        uvloop.run(soak.run(running, rate, options.minutes * 60))
        print(json.dumps(soak.report(rate), indent=2))


if __name__ == "__main__":
    main()
