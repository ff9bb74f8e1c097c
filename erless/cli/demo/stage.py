"""The demo itself: make, deploy, send, watch, and clean up whatever happens."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from erless.cli.demo import inputs
from erless.cli.demo.traffic import Answers, arrivals, cpu_per_query, one_by_one, open_loop
from erless.cli.demo.whole import WholeModel, measure_whole
from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import Desired, FunctionState, FunctionStatus
from erless.errors import DeployError
from erless.observe.loadtest.sampler import FunctionSample, Probe, Sampler
from erless.progress import Progress
from erless.specs.config import Config, LocalConfig, TargetsConfig
from erless.specs.plan import Plan

__all__ = ["Demo", "Measured"]

UTILITY_QUERIES = 1000
CHECKED = 1000  # answers, at least
LOW, LOW_SHARE = 0.2, 0.3  # of the spike's rate, of its time
IDLE_S = 120.0  # until all that may be is at zero, at most
NEWS_S = 20.0  # until the target shows what a query woke, at most
DEPLOY_S = 300.0
POLL_S = 0.5
SHOWN_S = 4.0  # at zero, so that the curves show it
WHOLE_S = 5.0  # of the same spike for the whole model, at most

Announce = Callable[[str], None]


@dataclass
class Measured:
    """Everything that the table, the JSON and the page are made of."""

    plan: Plan
    whole: WholeModel
    release: str = ""
    functions: int = 0
    answers: Answers = field(default_factory=Answers)
    begun_at: str = ""
    started_s: float = 0.0
    duration_s: float = 0.0
    spike_s: float = 0.0
    samples: Sampler = field(default_factory=lambda: Sampler(None))
    memory: list[tuple[float, int]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    memory_bytes: int = 0
    idle_memory_bytes: int = 0
    utility: float = 0.0
    cpu_ms: float = 0.0
    cold_start_ms: float = 0.0
    woken: tuple[str, ...] = ()
    at_zero: tuple[str, ...] = ()
    replicas: dict[str, int] = field(default_factory=dict)
    aucs: tuple[float, float] | None = None
    tiers: tuple[FunctionStatus, ...] = ()  # at the end of the spike

    @property
    def tax(self) -> float | None:
        """CPU per query by shards ÷ by one whole model; None where that took none."""
        return self.cpu_ms / self.whole.cpu_ms if self.whole.cpu_ms else None


class Demo:
    """One demo in a folder of its own.

    Args:
        name: of the model.
        rows: per table, of a synthetic one.
        data: of movielens.
        spike_s: seconds of the spike.
        progress: of its stages.
        announce: called with a line on each step.
        disk: put the frozen rows on this machine's disk.
        live: share of a synthetic model's rows that anybody asks for.
    """

    def __init__(
        self,
        name: inputs.ModelName,
        rows: int,
        data: Path | None,
        spike_s: float,
        progress: Progress,
        announce: Announce,
        disk: bool = False,
        live: float = 1.0,
    ) -> None:
        self._name, self._rows, self._data, self._spike_s = name, rows, data, spike_s
        self._progress, self._announce_line, self._disk = progress, announce, disk
        self._live = live
        self._began = time.monotonic()

    def run(
        self,
        show_plan: Callable[[Plan], None],
        report: Callable[[Measured, inputs.Prepared], None],
    ) -> Measured:
        """Do it all. `report(measured, prepared)` is called while the inputs are still there."""
        with tempfile.TemporaryDirectory(prefix="erless-demo-") as folder:
            work = Path(folder)
            prepared = self._prepare(work)
            self._announce("planning")
            batch = prepared.queries[0].batch
            plan, source = inputs.make_plan(prepared, batch, disk=self._disk)
            show_plan(plan)
            self._announce("packing")
            store, release = inputs.make_release(prepared, plan, work, self._progress)
            self._announce(
                f"packed {sum(shard.size_bytes for shard in release.shards) / 1e6:,.0f} MB"
            )
            measured = Measured(plan, self._measure_whole(prepared, plan), release.digest)
            options = LocalConfig(state=work / "state", poll_s=POLL_S)
            target = LocalTarget(
                Config(targets=TargetsConfig(local=options)), Timing(poll_s=POLL_S, rate_window_s=5)
            )
            try:
                self._announce("deploying")
                desired = Desired(store, release, plan)
                url = target.deploy(desired, self._progress, DEPLOY_S).url
                self._announce(f"deployed at {url}")
                self._measure_sharded(target, url, prepared, measured)
                with Sampler(_probe(target, measured)) as measured.samples:
                    self._traffic(target, url, prepared, measured)
                    self._idle_and_wake(target, url, prepared, measured)
            finally:
                target.destroy(self._progress, DEPLOY_S)
            measured.utility = inputs.memory_utility(
                plan, source, measured.replicas, UTILITY_QUERIES
            )
            report(measured, prepared)
        self._announce("cleaned up")
        return measured

    def _announce(self, text: str) -> None:
        self._announce_line(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def _prepare(self, work: Path) -> inputs.Prepared:
        # what was asked before is in the cache above the disk: none is asked twice under load
        most = math.ceil(1.2 * inputs.DISK_QPS * self._spike_s)
        prepared = inputs.make_model(
            self._name,
            work,
            self._rows,
            self._data,
            self._live,
            self._progress,
            self._announce,
            most if self._disk else 0,
        )
        size = sum(file.stat().st_size for file in prepared.bundle.rglob("*.safetensors"))
        self._announce(f"built and profiled {self._name}: {size / 1e6:,.0f} MB")
        return prepared

    def _measure_whole(self, prepared: inputs.Prepared, plan: Plan) -> WholeModel:
        """The whole model under the same spike, a process or as many as that takes."""
        self._announce("measuring the whole model under the same spike")
        whole = measure_whole(prepared, plan.qps, min(WHOLE_S, self._spike_s))
        met = "within" if whole.within else "not within"
        self._announce(
            f"whole model: {whole.processes} process(es), {whole.memory_bytes / 1e6:,.0f} MB, "
            f"p95 {whole.p95_ms:.1f} ms at {plan.qps:,.0f} queries/s, {met} {inputs.SLA_MS:g} ms"
        )
        return whole

    def _measure_sharded(
        self, target: LocalTarget, url: str, prepared: inputs.Prepared, measured: Measured
    ) -> None:
        def pids() -> list[int]:
            running = target.processes()
            return [pid for name, pids in running.items() if name != "supervisor" for pid in pids]

        measured.cpu_ms, answers, predictions = cpu_per_query(url, prepared, pids)
        measured.errors += answers.errors
        if prepared.labels is not None:
            from erless.dlrm.auc import auc

            scores = np.concatenate(predictions)
            labels = prepared.labels[: len(scores)]
            measured.aucs = auc(labels, scores), auc(labels, np.concatenate(prepared.expected))

    def _traffic(
        self, target: LocalTarget, url: str, prepared: inputs.Prepared, measured: Measured
    ) -> None:
        """Low, then the spike."""
        rate, low_s = measured.plan.qps, LOW_SHARE * self._spike_s
        due = arrivals([(LOW * rate, low_s), (rate, self._spike_s)])

        self._announce(f"traffic: {LOW * rate:,.0f} queries/s for {low_s:g} s, then {rate:,.0f}")
        measured.spike_s = self._spike_s
        measured.begun_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        measured.started_s = time.time()
        asked = prepared.under_load
        measured.answers = open_loop([url], prepared.queries[asked], prepared.expected[asked], due)
        measured.errors += measured.answers.errors
        end_s = time.time()
        spike = [size for at, size in measured.memory if end_s - self._spike_s / 2 <= at <= end_s]
        measured.memory_bytes = int(np.mean(spike)) if spike else target.status().memory_bytes
        measured.tiers = functions = target.status().functions
        measured.replicas = {function.name: function.ready for function in functions}
        missing = CHECKED - len(measured.errors)
        if missing > 0:
            answers, _ = one_by_one(url, prepared.queries, prepared.expected, missing)
            measured.errors += answers.errors
        replicas = ", ".join(f"{name} {count}" for name, count in measured.replicas.items())
        self._announce(
            f"at the end of the spike: {replicas}; {measured.memory_bytes / 1e6:,.0f} MB"
        )

    def _idle_and_wake(
        self, target: LocalTarget, url: str, prepared: inputs.Prepared, measured: Measured
    ) -> None:
        """Nothing is asked until all that may sleep does; then one query that wakes all of it."""
        sleepy = {shard.name for shard in measured.plan.shards if shard.scaling.min_scale == 0}
        deadline = time.monotonic() + IDLE_S
        while True:
            status = target.status()
            asleep = {
                function.name
                for function in status.functions
                if function.state is FunctionState.AT_ZERO
            }
            if asleep >= sleepy:
                break
            if time.monotonic() > deadline:
                raise DeployError(f"{', '.join(sleepy - asleep)} not at zero in {IDLE_S:g} s")
            time.sleep(POLL_S)
        time.sleep(SHOWN_S)
        measured.functions = len(status.functions)
        measured.at_zero = tuple(sorted(asleep))
        measured.idle_memory_bytes = target.status().memory_bytes
        at_zero = ", ".join(measured.at_zero)
        idle_mb = measured.idle_memory_bytes / 1e6
        self._announce(f"idle: {at_zero} at zero; {idle_mb:,.0f} MB")
        asked_s = time.time()
        answers, _ = one_by_one(url, [prepared.wake], [prepared.wake_expected], 1)
        measured.cold_start_ms = answers.latency_s[0] * 1e3
        measured.errors += answers.errors
        measured.woken = _woken(target, asleep)
        measured.answers.extend(answers, asked_s - measured.started_s)
        time.sleep(2 * POLL_S)  # so that the samples show it
        measured.duration_s = time.time() - measured.started_s
        self._announce(
            f"a query woke {', '.join(measured.woken)} in {measured.cold_start_ms:,.0f} ms"
        )


def _woken(target: LocalTarget, asleep: set[str]) -> tuple[str, ...]:
    """Which of `asleep` run, once none is on its way: an answer may be quicker than its news."""
    deadline = time.monotonic() + NEWS_S
    while True:
        functions = target.status().functions
        waking = any(function.state is FunctionState.WAKING for function in functions)
        woken = tuple(
            function.name for function in functions if function.name in asleep and function.ready
        )
        if (woken and not waking) or time.monotonic() > deadline:
            return woken
        time.sleep(POLL_S / 10)


def _probe(target: LocalTarget, measured: Measured) -> Probe:
    """Asks the target; keeps the whole deployment's memory, with the supervisor's."""

    def probe() -> tuple[Sequence[FunctionSample], int]:
        status = target.status()
        measured.memory.append((time.time(), status.memory_bytes))
        return [FunctionSample.of(function) for function in status.functions], 0

    return probe
