"""Status-aware scaling: a replica's vCPU follows the load first, replicas come behind it. Pure.

After the idea of StatuScale (arXiv 2407.10173), with a rule of our own: a vCPU costs no memory,
another replica costs all of its rows again. Each tick, with the load λ in requests/s over all
replicas and the line through its last `TREND_S` (`trend.py`):

    band    z · max(σ of the residuals, √(λ/Δt)), around the line that ended before this tick
    burst   above the band        D = max(line, λ + rise per second · time to act)
    ebb     below it for a while  D = the largest λ since, + zσ (the line: of before the fall)
    stable  else                  D = the line's largest value over the next cold start, + zσ
    vCPU    c* = D / (n · μ₁ · ρ): n replicas, μ₁ requests/s of one vCPU, ρ the utilisation
            up at once; down at most by half, only if ≥ 10 % lower; undone if it throttles
    starved more than half of the periods throttled: μ₁ was told too high. vCPU doubles; at the
            largest size a replica is added. Neither is taken back for a window

Replicas are added where c* would pass 0.9 of the largest size; once they are ready n is larger, and
the vCPU of all shrinks step by step. One is let go where n - 1 could bear the largest demand of the
last window at 0.7 of the largest size. Bounds, and zero in three steps, are the KPA's (`kpa.py`).
"""

from __future__ import annotations

from enum import StrEnum
from math import ceil, sqrt
from typing import NamedTuple

from erless.autoscale import kpa
from erless.autoscale.kpa import TICK_S, Decision, Observation
from erless.autoscale.trend import LoadPoint, Trend, fit
from erless.specs.plan import Scaling

__all__ = ["LoadStatus", "Sizing", "StatusScaler", "StatusState", "decide"]

TREND_S = 30.0
Z = 2.0  # chosen by precision and recall of bursts: docs/autoscaling.md
EBB_S = 3 * TICK_S  # below the band for so long is an ebb
SMALLEST_CUT = 0.10
LARGEST_CUT = 0.5
FULL, ROOMY = 0.9, 0.7  # of the largest size: add replicas beyond, let one go below
THROTTLED = 0.10  # share of periods: a cut that leads to more is undone
STARVED = 0.50  # share of periods: more, and a replica is too small whatever its demand is
LEAST_VCPU = 0.01  # the kernel's smallest allowance, in periods of 100 ms
PERIOD_S, LEAST_CALLS = 0.1, 2  # a replica may serve so many calls in each CFS period


class LoadStatus(StrEnum):
    """What the load does."""

    STABLE = "stable"
    BURST = "burst"
    EBB = "ebb"


class Sizing(NamedTuple):
    """What one replica can do, and how large it may be.

    requests_per_vcpu_s: μ₁. most_vcpu: its largest size. utilisation: ρ. cold_start_s: until a new
    replica serves. z: width of the band, in standard deviations.
    """

    requests_per_vcpu_s: float
    most_vcpu: float
    utilisation: float = 0.7
    cold_start_s: float = 2.0
    z: float = Z

    @property
    def least_vcpu(self) -> float:
        """Its smallest size: what comes after silence is served at full speed."""
        calls = LEAST_CALLS / (self.requests_per_vcpu_s * PERIOD_S)
        return min(self.most_vcpu, max(LEAST_VCPU, calls))


class Fall(NamedTuple):
    """The load has been below the band of `before`, the line until then, for some time.

    since_s: of its first such value. most: the largest since.
    """

    since_s: float
    most: float
    before: Trend


class StatusState(NamedTuple):
    """All that the next decision needs to know of the past.

    phases: the KPA's, for the way to zero. demands: descending maxima of the last window, the
    first is the largest. fall: since when the load has been below its band. uncut: the vCPU before
    a cut that has not proven itself. keep_until_s: no cut before.
    """

    phases: kpa.State
    vcpu: float
    points: tuple[LoadPoint, ...] = ()
    demands: tuple[tuple[float, float], ...] = ()
    fall: Fall | None = None
    uncut: float | None = None
    keep_until_s: float = 0.0

    @classmethod
    def begin(
        cls, scaling: Scaling, sizing: Sizing, now_s: float, ready: int = 0, vcpu: float = 0.0
    ) -> StatusState:
        """A new function, or one with `ready` replicas; of `vcpu`, else of the largest size."""
        size = min(vcpu or sizing.most_vcpu, sizing.most_vcpu)
        return cls(kpa.State.begin(scaling, now_s, ready), size)


class _Demand(NamedTuple):
    """Requests/s to be ready for: when vCPU must follow, and when replicas must be there."""

    status: LoadStatus
    soon: float
    later: float
    why: str


def decide(
    scaling: Scaling, sizing: Sizing, state: StatusState, seen: Observation
) -> tuple[StatusState, Decision]:
    """The next state, and the replicas and vCPU that are wanted, with the reason in words."""
    rate = seen.requests_s
    if rate is None:
        if not seen.waiting:
            phases = kpa.hold(scaling, state.phases, seen)
            return _decided(scaling, state._replace(phases=phases), "no data: as before")
        rate = 0.0
    load = state.phases.load
    if rate or seen.ready or seen.waiting:
        load = load.record(seen.now_s, rate, scaling.window_s)
    else:
        load = load.record_nothing(seen.now_s)
    state = state._replace(phases=state.phases._replace(load=load))
    state, demand = _demand(sizing, state, seen.now_s, rate)
    state, wanted, why = _replicas(scaling, sizing, state, seen, demand)
    wanted, why = kpa.bound(scaling, state.phases, seen, wanted, why)
    phases, why = kpa.advance(scaling, state.phases, seen, wanted, why)
    state, size = _size(scaling, sizing, state._replace(phases=phases), seen, demand)
    reason = f"{demand.status}: {demand.why}; {size}" + (f"; {why}" if why else "")
    return _decided(scaling, state, reason, demand.status is LoadStatus.BURST)


def _decided(
    scaling: Scaling, state: StatusState, reason: str, burst: bool = False
) -> tuple[StatusState, Decision]:
    load = state.phases.load
    averages = load.average(scaling.window_s), load.average(kpa.panic_window_s(scaling))
    return state, Decision(state.phases.wanted, reason, burst, *averages, state.vcpu)


def _demand(
    sizing: Sizing, state: StatusState, now_s: float, rate: float
) -> tuple[StatusState, _Demand]:
    """What the load does, and what to be ready for."""
    trend, previous = fit(state.points), state.points[-1] if state.points else None
    points = tuple(point for point in state.points if point.now_s > now_s - TREND_S)
    state = state._replace(points=(*points, LoadPoint(now_s, rate)))
    ahead_s = min(sizing.cold_start_s, TREND_S)  # no further ahead than the line looks back
    if trend is None or previous is None:
        margin = sizing.z * sqrt(rate / TICK_S)
        why = f"{rate:.3g} requests/s, too few to see a trend"
        return state, _Demand(LoadStatus.STABLE, rate + margin, rate + margin, why)
    if state.fall is not None and now_s - state.fall.since_s < TREND_S:
        trend = state.fall.before  # else the fall itself would widen the band
    line, band = trend.at(now_s), sizing.z * trend.noise
    where = f"{rate:.3g} requests/s on {line:.3g} ± {band:.3g}"
    if rate > line + band:
        rise = max(trend.slope, (rate - previous.rate) / (now_s - previous.now_s), 0.0)
        soon, later = (max(line, rate + rise * act_s) for act_s in (TICK_S, ahead_s))
        why = f"{where}, +{rise:.2g}/s"
        return state._replace(fall=None), _Demand(LoadStatus.BURST, soon, max(soon, later), why)
    if rate < line - band:
        fall = state.fall or Fall(now_s, 0.0, trend)
        fall = fall._replace(most=max(fall.most, rate))
        state = state._replace(fall=fall)
        if now_s - fall.since_s >= EBB_S:
            low = fall.most + sizing.z * sqrt(fall.most / TICK_S)
            why = f"{where} for {now_s - fall.since_s:.0f} s"
            return state, _Demand(LoadStatus.EBB, low, low, why)
    else:
        state = state._replace(fall=None)
    most = max(rate, _line_now(state, trend, now_s, ahead_s)) + band
    return state, _Demand(LoadStatus.STABLE, most, most, where)


def _line_now(state: StatusState, before: Trend, now_s: float, ahead_s: float) -> float:
    """The largest value over the next cold start of the line with this tick's load in it."""
    return (fit(state.points) or before).highest(now_s, ahead_s)


def _replicas(
    scaling: Scaling, sizing: Sizing, state: StatusState, seen: Observation, demand: _Demand
) -> tuple[StatusState, int, str]:
    """How many replicas are wanted before bounds, and why; nothing to say: as many as before."""
    now_s, most = seen.now_s, demand.later
    stop = len(state.demands)
    while stop and state.demands[stop - 1][1] <= most:
        stop -= 1
    recent = [each for each in state.demands[:stop] if now_s - each[0] < scaling.window_s]
    state = state._replace(demands=(*recent, (now_s, most)))
    have = state.phases.wanted
    if seen.waiting and have == 0:
        return state, max(1, scaling.activation_scale), "woken by a waiting call"
    if state.phases.load.average(scaling.window_s) == 0.0 and not seen.waiting:
        return state, 0, ""
    each = sizing.requests_per_vcpu_s * sizing.utilisation * sizing.most_vcpu
    have = max(1, have)
    if most > FULL * each * have:
        needed = ceil(most / (FULL * each))
        return state, needed, f"{needed} replicas: {have} would pass {FULL:.0%} of their size"
    if seen.throttled > STARVED and state.vcpu >= sizing.most_vcpu and seen.ready >= have:
        return state, have + 1, f"{have + 1} replicas: throttled at their largest size"
    peak = state.demands[0][1]
    kept = seen.now_s < state.keep_until_s
    if have > 1 and not kept and peak <= ROOMY * each * (have - 1):
        return state, have - 1, f"{have - 1} replicas bear {peak:.3g}/s at {ROOMY:.0%} of theirs"
    return state, have, ""


def _size(
    scaling: Scaling, sizing: Sizing, state: StatusState, seen: Observation, demand: _Demand
) -> tuple[StatusState, str]:
    """Each replica's vCPU: up at once, down in steps that are undone where they throttle."""
    serving = max(1, min(seen.ready, state.phases.wanted))
    exact = demand.soon / (serving * sizing.requests_per_vcpu_s * sizing.utilisation)
    best = min(max(exact, sizing.least_vcpu), sizing.most_vcpu)
    vcpu, uncut = state.vcpu, state.uncut
    if uncut is not None and seen.throttled > THROTTLED and best < uncut:
        state = state._replace(vcpu=uncut, uncut=None, keep_until_s=seen.now_s + scaling.window_s)
        return state, f"{uncut:.3g} vCPU again: {seen.throttled:.0%} of the periods throttled"
    state = state._replace(uncut=None)
    if seen.throttled > STARVED:
        best = min(max(best, 2 * vcpu), sizing.most_vcpu)
        state = state._replace(vcpu=best, keep_until_s=seen.now_s + scaling.window_s)
        return state, f"{best:.3g} vCPU each: {seen.throttled:.0%} of the periods throttled"
    if best > vcpu:
        return state._replace(vcpu=best), f"{best:.3g} vCPU each"
    if best > vcpu * (1 - SMALLEST_CUT):
        return state, f"{vcpu:.3g} vCPU each"
    if seen.now_s < state.keep_until_s:
        return state, f"{vcpu:.3g} vCPU each, kept since it throttled"
    cut = max(best, vcpu * LARGEST_CUT)
    return state._replace(vcpu=cut, uncut=vcpu), f"down to {cut:.3g} vCPU each"


class StatusScaler:
    """`decide` with its state kept.

    >>> sizing = Sizing(requests_per_vcpu_s=100, most_vcpu=2.0)
    >>> scaler = StatusScaler(Scaling(max_scale=9), sizing, now_s=0.0, ready=1)
    >>> seen = Observation(now_s=2.0, value=45.0, ready=1, requests_s=45.0)
    >>> decision = scaler.observe(seen)
    >>> decision.wanted, decision.vcpu
    (1, 1.0)
    """

    def __init__(
        self, scaling: Scaling, sizing: Sizing, now_s: float, ready: int = 0, vcpu: float = 0.0
    ) -> None:
        self.scaling, self.sizing = scaling, sizing
        self.state = StatusState.begin(scaling, sizing, now_s, ready, vcpu)

    @property
    def wanted(self) -> int:
        """The replicas that the last decision asked for."""
        return self.state.phases.wanted

    def observe(self, seen: Observation) -> Decision:
        """Take the next decision, on what was seen."""
        self.state, decision = decide(self.scaling, self.sizing, self.state, seen)
        return decision
