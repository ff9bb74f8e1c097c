"""One measured run: Locust's record and the target's samples become a result directory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from erless.errors import LoadTestError
from erless.observe.cost import priced, whole_model_usd
from erless.observe.loadtest.locust.process import Load, run_locust
from erless.observe.loadtest.record import LoadRecord, read_record
from erless.observe.loadtest.sampler import (
    Probe,
    Sample,
    Sampler,
    columns_of,
    usage,
    usage_of,
    wakings,
)
from erless.observe.queries import timeline_of, totals_of
from erless.observe.results import Event, Series, fill_result, staged_result
from erless.specs.plan import Plan
from erless.specs.result import Baseline, RunResult

__all__ = ["TOLERANCE", "Measuring", "Run", "fill", "measure", "send"]

TOLERANCE = 1e-5  # relative, of predictions: sharded fp32 equals the monolith up to summation order
ROWS = 600  # of the timeline, at most
MIN_STEP_S = 1.0


@dataclass(frozen=True)
class Run:
    """What was sent, what came back, and samples of what ran meanwhile."""

    load: Load
    record: LoadRecord
    sampler: Sampler
    interrupted: bool


@dataclass(frozen=True)
class Measuring:
    """How a load is sampled, and facts that its result records besides.

    Args:
        probe: what the sampler calls while it runs; None samples nothing.
        fields: further fields of the result.
        overwrite: replace a result that is there.
        tolerance: relative, of predictions.
        plan: what replicas cost.
        events: what happened besides.
    """

    probe: Probe | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    tolerance: float = TOLERANCE
    plan: Plan | None = None
    events: tuple[Event, ...] = ()


def measure(
    load: Load, out: Path, measuring: Measuring | None = None, *, sla_ms: float | None = None
) -> RunResult:
    """Send `load`, watch, and write the result to `out`.

    Ctrl-C keeps what was measured until then: the result is written, marked as interrupted.

    Raises:
        LoadTestError: nothing could be sent.
        ArtifactError: `out` exists and may not be replaced; raised before anything is sent.
        StorageError: `out` cannot be written; likewise.
    """
    measuring = measuring or Measuring()
    with staged_result(out, overwrite=measuring.overwrite) as stage:
        return fill(stage, send(load, measuring.probe), measuring, sla_ms=sla_ms)


def send(load: Load, probe: Probe | None) -> Run:
    """Send `load`, and watch.

    Raises:
        LoadTestError: nothing could be sent.
    """
    with tempfile.TemporaryDirectory(prefix="erless-loadtest-") as folder:
        with Sampler(probe) as sampler:
            path, interrupted = run_locust(load, Path(folder))
        return Run(load, read_record(path), sampler, interrupted)


def fill(stage: Path, run: Run, measuring: Measuring, *, sla_ms: float | None = None) -> RunResult:
    """Write what came of `run` into the result directory that is being made.

    Raises:
        LoadTestError: nothing was sent.
    """
    load, record, sampler, interrupted = run.load, run.record, run.sampler, run.interrupted
    plan = measuring.plan
    start, log = record.started_s, record.log
    if start is None or not len(log.due_s):
        raise LoadTestError(f"{load.host}: no query was sent")
    duration = load.duration_s
    if interrupted:
        duration = min(duration, float(log.due_s.max()) + 1e-3)
    samples = [sample for sample in sampler.samples if 0 <= sample.at_s - start <= duration]
    step = max(MIN_STEP_S, math.ceil(duration / ROWS))
    how = f"{load.traffic}, Poisson" if load.traffic else f"{load.users} closed loops"
    fields: dict[str, Any] = {
        "source": "loadtest",
        "title": f"Load test of {load.host}",
        "started_at": datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "duration_s": duration,
        "interrupted": interrupted,
        "arrivals": how,
        "notes": tuple(f"while sampling: {trouble}" for trouble in sampler.troubles),
        "prediction": record.prediction(measuring.tolerance),
        **totals_of(log, sla_ms),
        **usage_of(samples),
    }
    baseline = _baseline(samples, plan)
    if baseline is not None:
        fields["model_wise"] = baseline
    if plan is not None:
        fields["functions"] = priced(fields.get("functions", ()), plan)
        fields["usd_per_month"] = sum(function.usd_per_month for function in fields["functions"])
    series = Series(
        timeline_of(log, duration, step, sla_ms),
        columns_of(samples, start),
        sorted((*measuring.events, *wakings(samples, start)), key=lambda event: event.t_s),
    )
    return fill_result(stage, fields | dict(measuring.fields), series)


def _baseline(samples: Sequence[Sample], plan: Plan | None) -> Baseline | None:
    """As many whole copies as there were ready replicas; None where the target gives no size."""
    whole = [sample.model_wise_bytes for sample in samples]
    if not any(whole):
        return None
    copies = usage(
        [max((function.ready for function in sample.functions), default=0) for sample in samples]
    )
    return Baseline(
        memory_bytes=usage(whole),
        replicas=copies,
        usd_per_month=copies.mean * whole_model_usd(plan) if plan else 0.0,
        source="reckoned by the target for as many whole copies",
    )
