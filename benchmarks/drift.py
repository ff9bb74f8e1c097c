"""Live heat, drift and replanning: what sampling costs, how soon drift is seen, a day of it.

    python -m benchmarks.drift sampling      # CPU of gateways that sample 1 % and none, in turns
    python -m benchmarks.drift live          # real functions: seconds until `drift` says so
    python -m benchmarks.drift day           # 24 simulated hours, hot rows change each hour

`sampling`: RM1, one gateway that samples and one that does not on the same shards, in turns; CPU of
gateway and shards per query.

`live`: a gateway that samples 1 % of RM1's queries and writes every 30 s. Then 30 % of its resident
rows change places with others, and `erless drift --no-plan` is asked until its exit code is 3.

`day`: a plan of two shards with 80 % of the gathers in the gateway. Every hour a share of the
hottest 2 % of the rows changes places with rows from anywhere. What a gateway samples of it goes
through the same sketches, drift, decisions and replans as deployed; each hour of each way to go on
is simulated for 15 minutes (`erless.observe.simulator`) with the real rates of replicas: a shard
with more gathers per query than it was planned for answers fewer queries/s, and its autoscaler does
not know.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks.functions import Fleet, fleet
from benchmarks.serving import Side, prepare, spread
from erless.cli.measure.simulate import node_of
from erless.dlrm.heat_sketch import TableSketch
from erless.dlrm.queries import Query, QueryFile
from erless.observe.loadtest.encoded_queries import build
from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.outcome import run_simulation, write_simulation
from erless.plan.costs.curves import AccessCurve, TableLoad
from erless.plan.live.auto import AutoReplan, Replanning
from erless.plan.live.drift import compare
from erless.plan.live.placed import Placement, layout_of, placed_shards
from erless.plan.live.replan import Choice, replan
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.profile.live import distribution, ranked
from erless.specs.heat import Seen
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.placement import routes_of
from erless.specs.plan import Plan
from erless.specs.release import ReleaseManifest
from erless.specs.traffic import parse_traffic
from erless.storage.store import Store
from erless.storage.stores import open_store
from loadtests.closed_loop import run_closed_loop

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Routes = NDArray[np.uint8]

ALPHA = np.log(0.9) / np.log(0.1)  # of the power law whose hottest tenth takes 90 %
TABLES, ROWS, DIM, POOLING, BATCH = 8, 100_000, 64, 40, 32
HOUR_S, HOURS, LOOKS = 3600.0, 24, 4  # looks at the drift in an hour
SAMPLED = 200  # queries of an hour
SIMULATED_S = 900.0  # of each hour, and taken for all of it
HALF_LIFE_S = 1800.0
SLA_MS = 60.0
NIGHT = 3  # o'clock
HOT = 0.02
MODEL = ModelSpec(
    name="day",
    dense_features=13,
    tables=tuple(TableSpec(name=f"t{n}", rows=ROWS, dim=DIM) for n in range(TABLES)),
    tower=DlrmTower(bottom_mlp=(256, DIM), top_mlp=(256, 64, 1)),
)
REQUEST = PlanRequest(traffic=48, batch=BATCH, shards=2, resident_share=0.8, sla_p95_ms=SLA_MS)


class World:
    """Which rows are hot, hour by hour; the same for every way to go on."""

    def __init__(self, share: float, seed: int = 1) -> None:
        self._share, self._random = share, np.random.default_rng(seed)
        self.ranked = [self._random.permutation(ROWS) for _ in range(TABLES)]
        self._law = np.diff((np.arange(ROWS + 1) / ROWS) ** ALPHA)

    def turn(self) -> None:
        """An hour later."""
        most = int(HOT * ROWS)
        for table in self.ranked:
            out = self._random.choice(most, int(self._share * most), replace=False)
            into = most + self._random.choice(ROWS - most, len(out), replace=False)
            table[out], table[into] = table[into].copy(), table[out].copy()

    def heat(self, table: int) -> Floats:
        """(rows,) the share of accesses of each row."""
        heat = np.empty(ROWS)
        heat[self.ranked[table]] = self._law
        return heat

    def ids(self, table: int, number: int) -> Ints:
        """Rows that so many accesses ask for."""
        ranks = (ROWS * self._random.random(number) ** (1 / ALPHA)).astype(np.int64)
        drawn: Ints = self.ranked[table][np.minimum(ranks, ROWS - 1)]
        return drawn


def loads(curves: Sequence[AccessCurve]) -> list[TableLoad]:
    """The tables with their traffic."""
    return [
        TableLoad(table, float(BATCH * POOLING), curve)
        for table, curve in zip(MODEL.tables, curves, strict=True)
    ]


@dataclass
class Deployed:
    """A plan with its rows where they lie; it is the `Holdings` of its replans."""

    plan: Plan
    routes: dict[str, Routes]
    held: list[dict[str, NDArray[np.bool_]]]

    @classmethod
    def packed(cls, plan: Plan, routes: dict[str, Routes]) -> Deployed:
        """Where every shard holds just what it answers for."""
        numbers = range(len(plan.shards))
        return cls(plan, routes, [{t: route == n for t, route in routes.items()} for n in numbers])

    def of(self, number: int, table: str) -> NDArray[np.bool_]:
        """Rows of the table that the shard holds."""
        return self.held[number][table]

    def replanned(self, plan: Plan, taken: Choice, fresh: dict[str, Routes]) -> Deployed:
        """With the rows where a replan puts them; `fresh` where it is a plan of its own."""
        if taken.placement is None or taken.kept is None:
            return Deployed.packed(plan, fresh)
        names = [table.name for table in MODEL.tables]
        made = Deployed.packed(plan, dict(zip(names, taken.routes, strict=True)))
        for back in range(1, taken.kept + 1):
            made.held[-back] = self.held[-back]
        return made


def first_plan(world: World) -> Deployed:
    """The plan for the heat of midnight, from a whole log."""
    law = AccessCurve.power_law(ROWS, 0.9)
    planner = Planner(MODEL, loads([law] * TABLES), REQUEST)
    plan = plan_document(planner.outcome(), "0" * 64, "0" * 64)
    return Deployed.packed(plan, routes_by_rank(plan, world.ranked))


def routes_by_rank(plan: Plan, ranked_rows: Sequence[Ints]) -> dict[str, Routes]:
    """The shard of each row, where ranks are counted in the order of `ranked_rows`."""
    routes = {}
    for number, table in enumerate(MODEL.tables):
        route = np.zeros(ROWS, np.uint8)
        for place, shard in enumerate(plan.shards):
            for part in shard.slices:
                if part.table == table.name:
                    route[ranked_rows[number][part.start : part.stop]] = place
        routes[table.name] = route
    return routes


def shares_of(deployed: Deployed, world: World) -> Placement:
    """The deployed rows with the accesses that they truly get."""
    shards = placed_shards(deployed.plan)
    rows = np.zeros((len(shards), TABLES), np.int64)
    shares = np.zeros(rows.shape)
    spare = np.zeros_like(rows)
    for number, table in enumerate(MODEL.tables):
        route = deployed.routes[table.name]
        rows[:, number] = np.bincount(route, minlength=len(shards))
        shares[:, number] = np.bincount(route, world.heat(number), minlength=len(shards))
        held = [int(each[table.name].sum()) for each in deployed.held]
        spare[:, number] = held - rows[:, number]
    return Placement(shards, rows, shares, spare)


def as_it_runs(deployed: Deployed, planner: Planner, world: World, placed: Sequence[int]) -> Plan:
    """The deployed plan with what its functions can do under the heat of now.

    None of them has fewer replicas than were planned.
    """
    layout = layout_of(planner, deployed.plan, shares_of(deployed, world))
    plan, shards = deployed.plan, []
    remote = iter(layout.shards)
    for number, shard in enumerate(plan.shards):
        if number == 0:  # the gateway's own
            shards.append(shard)
            continue
        function = next(remote)
        floor = {"min_scale": shard.replicas, "initial_scale": placed[number]}
        scaling = shard.scaling.model_copy(update=floor)
        shards.append(
            shard.model_copy(
                update={
                    "gathers": function.gathers,
                    "touch_probability": min(1.0, -np.expm1(-function.gathers)),
                    "qps_per_replica": shard.vcpu / function.service_s,
                    "scaling": scaling,
                }
            )
        )
    gateway = plan.gateway.model_copy(
        update={
            "qps_per_replica": plan.gateway.vcpu / layout.gateway.service_s,
            "scaling": plan.gateway.scaling.model_copy(
                update={"min_scale": plan.gateway.replicas, "initial_scale": placed[0]}
            ),
        }
    )
    return plan.amended(shards=tuple(shards), gateway=gateway)


class Sampler:
    """What a gateway counts of an hour's queries: sketches, and gathers by shard lately."""

    def __init__(self) -> None:
        self.sketches = [TableSketch(ROWS, ROWS // 4) for _ in MODEL.tables]
        self.samples = 0.0

    def watch(self, world: World, deployed: Deployed, seconds: float) -> Seen:
        """Sample for so long."""
        shards, queries = len(deployed.plan.shards), round(SAMPLED * seconds / HOUR_S)
        factor = 2 ** (-seconds / HALF_LIFE_S)
        gathers = np.zeros((shards, TABLES), np.int64)
        touched = np.zeros(shards, np.int64)
        for number, (sketch, table) in enumerate(zip(self.sketches, MODEL.tables, strict=True)):
            ids = world.ids(number, queries * BATCH * POOLING)
            sketch.decay(factor)
            sketch.add(ids)
            gathers[:, number] = np.bincount(deployed.routes[table.name][ids], minlength=shards)
        self.samples = factor * self.samples + queries * BATCH
        touched[gathers.any(axis=1)] = queries
        return Seen(gathers, touched, queries, deployed.plan.qps, seconds)

    def planner(self) -> tuple[Planner, list[Floats], list[Ints]]:
        """A planner for live heat, the heat of each row, and the rows in their order."""
        curves, heats, orders = [], [], []
        for sketch in self.sketches:
            rates, rows = distribution(sketch)
            ends = np.minimum(np.rint(np.cumsum(rows)), ROWS).astype(np.int64)
            share = np.cumsum(rates * np.diff(ends, prepend=0))
            kept = np.diff(ends, prepend=0) > 0
            ranks = np.concatenate([[0], ends[kept]])
            ranks[-1] = ROWS
            curve = AccessCurve(ranks, np.concatenate([[0.0], share[kept] / share[-1]]))
            order = ranked(sketch, None)
            heat = np.empty(ROWS)
            heat[order] = np.diff(curve.cdf(np.arange(ROWS + 1, dtype=np.float64)))
            curves.append(curve)
            heats.append(heat)
            orders.append(order)
        return Planner(MODEL, loads(curves), REQUEST), heats, orders


@dataclass
class Way:
    """One way to go on, and what came of it."""

    name: str
    deployed: Deployed
    sampler: Sampler = field(default_factory=Sampler)
    auto: AutoReplan | None = None
    placed: list[int] = field(default_factory=list)
    usd: float = 0.0
    queries: int = 0
    late: float = 0.0
    moved: int = 0
    replans: int = 0
    resident: list[float] = field(default_factory=list)

    def replan(self) -> int:
        """Plan anew for what was sampled and deploy it; bytes moved."""
        planner, heats, orders = self.sampler.planner()
        found = replan(planner, self.deployed.plan, self.deployed, heats)
        if not found.changes:
            return 0
        taken = found.taken
        if self.auto is not None and not self.auto.affords(0.0, taken.moved_bytes):
            return 0
        demand = taken.candidate.layout.demand
        outcome = replace(found.outcome, demand=demand, best={"joint": taken.candidate}, free=None)
        plan = plan_document(outcome, "0" * 64, "0" * 64)
        self.deployed = self.deployed.replanned(plan, taken, routes_by_rank(plan, orders))
        self.moved += taken.moved_bytes
        self.replans += 1
        self.placed = []
        return taken.moved_bytes

    def hour(self, hour: int, world: World, planner: Planner, folder: Path) -> None:
        """An hour of queries; what is decided in it takes effect at its end."""
        plan = self.deployed.plan
        placed = self.placed or [
            plan.gateway.replicas,
            *(shard.replicas for shard in plan.shards[1:]),
        ]
        running = as_it_runs(self.deployed, planner, world, placed)
        traffic = parse_traffic(f"constant:{plan.qps:g}", SIMULATED_S)
        done = run_simulation(running, traffic, Terms(), node_of(running, None), seed=hour)
        result = write_simulation(
            folder / f"{self.name}-{hour}", done, title=self.name, sla_ms=SLA_MS, overwrite=True
        )
        self.placed = [int(number) for number in done.trace.placed[-1]]
        self.usd += done.usd_per_month / 730.0
        queries = round(result.queries * HOUR_S / SIMULATED_S)
        self.queries += queries
        self.late += (result.late_share or 0.0) * queries
        placement = shares_of(self.deployed, world)
        self.resident.append(float(placement.shares[0].mean()))
        self._decide(hour, world)

    def _decide(self, hour: int, world: World) -> None:
        for look in range(LOOKS):
            seen = self.sampler.watch(world, self.deployed, HOUR_S / LOOKS)
            if self.auto is None:
                continue
            planner = Planner(MODEL, loads([AccessCurve.power_law(ROWS, 0.9)] * TABLES), REQUEST)
            now_s = hour * HOUR_S + (look + 1) * HOUR_S / LOOKS
            drifted = compare(planner, self.deployed.plan, seen, 0.02).drifted
            if self.auto.look(now_s, drifted) is Replanning.ACT:
                self.auto.put_off(now_s)
                moved = self.replan()
                if moved:
                    self.auto.changed(now_s, moved)
        if self.name == "nightly" and hour % 24 == NIGHT:
            self.replan()

    def document(self) -> dict[str, Any]:
        """What came of it."""
        return {
            "way": self.name,
            "usd_a_day": round(self.usd, 2),
            "late": round(self.late),
            "late_share": round(self.late / self.queries, 5),
            "replans": self.replans,
            "moved_gb": round(self.moved / 1e9, 3),
            "resident_share": {
                "mean": round(float(np.mean(self.resident)), 4),
                "least": round(min(self.resident), 4),
            },
        }


def day(options: argparse.Namespace) -> dict[str, Any]:
    """All three ways through the same day."""
    ways = []
    with tempfile.TemporaryDirectory(prefix="erless-drift-") as folder:
        for name in ("none", "nightly", "automatic"):
            world = World(options.share)
            way = Way(name, first_plan(world))
            if name == "automatic":
                way.auto = AutoReplan(900.0, options.at_most_every * HOUR_S, 1e12)
            planner = Planner(MODEL, loads([AccessCurve.power_law(ROWS, 0.9)] * TABLES), REQUEST)
            for hour in range(HOURS):
                way.hour(hour, world, planner, Path(folder))
                world.turn()
            ways.append(way.document())
            print(json.dumps(ways[-1]), file=sys.stderr)
    size = TABLES * ROWS * DIM * 4
    return {"share": options.share, "model_gb": size / 1e9, "qps": planner.demand.qps, "ways": ways}


def sampling(running: Fleet, options: argparse.Namespace) -> dict[str, Any]:
    """CPU per query with sampling ÷ without, of gateway and shards."""
    work = options.work
    release = prepare(work, options.rows, 4, 0.8)
    store = str(work / "store-4-0.8")
    shards = running.shards(store, release)
    every = {"ERLESS_HEAT_EVERY_S": "5"}
    sampled = running.gateway(store, release, shards, ERLESS_SAMPLE=f"{options.sample:g}", **every)
    plain = running.gateway(store, release, shards)
    running.ready()
    bodies = [build(query) for query in QueryFile(work / "model" / "queries.safetensors")]
    model = release.model.name
    sides = [Side(each, [each, *shards.values()], model) for each in (plain, sampled)]
    for _ in range(options.rounds):
        for side in sides:
            side.many(bodies, options.seconds)
        sides.reverse()
    plain_ms, sampled_ms = (sides[0], sides[1]) if sides[0].url == plain.url else sides[::-1]
    ratios = [b / a for a, b in zip(plain_ms.cpu_ms, sampled_ms.cpu_ms, strict=True)]
    return {
        "sample": options.sample,
        "cpu_ms": spread(plain_ms.cpu_ms),
        "cpu_ratio": spread(ratios),
    }


def live(running: Fleet, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a change of the hot rows until the verb says that the plan has drifted."""
    work = options.work
    release = prepare(work, options.rows, 4, 0.8)
    store = str(work / "store-4-0.8")
    shards = running.shards(store, release)
    gateway = running.gateway(store, release, shards, ERLESS_SAMPLE=f"{options.sample:g}")
    running.ready()
    queries = list(QueryFile(work / "model" / "queries.safetensors"))
    swaps = _swaps(open_store(store), release)
    before = [build(query) for query in queries]
    after = [build(_swapped(query, swaps)) for query in queries]
    path = f"/v2/models/{release.model.name}/infer"
    calm = []
    for _ in range(options.rounds):
        run_closed_loop(gateway.url, path, before, 2, 15.0)
        calm.append(_drifted(store, work / "profile"))
    begin = time.monotonic()
    while not _drifted(store, work / "profile"):
        run_closed_loop(gateway.url, path, after, 2, 5.0)
        if time.monotonic() - begin > 600:
            raise SystemExit("drift was not seen in 600 s")
    return {"false_alarms": sum(calm), "looks": len(calm), "seen_s": time.monotonic() - begin}


def _swaps(store: Store, release: ReleaseManifest) -> list[Ints]:
    """For each table (rows,) the row that is asked for instead of each."""
    random = np.random.default_rng(7)
    swaps = []
    for route in routes_of(store, release).values():
        swap = np.arange(len(route))
        hot, others = np.flatnonzero(route == 0), np.flatnonzero(route)
        out = random.choice(hot, int(0.3 * len(hot)), replace=False)
        into = random.choice(others, len(out), replace=False)
        swap[out], swap[into] = into, out
        swaps.append(swap)
    return swaps


def _swapped(query: Query, swaps: Sequence[Ints]) -> Query:
    ends = np.cumsum(query.lengths.sum(axis=1))
    parts = np.split(query.values, ends[:-1])
    values = [swap[part] for swap, part in zip(swaps, parts, strict=True)]
    return replace(query, values=np.concatenate(values))


def _drifted(store: str, profile: Path) -> bool:
    """Whether `erless drift` says so; not where nothing was sampled yet."""
    verb = ("drift", "--no-plan", "--store", store, "--profile", str(profile))
    done = subprocess.run([sys.executable, "-m", "erless", *verb], capture_output=True, check=False)
    return done.returncode == 3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure live heat, drift and replanning.")
    parser.add_argument("what", choices=["sampling", "live", "day"])
    parser.add_argument("--share", type=float, default=0.05, help="of the hot rows, each hour")
    parser.add_argument("--at-most-every", type=float, default=2.0, help="hours [automatic]")
    parser.add_argument("--rows", type=int, default=200_000, help="per table of RM1")
    parser.add_argument("--sample", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--work", type=Path, help="keep model and release here")
    options = parser.parse_args()
    if options.what == "day":
        document = day(options)
    else:
        with tempfile.TemporaryDirectory(prefix="erless-heat-") as folder, fleet() as running:
            options.work = options.work or Path(folder)
            options.work.mkdir(parents=True, exist_ok=True)
            measure = sampling if options.what == "sampling" else live
            document = measure(running, options)
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
