"""One drill: load from beginning to end, nothing broken at first, then faults on a clock."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erless.errors import ErlessError, OptionError
from erless.observe.drill.injector import Injector, choose_victim
from erless.observe.drill.outcome import drill_result, fault_events
from erless.observe.loadtest.locust.process import RECORD, Load, run_locust
from erless.observe.loadtest.measure import Measuring, Run, fill
from erless.observe.loadtest.record import read_record
from erless.observe.loadtest.sampler import Probe, Sampler
from erless.observe.results import staged_result
from erless.specs.churn import Churn, FaultKind, FaultSite
from erless.specs.result import RunResult

__all__ = ["Drill", "Observed", "drill"]


@dataclass(frozen=True)
class Drill:
    """What is broken, and how often.

    Args:
        churn: how often each kind of fault comes.
        calm_s: the first part of the load, without faults: what it is compared with.
        faulty_s: the part with faults.
        settle_s: the end, without new faults: the last of them heals.
        good_ms: an answer that takes longer is late.
        last: a function's only ready replica may be broken too.
        tolerance: relative, of predictions.
        seed: of the order in which functions are broken.
    """

    churn: Churn
    calm_s: float
    faulty_s: float
    settle_s: float
    good_ms: float
    last: bool = False
    tolerance: float = 1e-5
    seed: int = 0

    @property
    def duration_s(self) -> float:
        """Of the load."""
        return self.calm_s + self.faulty_s + self.settle_s

    def check(self, site: FaultSite) -> None:
        """Refuse what this deployment cannot do.

        Raises:
            OptionError: it cannot be broken in one of these ways, or has nothing to break.
        """
        replicas = site.replicas()
        for kind, _ in self.churn.every_s:
            if kind not in site.kinds:
                able = ", ".join(sorted(site.kinds))
                raise OptionError(f"churn {kind}: this target can only {able}")
            if choose_victim(kind, replicas, 0, last=self.last, busy=set()) is None:
                what = "gateway" if kind is FaultKind.GATEWAY else "function behind the gateway"
                if any(kind.befalls(replica.kind) for replica in replicas):
                    raise OptionError(f"churn {kind}: no {what} has two ready replicas")
                raise OptionError(f"churn {kind}: there is no {what}")


@dataclass(frozen=True)
class Observed:
    """How the deployment is sampled meanwhile, and facts that the result records besides."""

    probe: Probe | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False


def drill(load: Load, plan: Drill, site: FaultSite, out: Path, observed: Observed) -> RunResult:
    """Send `load`, break `site` as planned, and write the result to `out`.

    Ctrl-C ends it early, lets go of what hangs, and keeps what was measured.

    Raises:
        OptionError: this deployment cannot be broken so.
        LoadTestError: nothing could be sent.
        ArtifactError, StorageError: `out` cannot be written; raised before anything is broken.
    """
    plan.check(site)
    with (
        staged_result(out, overwrite=observed.overwrite) as stage,
        tempfile.TemporaryDirectory(prefix="erless-drill-") as folder,
    ):
        record = Path(folder) / RECORD
        injector = Injector(
            site,
            plan.churn.schedule(plan.faulty_s),
            lambda: _started_s(record),
            plan.calm_s,
            last=plan.last,
            seed=plan.seed,
        )
        with Sampler(observed.probe) as sampler, injector:
            path, interrupted = run_locust(load, Path(folder))
        run = Run(load, read_record(path), sampler, interrupted)
        result = drill_result(
            run.record,
            injector.injected,
            churn=str(plan.churn),
            calm_s=plan.calm_s,
            good_ms=plan.good_ms,
            skipped=injector.skipped,
        )
        fields = {
            **observed.fields,
            "source": "drill",
            "drill": result,
            "notes": tuple(f"while breaking: {trouble}" for trouble in injector.troubles),
        }
        measuring = Measuring(
            fields=fields, tolerance=plan.tolerance, events=tuple(fault_events(result))
        )
        return fill(stage, run, measuring, sla_ms=plan.good_ms)


def _started_s(record: Path) -> float | None:
    """When the first query's clock began, in seconds since 1970; None while it has not."""
    try:
        return read_record(record).started_s if record.exists() else None
    except (ErlessError, ValueError):
        return None
