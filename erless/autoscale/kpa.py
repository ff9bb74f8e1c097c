"""Knative's pod autoscaler (KPA) as a pure function of what was observed and when.

After knative/serving: the decision in pkg/autoscaler/scaling/autoscaler.go, the bounds and the way
to zero in pkg/reconciler/autoscaling/kpa/{scaler,kpa}.go. With target T (times its utilisation),
r ready replicas (at least 1), S and P the load averaged over the stable and the panic window:

    stable = clamp(ceil(S / T), floor(r / max_scale_down_rate), ceil(max_scale_up_rate · r))
    panic  = clamp(ceil(P / T), …the same)
    panic begins, or is extended, where ceil(P / T) / r ≥ panic_threshold; it ends a stable window
    after the last such moment. In panic: the largest of both so far, never fewer.

Then the largest of the last `scale_down_delay_s`, then min, max and initial scale. Zero is reached
in three steps: nothing wanted and active for a stable window → inactive for the longer of grace
and retention → zero. A call that waits at zero counts as load, as Knative's activator reports it.

Left out: excess burst capacity and the activation timeout (nothing sits in our data path, and the
supervisor itself recognises a replica that does not start).
"""

from __future__ import annotations

from enum import StrEnum
from math import ceil, floor
from typing import NamedTuple

from erless.autoscale.window import WindowedLoad
from erless.specs.plan import Scaling

__all__ = [
    "TICK_S",
    "Decision",
    "Observation",
    "Phase",
    "Scaler",
    "State",
    "advance",
    "bound",
    "decide",
    "desire",
    "hold",
    "panic_window_s",
]

TICK_S = 2.0  # Knative's tickInterval: how often it decides
TARGET_MIN = 0.01  # Knative's autoscaling.TargetMin


class Phase(StrEnum):
    """Knative's condition Active: unknown, true, false."""

    ACTIVATING = "activating"
    ACTIVE = "active"
    INACTIVE = "inactive"


class Observation(NamedTuple):
    """The facts at `now_s` (any clock that only goes forward).

    value: requests/s or concurrent requests, by the scaling's metric, over all replicas, averaged
    since the last observation that had one; None where replicas could not be asked. At zero
    replicas it is 0: of calls that wait nothing is known until a replica takes them, and without
    any there is nobody to ask. waiting: a call waits for the first replica. reachable: traffic may
    come (a function of a release that is only kept is not: its min scale, delay and retention do
    not hold). requests_s, throttled: for the status-aware autoscaler (`status.py`): requests/s over
    all replicas, whatever the metric, and the share of CFS periods in which a replica had spent its
    allowance, since the last observation.
    """

    now_s: float
    value: float | None
    ready: int
    waiting: bool = False
    reachable: bool = True
    requests_s: float | None = None
    throttled: float = 0.0


class Decision(NamedTuple):
    """How many replicas are wanted and why, with the averages that it rests on.

    vcpu: of each replica; None where the autoscaler leaves it as it was planned.
    """

    wanted: int
    reason: str
    panic: bool
    stable: float
    burst: float
    vcpu: float | None = None


class State(NamedTuple):
    """All that the next decision needs to know of the past."""

    load: WindowedLoad
    wanted: int
    phase: Phase
    phase_since_s: float
    initialised: bool = False
    panic_since_s: float | None = None
    panic_wanted: int = 0
    peaks: tuple[tuple[float, int], ...] = ()

    @classmethod
    def begin(cls, scaling: Scaling, now_s: float, ready: int = 0) -> State:
        """A new function; or, with `ready` replicas, one whose autoscaler restarted.

        Knative's rule for the latter: without a history and with more than one replica it begins
        in panic, so that none is taken away before a stable window has passed.
        """
        wanted = ready or _initial(scaling)
        return cls(
            load=WindowedLoad.begin(now_s),
            wanted=wanted,
            phase=Phase.ACTIVATING if wanted else Phase.INACTIVE,
            phase_since_s=now_s,
            initialised=not wanted,
            panic_since_s=now_s if ready > 1 else None,
            panic_wanted=ready if ready > 1 else 0,
        )


def decide(scaling: Scaling, state: State, observation: Observation) -> tuple[State, Decision]:
    """The next state, and how many replicas are wanted; O(1) in time passed and in replicas.

    The cost grows with the observations per stable window only (30 with Knative's defaults).
    """
    load = state.load
    if observation.value is not None and (
        observation.value or observation.ready or observation.waiting
    ):
        load = load.record(observation.now_s, observation.value, scaling.window_s)
    elif observation.value is not None:
        load = load.record_nothing(observation.now_s)
    stable = load.average(scaling.window_s)
    burst = load.average(panic_window_s(scaling))
    state = state._replace(load=load)
    if observation.value is None and not observation.waiting:
        unchanged = Decision(
            state.wanted, "no data: as before", state.panic_since_s is not None, stable, burst
        )
        return hold(scaling, state, observation), unchanged
    state, wanted, reason = desire(scaling, state, observation, stable, burst)
    wanted, reason = bound(scaling, state, observation, wanted, reason)
    state, reason = advance(scaling, state, observation, wanted, reason)
    panic = state.panic_since_s is not None
    return state, Decision(state.wanted, reason, panic, stable, burst)


def panic_window_s(scaling: Scaling) -> float:
    """The panic window: whole seconds and at least one, halves away from zero, as Knative's.

    >>> panic_window_s(Scaling(window_s=90, panic_window_percentage=25))
    23.0
    """
    return max(1.0, float(floor(scaling.window_s * scaling.panic_window_percentage / 100 + 0.5)))


def desire(
    scaling: Scaling, state: State, observation: Observation, stable: float, burst: float
) -> tuple[State, int, str]:
    """Knative's `autoscaler.Scale`: replicas by load, rates, panic and delay; before bounds."""
    target = max(TARGET_MIN, scaling.target * scaling.target_utilisation)
    ready = max(1, observation.ready)
    most = ceil(scaling.max_scale_up_rate * ready)
    fewest = floor(ready / scaling.max_scale_down_rate) if observation.reachable else 0
    by_stable, by_burst = ceil(stable / target), ceil(burst / target)
    over = by_burst / ready >= scaling.panic_threshold_percentage / 100
    reason = f"{stable:g} {scaling.metric} ÷ {target:g} = {by_stable}"
    if observation.waiting:
        if by_stable == 0:
            reason = "woken by a waiting call"
        by_stable, by_burst = max(1, by_stable), max(1, by_burst)
    wanted, reason = _limit(scaling, by_stable, fewest, most, reason)

    since, peak = state.panic_since_s, state.panic_wanted
    if over:
        since = observation.now_s
    elif since is not None and since + scaling.window_s < observation.now_s:
        since, peak = None, 0
    if since is not None:
        burst_reason = f"{burst:g} {scaling.metric} ÷ {target:g} = {by_burst}"
        panicked, burst_reason = _limit(scaling, by_burst, fewest, most, burst_reason)
        if panicked < wanted:
            panicked, burst_reason = wanted, reason
        reason = f"panic: {burst_reason}" if panicked > peak else f"panic: stays at {peak}"
        wanted = peak = max(peak, panicked)

    peaks = state.peaks
    if scaling.scale_down_delay_s > 0 and observation.reachable:
        peaks = _recent(peaks, observation.now_s, wanted, scaling.scale_down_delay_s)
        if peaks[0][1] != wanted:
            wanted = peaks[0][1]
            reason = f"delay: {wanted} within the last {scaling.scale_down_delay_s:g} s"
    state = state._replace(panic_since_s=since, panic_wanted=peak, peaks=peaks)
    return state, wanted, reason


def _limit(scaling: Scaling, raw: int, fewest: int, most: int, reason: str) -> tuple[int, str]:
    """`raw` within the rates, then at least the activation scale where there is load at all."""
    wanted = raw
    if raw > most:
        wanted, reason = most, f"scale-up rate allows {most}"
    elif raw < fewest:
        wanted, reason = fewest, f"scale-down rate allows {fewest}"
    if scaling.activation_scale > 1 and raw > 0 and scaling.activation_scale > wanted:
        wanted, reason = scaling.activation_scale, f"activation scale {scaling.activation_scale}"
    return wanted, reason


def _recent(
    peaks: tuple[tuple[float, int], ...], now_s: float, wanted: int, delay_s: float
) -> tuple[tuple[float, int], ...]:
    """Descending maxima of the last `delay_s`; the first is the largest."""
    stop = len(peaks)
    while stop and peaks[stop - 1][1] <= wanted:
        stop -= 1
    first = 0
    while first < stop and now_s - peaks[first][0] >= delay_s:
        first += 1
    return (*peaks[first:stop], (now_s, wanted))


def _initial(scaling: Scaling) -> int:
    return min(max(scaling.min_scale, scaling.initial_scale), scaling.max_scale)


def _least(scaling: Scaling, state: State, observation: Observation) -> int:
    """The fewest replicas that are allowed now."""
    if not observation.reachable:
        return 0
    return _initial(scaling) if _initialising(scaling, state) else scaling.min_scale


def _initialising(scaling: Scaling, state: State) -> bool:
    return scaling.initial_scale > 1 and not state.initialised


def bound(
    scaling: Scaling, state: State, observation: Observation, wanted: int, reason: str
) -> tuple[int, str]:
    """`wanted` within the fewest and the most replicas that are allowed now."""
    least = _least(scaling, state, observation)
    if wanted < least:
        return least, f"{'initial' if _initialising(scaling, state) else 'min'} scale {least}"
    if wanted > scaling.max_scale:
        return scaling.max_scale, f"max scale {scaling.max_scale}"
    return wanted, reason


def advance(
    scaling: Scaling, state: State, observation: Observation, wanted: int, reason: str
) -> tuple[State, str]:
    """Take the decision `wanted`, zero in its three steps: the next state.

    Knative's `handleScaleToZero`, then its `computeActiveCondition`.
    """
    if wanted > 0:
        return _reconcile(scaling, state._replace(wanted=wanted), observation, wanted), reason
    since_s = observation.now_s - state.phase_since_s
    if state.phase is Phase.ACTIVATING:
        return _reconcile(scaling, state, observation, None), "starting: not idle yet"
    if state.phase is Phase.ACTIVE:
        if since_s < scaling.window_s:
            reason = f"idle: active for {since_s:.0f} s of a {scaling.window_s:g} s window"
            return _reconcile(scaling, state._replace(wanted=1), observation, 1), reason
        reason = "idle: inactive from now on"
        return _reconcile(scaling, state, observation, 0), reason
    retention_s = scaling.retention_s if observation.reachable else 0.0
    left_s = max(scaling.grace_s, retention_s) - since_s
    if left_s > 0 and state.wanted:
        which = "retention" if retention_s > scaling.grace_s else "grace"
        return _reconcile(scaling, state, observation, 0), f"idle: {left_s:.0f} s of {which} left"
    reason = "idle: to zero" if state.wanted else "at zero"
    return _reconcile(scaling, state._replace(wanted=0), observation, 0), reason


def hold(scaling: Scaling, state: State, observation: Observation) -> State:
    """The next state where nothing can be decided: as many replicas as before."""
    return _reconcile(scaling, state, observation, None)


def _reconcile(scaling: Scaling, state: State, observation: Observation, want: int | None) -> State:
    """The phase after a decision; `want` None: unknown, as Knative's -1."""
    least = scaling.min_scale if state.initialised else _initial(scaling)
    threshold = max(1, least)
    initialised = state.initialised or observation.ready >= least
    phase = state.phase
    if want == 0 or (not state.initialised and least == 0):
        phase = Phase.INACTIVE
    elif want or phase is not Phase.INACTIVE:
        phase = Phase.ACTIVE if observation.ready >= threshold else Phase.ACTIVATING
    if phase is not state.phase:
        state = state._replace(phase=phase, phase_since_s=observation.now_s)
    return state if state.initialised == initialised else state._replace(initialised=initialised)


class Scaler:
    """`decide` with its state kept.

    >>> scaler = Scaler(Scaling(target=10, target_utilisation=1, max_scale=9), now_s=0.0, ready=1)
    >>> scaler.observe(Observation(now_s=2.0, value=45.0, ready=1)).wanted
    5
    """

    def __init__(self, scaling: Scaling, now_s: float, ready: int = 0) -> None:
        self.scaling = scaling
        self.state = State.begin(scaling, now_s, ready)

    @property
    def wanted(self) -> int:
        """The replicas that the last decision asked for."""
        return self.state.wanted

    def observe(self, observation: Observation) -> Decision:
        """Take the next decision, on what was seen."""
        self.state, decision = decide(self.scaling, self.state, observation)
        return decision
