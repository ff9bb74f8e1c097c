"""What the demo serves: a model, its profile, a plan of every tier, and a packed release."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.queries import Query, QueryFile
from erless.errors import PlanError
from erless.progress import Progress
from erless.specs.plan import DiskPlan, Plan, Scaling, Tier
from erless.specs.release import ReleaseManifest

if TYPE_CHECKING:
    from erless.plan.source import PlanSource

__all__ = [
    "SLA_MS",
    "ModelName",
    "Prepared",
    "make_model",
    "make_plan",
    "make_release",
    "memory_utility",
]

ModelName = Literal["rm1", "rm2", "rm3", "movielens"]
QUERIES = 128
TRAFFIC = 0.275  # of what a model-wise replica of one vCPU serves, on any machine
MOST_QPS = 150.0
SLA_MS = 100.0  # of p95
DAY_S = 86400
# A gateway with the hottest rows, a warm and a cold function, and one for rows that nobody asks for
SHAPE = {"shards": 3, "resident_share": 0.6, "frozen": True}
RARE_SHARE = 0.005  # of the gathers: what freezes where every row is asked for
# With --disk: rows of 3 % of the gathers (1,200 of RM1's), at a rate that a slow disk can read
DISK_SHAPE = {"frozen_share": 0.03}
DISK_QPS = 15.0
CACHE_SHARE = 0.1  # of the rows on the disk
AT_ZERO = (Tier.COLD, Tier.FROZEN)
WINDOW_S = 6.0  # Knative's shortest
GRACE_S = 2.0


@dataclass(frozen=True)
class Prepared:
    """Folders and artifacts of one demo.

    expected: the monolith's predictions of each query, (B,) float32.
    labels: of the queries, where there are any.
    wake: a query that asks for frozen rows too.
    live: share of the rows that the traffic asks for.
    calm: queries that are asked before the traffic.
    """

    bundle: Path
    profile: Path
    queries: list[Query]
    expected: list[NDArray[np.float32]]
    labels: NDArray[np.float32] | None
    wake: Query
    wake_expected: NDArray[np.float32]
    live: float
    calm: int

    @property
    def under_load(self) -> slice:
        """Which queries the traffic asks: those that were not asked before, where there are any."""
        return slice(self.calm if self.calm < len(self.queries) else 0, None)


def make_model(
    name: ModelName,
    folder: Path,
    rows: int,
    data: Path | None,
    live: float,
    progress: Progress,
    announce: Callable[[str], None],
    more: int = 0,
) -> Prepared:
    """Build or train the model, profile its access log, and predict its queries with torch.

    A synthetic model's log is of a whole day of its traffic, so that what nobody asks for shows;
    `more` of its queries are asked by the traffic alone.
    `announce` gets a line on each step that begins: without a terminal nothing else shows it.
    """
    import torch

    from erless.dlrm.reference import Monolith
    from erless.importers.synthetic import ACCESS_LOG
    from erless.importers.synthetic import QUERIES as QUERY_FILE
    from erless.profile.access import profile_access
    from erless.profile.formats import LogSource

    torch.set_num_threads(1)  # small layers gain nothing from more
    bundle, profile = folder / "model", folder / "profile"
    if name == "movielens":
        from erless.cli.model.example import ratings_in
        from erless.importers.training import make_movielens

        announce(f"training {name}")
        with ratings_in(data) as ratings:
            make_movielens(ratings, bundle, progress=progress)
        wake, live, more = None, 1.0, 0
    else:
        from erless.dlrm.workload import WORKLOADS
        from erless.importers.synthetic import make_example, queries_of

        workload = dataclasses.replace(WORKLOADS[name], rows=rows, live=live)
        announce(f"building {name} at {rows:,} rows a table")
        day = round(MOST_QPS * DAY_S * workload.batch)
        make_example(
            workload,
            bundle,
            queries=QUERIES + more,
            log_samples=day,
            counted=True,
            progress=progress,
        )
        wake = queries_of(dataclasses.replace(workload, live=1.0), workload.batch, block=1)
    announce("profiling its access log")
    profile_access(bundle, [LogSource.parse(str(bundle / ACCESS_LOG))], profile, progress=progress)
    announce("predicting with the whole model, to compare with")
    file = QueryFile(bundle / QUERY_FILE)
    queries = list(file)
    model = Monolith.load(bundle, verify=False)
    expected = [model.predict(query) for query in queries]
    wake = wake or queries[0]
    return Prepared(
        bundle,
        profile,
        queries,
        expected,
        file.labels,
        wake,
        model.predict(wake),
        live,
        len(queries) - more,
    )


def make_plan(prepared: Prepared, batch: int, *, disk: bool = False) -> tuple[Plan, PlanSource]:
    """The plan for the spike, through the same planner as `erless plan`, with every tier in it.

    Its scaling is quickened to windows of seconds.
    """
    from erless.plan.nodes.prices import read_prices
    from erless.plan.planner import POLICIES, Planner
    from erless.plan.report.document import plan_document
    from erless.plan.request import PlanRequest
    from erless.plan.source import profile_source

    source = profile_source(prepared.bundle, prepared.profile, batch, stale=True)
    prices = read_prices(None)

    def planner(**more: float) -> Planner:
        request = PlanRequest.model_validate(
            {
                "traffic": TRAFFIC,
                "batch": batch,
                "sla_p95_ms": SLA_MS,
                **SHAPE,
                **({"frozen_share": RARE_SHARE} if prepared.live == 1 else {}),
                **(DISK_SHAPE if disk else {}),
                **more,
            }
        )
        return Planner(source.model, source.tables, request, prices, source.measured)

    chosen_planner = planner()
    most = DISK_QPS if disk else MOST_QPS
    if chosen_planner.demand.qps > most:
        chosen_planner = planner(qps=most)
    outcome = chosen_planner.outcome(POLICIES)
    plan = plan_document(outcome, source.model_digest, source.profile_digest, source.notes)
    if not any(shard.tier is Tier.FROZEN for shard in plan.shards):
        raise PlanError("the demo's plan has no frozen tier: the model has too few rows")
    plan = _quickened(plan)
    return (_on_disk(plan) if disk else plan), source


def _quickened(plan: Plan) -> Plan:
    quick = {"window_s": WINDOW_S, "grace_s": GRACE_S, "panic_window_percentage": 50.0}

    def scaled(scaling: Scaling, least: int) -> Scaling:
        changes = {**quick, "min_scale": least, "initial_scale": least}
        return scaling.model_copy(update=changes)

    shards = tuple(
        shard.model_copy(
            update={
                "min_replicas": 0 if shard.tier in AT_ZERO else 1,
                "scaling": scaled(shard.scaling, 0 if shard.tier in AT_ZERO else 1),
            }
        )
        for shard in plan.shards
    )
    gateway = plan.gateway.model_copy(update={"scaling": scaled(plan.gateway.scaling, 1)})
    return plan.amended(shards=shards, gateway=gateway)


def _on_disk(plan: Plan) -> Plan:
    """`plan` with its frozen rows on this machine's disk, under a cache of a tenth of them.

    What the planner does with `--disk` depends on prices; here it is shown at any size.
    """
    shards = tuple(
        shard.model_copy(
            update={"disk": DiskPlan(cache_bytes=int(CACHE_SHARE * shard.row_data_bytes))}
        )
        if shard.tier is Tier.FROZEN
        else shard
        for shard in plan.shards
    )
    return plan.amended(shards=shards)


def make_release(
    prepared: Prepared, plan: Plan, folder: Path, progress: Progress
) -> tuple[str, ReleaseManifest]:
    """Pack `plan`; the store and the release in it."""
    from erless.pack.inputs import PackInputs
    from erless.pack.packer import Packer
    from erless.storage.stores import open_store

    file, store = folder / "plan.json", str(folder / "releases")
    plan.save(file)
    opened = open_store(store, create=True)
    packed = Packer(
        PackInputs(prepared.bundle, prepared.profile, file), opened, progress=progress
    ).pack()
    if packed.release is None:
        raise PlanError(f"packing left out shards: {', '.join(packed.missing)}")
    return store, packed.release


def memory_utility(plan: Plan, source: PlanSource, ready: dict[str, int], queries: int) -> float:
    """Share of the rows in all `ready` replicas that `queries` queries touch, by the profile.

    Each of a function's replicas takes its part of the queries. `ready` is by function name; the
    resident shard is the gateway's.
    """
    tables = {table.spec.name: table for table in source.tables}
    touched = allocated = 0.0
    for shard in plan.shards:
        count = ready.get("gateway" if shard.tier is Tier.RESIDENT else shard.name, 0)
        for part in shard.slices if count else ():
            table = tables[part.table]
            accesses = table.gathers * queries / count
            touched += count * table.curve.touched(accesses, part.start, part.stop)
            allocated += count * part.rows
    return touched / allocated if allocated else 0.0
