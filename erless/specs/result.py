"""The result of a load test or of a simulation: traffic, answers, and cost.

    RESULT/
      result.json         this document
      timeline.parquet    one row per time step: `TIMELINE`
      functions.parquet   one row per time step and function: `FUNCTIONS`
      events.parquet      one row per event: `EVENTS`

A run that was stopped early keeps what it had measured, and has `interrupted` set.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from erless.specs.artifact import Artifact, FileEntry, Frozen
from erless.specs.profile import Machine

__all__ = [
    "EVENTS",
    "FUNCTIONS",
    "MANIFEST",
    "TIMELINE",
    "AccessPlot",
    "Baseline",
    "DrillResult",
    "FaultResult",
    "FunctionResult",
    "Latency",
    "PredictionCheck",
    "RunResult",
    "Usage",
]

MANIFEST = "result.json"

# Columns by name: "f" float64, "i" int64, "s" text. Latencies are NaN where nothing was answered.
TIMELINE = {
    "t_s": "f",
    "offered_qps": "f",
    "served_qps": "f",
    "failed_qps": "f",
    "p50_ms": "f",
    "p95_ms": "f",
    "p99_ms": "f",
    "late": "f",
    "degraded": "i",
    "cold_starts": "i",
}
FUNCTIONS = {
    "t_s": "f",
    "function": "s",
    "ready": "i",
    "wanted": "i",
    "rps": "f",
    "p95_ms": "f",
    "memory_bytes": "i",
}
EVENTS = {"t_s": "f", "kind": "s", "function": "s", "detail": "s"}


class Latency(Frozen):
    """Milliseconds of all answered queries; from the moment a query was due, not when it left."""

    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


class Usage(Frozen):
    """Of something that varies over the run: its mean and its peak."""

    mean: float = 0.0
    peak: float = 0.0


class FunctionResult(Frozen):
    """One function over the run."""

    name: str
    kind: Literal["gateway", "sparse", "dense"] = "sparse"
    tier: str = ""
    replicas: Usage = Usage()
    memory_bytes: Usage = Usage(mean=0.0, peak=0.0)
    usd_per_month: float = 0.0
    zero_share: float = Field(0.0, ge=0, le=1, description="of the time at zero replicas")
    disk_bytes: Usage = Field(Usage(), description="rows on nodes' disks, all replicas")
    disk_reads_s: Usage = Field(Usage(), description="reads per second of these disks")
    disk_ms: float | None = Field(None, description="that reads add to p95, as planned")


class Baseline(Frozen):
    """Model-wise allocation under the same traffic, and how it was obtained."""

    memory_bytes: Usage
    replicas: Usage
    usd_per_month: float = 0.0
    memory_utility: float | None = None
    source: str = Field(description="measured, simulated, or reckoned, and from what")


class AccessPlot(Frozen):
    """Access CDF of one table: the hottest `ranks` take `share` of accesses; `cuts` end shards."""

    table: str
    ranks: tuple[int, ...]
    share: tuple[float, ...]
    cuts: tuple[tuple[int, str], ...] = Field((), description="(rank, shard that ends there)")


class PredictionCheck(Frozen):
    """Answers compared with the monolith's. `histogram`: (upper edge of relative error, count)."""

    checked: int = Field(ge=0)
    wrong: int = Field(ge=0, description="beyond the tolerance")
    tolerance: float
    max_relative_error: float
    histogram: tuple[tuple[float, int], ...] = ()


class FaultResult(Frozen):
    """One fault of a drill, and the queries that were under way while it had not healed."""

    t_s: float
    kind: str
    function: str
    replica: str
    found_s: float | None = Field(None, description="until it counted as ready no more")
    healed_s: float | None = Field(None, description="until as many were ready as before")
    queries: int = 0
    failed: int = 0
    wrong: int = 0
    late: int = 0
    slowest_ms: float = 0.0


class DrillResult(Frozen):
    """Faults on purpose. Goodput: the share of queries answered rightly within `good_ms`."""

    churn: str
    calm_s: float = Field(description="before the first fault")
    good_ms: float
    calm_goodput: float
    goodput: float = Field(description="from the first fault on")
    queries: int = Field(ge=0, description="from the first fault on")
    failed: int = 0
    wrong: int = 0
    late: int = 0
    skipped: int = Field(0, description="faults that found no victim")
    faults: tuple[FaultResult, ...] = ()

    @property
    def kept(self) -> float:
        """Goodput over that of the calm part."""
        return self.goodput / self.calm_goodput if self.calm_goodput else 0.0


class RunResult(Artifact):
    """One run. Means over time weigh every second alike."""

    KIND: ClassVar[str] = "erless result"

    source: Literal["loadtest", "simulate", "demo", "drill"]
    title: str
    model: str = ""
    release: str = ""
    plan_digest: str = ""
    policy: str = ""
    started_at: str = ""
    duration_s: float = Field(ge=0)
    interrupted: bool = False
    arrivals: str = Field("", description="how traffic was made")
    sla_p95_ms: float | None = None
    queries: int = Field(ge=0, description="offered")
    answered: int = Field(ge=0)
    failures: dict[str, int] = Field(default_factory=dict, description="queries by reason")
    degraded: int = 0
    cold_starts: int = 0
    late_share: float = Field(0.0, ge=0, le=1, description="queries later than the SLA, or failed")
    latency: Latency = Latency()
    memory_bytes: Usage = Usage()
    replicas: Usage = Usage()
    vcpu: Usage | None = Field(None, description="that replicas were allowed; simulated runs")
    usd_per_month: float = 0.0
    memory_utility: float | None = None
    tax: float | None = Field(
        None, description="disaggregation tax: CPU per query by shards ÷ by one whole model"
    )
    verdict: str = Field("", description="whether sharding pays at cloud prices, by the plan")
    model_wise: Baseline | None = None
    functions: tuple[FunctionResult, ...] = ()
    access: tuple[AccessPlot, ...] = ()
    prediction: PredictionCheck | None = None
    drill: DrillResult | None = None
    machine: Machine | None = None
    notes: tuple[str, ...] = ()
    timeline: FileEntry
    per_function: FileEntry
    events: FileEntry

    @property
    def memory_reduction(self) -> float | None:
        """Model-wise mean memory ÷ this run's."""
        if self.model_wise is None or not self.memory_bytes.mean:
            return None
        return self.model_wise.memory_bytes.mean / self.memory_bytes.mean

    @property
    def disk_bytes(self) -> float:
        """Rows on nodes' disks, mean over the run."""
        return sum(function.disk_bytes.mean for function in self.functions)

    @property
    def failed(self) -> int:
        """Queries without a right answer."""
        return sum(self.failures.values())
