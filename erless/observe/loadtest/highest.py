"""The highest rate within the SLA, by trials of Locust; the best trial becomes the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from erless.errors import LoadTestError
from erless.observe.loadtest.locust.process import Load
from erless.observe.loadtest.measure import Measuring, Run, fill, send
from erless.observe.loadtest.search import Floats, HighestRate, Trial, late_blocks, search
from erless.observe.results import staged_result

__all__ = ["find_highest", "summary", "trial_text"]


def find_highest(
    load: Load,
    out: Path,
    measuring: Measuring | None = None,
    *,
    sla_ms: float,
    start_qps: float,
    on_trial: Callable[[Trial], None] | None = None,
) -> HighestRate:
    """Search, and write what the highest rate's last trial measured to `out`.

    Ctrl-C ends the search: the highest rate that was met until then is what is written.

    Args:
        load: each trial, but for its traffic.
        out: result directory to make.
        measuring: how each trial is sampled and recorded.
        sla_ms: of p95.
        start_qps: first rate.
        on_trial: called after each decision.

    Raises:
        LoadTestError: nothing could be sent, or the SLA was not met at any rate.
        ArtifactError: `out` exists and may not be replaced; raised before anything is sent.
        StorageError: `out` cannot be written; likewise.
    """
    measuring = measuring or Measuring()
    runs: dict[float, Run] = {}  # the last at each rate

    def blocks_at(qps: float) -> Floats:
        run = send(replace(load, traffic=f"constant:{qps:g}"), measuring.probe)
        if run.interrupted:
            raise KeyboardInterrupt
        runs[qps] = run
        return late_blocks(run.record.log, load.duration_s, sla_ms)

    with staged_result(out, overwrite=measuring.overwrite) as stage:
        highest = search(blocks_at, start_qps=start_qps, on_trial=on_trial)
        if not highest.qps:
            raise LoadTestError("stopped before any rate met the SLA")
        notes = (summary(highest, sla_ms), *(trial_text(trial) for trial in highest.trials))
        with_notes = replace(measuring, fields={**measuring.fields, "notes": notes})
        fill(stage, runs[highest.qps], with_notes, sla_ms=sla_ms)
    return highest


def summary(highest: HighestRate, sla_ms: float) -> str:
    """The highest rate, and where the search ended, in a line for people."""
    end = "stopped there" if math.isinf(highest.beyond) else f"not at {highest.beyond:.0f}"
    return f"p95 within {sla_ms:g} ms up to {highest.qps:.0f} queries/s ({end})"


def trial_text(trial: Trial) -> str:
    """A trial in a line for people."""
    word = "met" if trial.met else "not met"
    return (
        f"{trial.qps:.1f} queries/s: SLA {word}, {trial.late:.2%} late "
        f"({max(0.0, trial.low):.2%} to {trial.high:.2%} over {trial.blocks} s)"
    )
