"""What decides in a simulation: the KPA, status-aware scaling, and two rules to compare them with.

`showar` and `autothrottle` are plain re-implementations, on this simulator's tick of two seconds:

- **showar** (Baarzi and Kesidis, SoCC 2021): size = mean + 3σ of the vCPU used over the last five
  minutes, changed where it differs by more than 15 %; replicas by a PID controller on how long
  calls wait to run, in steps of a tenth, beyond a dead band. Its scheduling hints are left out;
  gains and target are ours.
- **autothrottle** (Wang et al., NSDI 2024): its Captain with a fixed target instead of its
  learning Tower: a share of throttled periods above 3 × the target multiplies the quota; else the
  quota falls to the largest use of the last 50 observations plus a margin of standard deviations,
  which the distance from the target moves; a cut that throttles is taken back at once. Replicas
  stay as planned: it scales none.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev
from typing import Literal, NamedTuple, Protocol, get_args

from erless.autoscale.kpa import (
    Decision,
    Observation,
    Scaler,
    advance,
    bound,
    desire,
    panic_window_s,
)
from erless.autoscale.status import Sizing, StatusScaler
from erless.specs.plan import Scaling

__all__ = ["POLICIES", "LoadSeen", "Policy", "PolicyName", "policy_of"]

PolicyName = Literal["kpa", "status", "showar", "autothrottle", "kpa-partial"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


class LoadSeen(NamedTuple):
    """An observation of one function, and what its replicas' groups tell.

    used_vcpu: of one replica, on average. wait_s: that a call waits to run, on average.
    """

    observation: Observation
    used_vcpu: float
    wait_s: float


class Policy(Protocol):
    """Decides for one function, tick by tick."""

    def observe(self, seen: LoadSeen) -> Decision:
        """The next decision."""


def policy_of(
    name: PolicyName, scaling: Scaling, sizing: Sizing, vcpu: float, ready: int
) -> Policy:
    """A policy for a function of `ready` replicas of `vcpu` each, at the beginning."""
    if name == "kpa":
        return KpaPolicy(Scaler(scaling, 0.0, ready))
    if name == "status":
        return StatusPolicy(StatusScaler(scaling, sizing, 0.0, ready, vcpu))
    if name == "showar":
        return ShowarPolicy(scaling, sizing, vcpu, ready)
    if name == "autothrottle":
        return CaptainPolicy(sizing, vcpu, ready)
    return PartialKpaPolicy(Scaler(scaling, 0.0, ready))


class KpaPolicy:
    """Knative's, which leaves sizes alone."""

    def __init__(self, scaler: Scaler) -> None:
        self.scaler = scaler

    def observe(self, seen: LoadSeen) -> Decision:
        """The next decision."""
        return self.scaler.observe(seen.observation)


class PartialKpaPolicy(KpaPolicy):
    """The KPA that decides on what is left of its window while scrapes are missing, as Knative."""

    def observe(self, seen: LoadSeen) -> Decision:
        """The next decision."""
        found, scaler = seen.observation, self.scaler
        if found.value is not None:
            return scaler.observe(found)
        scaling, state = scaler.scaling, scaler.state
        load = state.load.record_nothing(found.now_s)
        state = state._replace(load=load)
        stable, burst = load.average(scaling.window_s), load.average(panic_window_s(scaling))
        state, wanted, reason = desire(scaling, state, found, stable, burst)
        wanted, reason = bound(scaling, state, found, wanted, reason)
        scaler.state, reason = advance(scaling, state, found, wanted, reason)
        panic = scaler.state.panic_since_s is not None
        return Decision(scaler.wanted, reason, panic, stable, burst)


class StatusPolicy:
    """`erless.autoscale.status`."""

    def __init__(self, scaler: StatusScaler) -> None:
        self.scaler = scaler

    def observe(self, seen: LoadSeen) -> Decision:
        """The next decision."""
        return self.scaler.observe(seen.observation)


class ShowarPolicy:
    """Three sigma for the size, PID for the number."""

    SIGMAS = 3.0
    MEMORY = 150  # ticks: five minutes
    CHANGE = 0.15
    STEP = 0.10
    WAIT_S = 0.020  # what calls may wait to run
    DEAD_BAND = 0.2
    GAINS = (0.8, 0.1, 0.1)  # of the relative error, its mean over 15 ticks, its change
    COOL_DOWN = 8  # ticks between two changes of the number

    def __init__(self, scaling: Scaling, sizing: Sizing, vcpu: float, ready: int) -> None:
        self.scaling, self.sizing, self.vcpu = scaling, sizing, vcpu
        self.wanted = max(1, ready)
        self.used: deque[float] = deque(maxlen=self.MEMORY)
        self.errors: deque[float] = deque([0.0], maxlen=15)
        self.still = 0

    def observe(self, seen: LoadSeen) -> Decision:
        """The next decision."""
        self.used.append(seen.used_vcpu)
        size = fmean(self.used) + self.SIGMAS * pstdev(self.used)
        size = min(max(size, self.sizing.least_vcpu), self.sizing.most_vcpu)
        if abs(size - self.vcpu) > self.CHANGE * self.vcpu:
            self.vcpu = size
        error = max(-1.0, min(5.0, seen.wait_s / self.WAIT_S - 1))
        before = self.errors[-1]
        self.errors.append(error)
        gain, integral, derivative = self.GAINS
        output = gain * error + integral * fmean(self.errors) + derivative * (error - before)
        self.still += 1
        if self.still >= self.COOL_DOWN and abs(output) > self.DEAD_BAND:
            step = max(1, round(self.wanted * self.STEP))
            self.wanted, self.still = self.wanted + (step if output > 0 else -step), 0
        self.wanted = min(max(self.wanted, self.scaling.min_scale, 1), self.scaling.max_scale)
        return Decision(self.wanted, f"PID {output:+.2f}", False, 0.0, 0.0, self.vcpu)


class CaptainPolicy:
    """A quota that follows the share of throttled periods."""

    TARGET = 0.06  # between those that the paper's Tower chooses among
    MEMORY = 50

    def __init__(self, sizing: Sizing, vcpu: float, ready: int) -> None:
        self.sizing, self.vcpu, self.before = sizing, vcpu, vcpu
        self.wanted = max(1, ready)
        self.used: deque[float] = deque([0.0] * self.MEMORY, maxlen=self.MEMORY)
        self.margin, self.cut = 3.0, False

    def observe(self, seen: LoadSeen) -> Decision:
        """The next decision."""
        throttled = seen.observation.throttled
        self.used.append(seen.used_vcpu)
        beyond = throttled - 3 * self.TARGET
        self.margin = max(0.0, self.margin + throttled - self.TARGET)
        vcpu = self.vcpu
        if beyond > 0 and self.cut:
            vcpu, why, self.cut = 2 * self.before - vcpu, "cut taken back", False
        elif beyond > 0:
            vcpu, why, self.cut = vcpu * (1 + beyond), "throttled", False
        else:
            enough = max(self.used) + self.margin * pstdev(self.used)
            self.cut = enough <= 0.9 * vcpu
            why = "down to what is used" if self.cut else "as before"
            if self.cut:
                vcpu = max(0.5 * vcpu, enough)
        self.before = self.vcpu
        self.vcpu = min(max(vcpu, self.sizing.least_vcpu), self.sizing.most_vcpu)
        return Decision(self.wanted, why, False, 0.0, 0.0, self.vcpu)
