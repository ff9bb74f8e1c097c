"""What decoys cost and how quiet they are, on this machine (docs/decoys.md).

    python -m benchmarks.decoys idle                     # CPU per query: decoys, an alarm, neither
    python -m benchmarks.decoys quiet --queries 1000000  # alerts under ordinary work: none
    python -m benchmarks.decoys wakings --count 200      # a woken decoy against a woken cold shard

`idle` measures the three in turns, and quotes each round's ratio to neither. `quiet` sends queries
while another thread deploys two releases in turns, rolls back, asks for status, compares, reads
logs and prunes, over and over. `wakings` lets both fall asleep and wakes them in turns by one
request; Kolmogorov and Smirnov's test compares the times to the answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from scipy.stats import ks_2samp

from erless.api.decoys import with_decoys
from erless.deploy.desired_release import load_desired
from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import Desired
from erless.pack.inventory import prune
from erless.progress import Silent
from erless.serve.protocol.client import QueryClient
from erless.specs.config import AlertConfig, Config, DecoysConfig, LocalConfig, TargetsConfig
from erless.storage.stores import open_store
from tests.releases import Made, default_model, make_release, random_query

TIMEOUT_S = 120.0
DECOYS = 2
BATCH = 32
ROUNDS = 9  # of each kind of deployment, in turns
LEVEL = 0.01  # of the test
ROWS = 20_000


class Deployed:
    """A deployment on this machine with decoys as `declared`, in a folder of its own."""

    def __init__(
        self, folder: Path, made: Made, declared: DecoysConfig, window_s: float = 2.0
    ) -> None:
        local = LocalConfig(state=folder / "state", window_s=window_s, grace_s=0.0)
        self.made, self.folder = made, folder
        self.config = Config(
            store=made.store,
            decoys=declared,
            targets=TargetsConfig(local=local),
        )
        self.target = LocalTarget(self.config, Timing(poll_s=0.1))
        self.desired = self.placed(made.release.digest)
        self.url = self.target.deploy(self.desired, Silent(), TIMEOUT_S).url

    def placed(self, release: str) -> Desired:
        """A release of the store, with its decoys."""
        return with_decoys(load_desired(self.made.store, release), self.config, "local", None)

    @property
    def processes(self) -> list[psutil.Process]:
        """All processes of the deployment: replicas, supervisor, zygote, watchdog."""
        pids = [pid for found in self.target.processes().values() for pid in found]
        return [psutil.Process(pid) for pid in pids]

    def port(self, name: str) -> int:
        """Where a function listens, awake or not."""
        state = json.loads((self.folder / "state" / "state.json").read_text(encoding="utf-8"))
        specs = [spec for release in state["releases"] for spec in release["functions"]]
        key = next(spec["key"] for spec in specs if spec["name"] == name)
        return int(state["ports"][key])

    def asleep(self, name: str) -> bool:
        """Whether a function has no process."""
        return not self.target.processes()[name]


@contextmanager
def deployed(
    count: int, window_s: float = 2.0, *, ids_in_order: bool = False
) -> Iterator[Deployed]:
    """`Deployed` with so many decoys, destroyed at the end."""
    declared = DecoysConfig(count=count, alert=AlertConfig(ids_in_order=ids_in_order))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_release(folder / "made", model=default_model(ROWS, 32))
        place = Deployed(folder, made, declared, window_s)
        try:
            yield place
        finally:
            place.target.destroy(Silent(), TIMEOUT_S)


def cpu_per_query_us(place: Deployed, queries: int) -> float:
    """CPU of gateway and shards per query, in µs."""
    query = random_query(place.made.model, 1, BATCH)
    with QueryClient(place.url) as client:
        for _ in range(queries // 4):
            client.predict(query)
        before = sum(sum(process.cpu_times()[:2]) for process in place.processes)
        for _ in range(queries):
            client.predict(query)
    after = sum(sum(process.cpu_times()[:2]) for process in place.processes)
    return 1e6 * (after - before) / queries


def idle(queries: int) -> bool:
    """Decoys take no process, and no CPU of queries: medians of rounds in turns."""
    with (
        deployed(0, 600.0) as plain,
        deployed(DECOYS, 600.0) as guarded,
        deployed(DECOYS, 600.0, ids_in_order=True) as alarmed,
    ):
        places = {"neither": plain, "decoys": guarded, "decoys and alarm": alarmed}
        names = [decoy.shard.name for decoy in guarded.desired.decoys]
        found = {name: list[float]() for name in places}
        for number in range(ROUNDS):
            for name in (*places, *places)[number % len(places) :][: len(places)]:
                found[name].append(cpu_per_query_us(places[name], queries))
        processes = sum(not guarded.asleep(name) for name in names)
        more = len(guarded.processes) - len(plain.processes)
    for name, values in found.items():
        ratios = np.array(values) / np.array(found["neither"])
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(
            f"CPU per query, {name}: {np.median(values):,.0f} µs, "
            f"{middle:.3f} ({low:.3f} to {high:.3f}) of that without"
        )
    print(f"{len(names)} decoys: {processes} processes of theirs, {more} more in all")
    return processes == 0


def quiet(queries: int) -> bool:
    """No alert under ordinary work."""
    with deployed(DECOYS, ids_in_order=True) as place:
        model, store = default_model(ROWS, 32), place.made.store
        other = make_release(place.folder / "other", model=model, seed=2, store=store)
        over, done = threading.Event(), dict[str, int]()
        thread = threading.Thread(target=_work, args=(place, other, over, done), daemon=True)
        thread.start()
        asked = [random_query(place.made.model, seed, BATCH) for seed in range(200)]
        sent, began = 0, time.monotonic()
        with QueryClient(place.url, timeout_s=TIMEOUT_S) as client:
            while sent < queries:
                client.predict(asked[sent % len(asked)])
                sent += 1
        took = time.monotonic() - began
        over.set()
        thread.join(TIMEOUT_S)
        alerts = list(place.target.alerts(10_000, follow=False))
    print(f"{sent:,} queries in {took:,.0f} s, meanwhile {done}: {len(alerts)} alerts")
    for alert in alerts[:5]:
        print(alert)
    return not alerts


def _work(place: Deployed, other: Made, over: threading.Event, done: dict[str, int]) -> None:
    """Everything that operators do, in turns, until `over`."""
    first, second = place.placed(place.made.release.digest), place.placed(other.release.digest)

    while not over.is_set():
        for name, act in (
            ("deploy", lambda: place.target.deploy(second, Silent(), TIMEOUT_S)),
            ("rollback", lambda: place.target.rollback(None, Silent(), TIMEOUT_S)),
            ("redeploy", lambda: place.target.deploy(first, Silent(), TIMEOUT_S)),
            ("status", place.target.status),
            ("diff", lambda: place.target.diff(second)),
            ("logs", lambda: list(place.target.logs(None, 10, follow=False))),
            (
                "prune",
                lambda: prune(
                    open_store(place.made.store),
                    keep={place.made.release.digest, other.release.digest},
                    grace_s=0.0,
                ),
            ),
        ):
            act()
            done[name] = done.get(name, 0) + 1
            if over.wait(0.5):
                return


def waking_ms(port: int) -> float:
    """From a connection to a function at zero to its answer."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("GET", "/v2/models/shard")
    connection.getresponse().read()
    took = time.perf_counter() - began
    connection.close()
    return 1e3 * took


def wakings(count: int) -> bool:
    """Times to a first answer, of a decoy and of the shard that it looks like, in turns."""
    with deployed(1, 0.3) as place:
        (decoy,) = place.desired.decoys
        real = place.desired.release.shards
        like = next(shard.name for shard in real if shard.digest == decoy.like)
        ports = {name: place.port(name) for name in (decoy.shard.name, like)}
        found: dict[str, list[float]] = {name: [] for name in ports}
        for _ in range(count):
            for name, port in ports.items():
                while not place.asleep(name):
                    time.sleep(0.02)
                found[name].append(waking_ms(port))
    for name, values in found.items():
        p5, p50, p95 = np.percentile(values, [5, 50, 95])
        what = "decoy" if name == decoy.shard.name else "cold shard"
        print(f"{what}: {count} wakings, p5 {p5:.0f}, p50 {p50:.0f}, p95 {p95:.0f} ms")
    decoys, shards = (np.array(values) for values in found.values())
    tested = ks_2samp(decoys, shards)
    print(f"Kolmogorov-Smirnov: D = {tested.statistic:.3f}, p = {tested.pvalue:.3f}")
    return bool(tested.pvalue >= LEVEL)


def main() -> int:
    """Exit 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.decoys", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("idle", "quiet", "wakings"))
    parser.add_argument("--queries", type=int, default=2000, help="of idle, a round, and of quiet")
    parser.add_argument("--count", type=int, default=200, help="of wakings, of each")
    options = parser.parse_args()
    holds = {
        "idle": lambda: idle(options.queries),
        "quiet": lambda: quiet(options.queries),
        "wakings": lambda: wakings(options.count),
    }[options.what]()
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
