"""The autoscalers of all functions in a simulation: what they are told, and what they decide."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from erless.autoscale.kpa import TICK_S, Decision, Observation
from erless.observe.simulator.fleet import Fleet, Terms
from erless.observe.simulator.policies import LoadSeen, Policy, policy_of
from erless.observe.simulator.quotas import Periods

__all__ = ["Autoscalers", "Told"]

Floats = NDArray[np.float64]


class Told(NamedTuple):
    """A step as the autoscalers may know it: (F,) each.

    called: calls in the step. ready: replicas. waits: whether calls wait at zero replicas. stay:
    seconds that a call was in flight; wait_s: of them, not being served. Of one replica, throttled:
    share of its periods, used_vcpu: on average.
    """

    called: Floats
    ready: NDArray[np.int64]
    waits: NDArray[np.bool_]
    stay: Floats
    wait_s: Floats
    throttled: Floats
    used_vcpu: Floats

    @classmethod
    def of(
        cls,
        fleet: Fleet,
        called: Floats,
        ready: NDArray[np.int64],
        waits: NDArray[np.bool_],
        stay: Floats,
        held: NDArray[np.int64],
        periods: Periods,
    ) -> Self:
        """The end of a step; `held` are the functions under quotas."""
        used = called * fleet.service_s / TICK_S / np.maximum(ready, 1)
        throttled = np.zeros(len(fleet))
        throttled[held], used[held] = periods.throttled, periods.used_vcpu
        wait_s = np.maximum(0.0, stay - fleet.service_s)
        return cls(called, ready.copy(), waits, stay, wait_s, throttled, used)


class Autoscalers:
    """The policy of each function, the vCPU that it gave, and the data that it missed.

    Args:
        fleet: the functions.
        terms: with the share of scrapes that are lost.
        generator: of their losses.
    """

    def __init__(self, fleet: Fleet, terms: Terms, generator: np.random.Generator) -> None:
        self.vcpu = fleet.vcpu.copy()
        self._terms, self._generator = terms, generator
        self._scalings = [function.scaling for function in fleet.functions]
        self._policies: list[Policy] = [
            policy_of(name, each.scaling, fleet.sizing(index, terms), each.vcpu, each.initial)
            for index, (name, each) in enumerate(zip(fleet.policies, fleet.functions, strict=True))
        ]
        # since the last tick with data: calls, seconds in flight of all calls, ticks
        self._calls, self._inside = np.zeros(len(fleet)), np.zeros(len(fleet))
        self._ticks = np.zeros(len(fleet), np.int64)
        self._lost = False

    def decide(self, now_s: float, told: Told) -> list[Decision]:
        """What each function's policy decides now; its vCPU holds from the next step."""
        self._calls += told.called
        self._inside += told.called * told.stay
        self._ticks += 1
        lost, decisions, vcpu = self._loses(), [], self.vcpu.copy()
        for index, policy in enumerate(self._policies):
            decision = policy.observe(self._seen(index, now_s, told, lost))
            decisions.append(decision)
            if decision.vcpu is not None:
                vcpu[index] = decision.vcpu
        self.vcpu = vcpu
        return decisions

    def _seen(self, index: int, now_s: float, told: Told, lost: bool) -> LoadSeen:
        waiting = bool(told.waits[index])
        value = requests_s = None
        if waiting or not lost:
            seconds = float(self._ticks[index]) * TICK_S
            requests_s = float(self._calls[index]) / seconds
            by_rate = self._scalings[index].metric == "rps"
            value = requests_s if by_rate else float(self._inside[index]) / seconds
            self._calls[index] = self._inside[index] = self._ticks[index] = 0
        observation = Observation(
            now_s,
            value,
            int(told.ready[index]),
            waiting,
            requests_s=requests_s,
            throttled=float(told.throttled[index]),
        )
        return LoadSeen(observation, float(told.used_vcpu[index]), float(told.wait_s[index]))

    def _loses(self) -> bool:
        """Whether nobody gets data at this tick: in gaps, `lost_scrapes` of the time."""
        share = self._terms.lost_scrapes
        if share <= 0:
            return False
        ends = min(1.0, TICK_S / self._terms.lost_gap_s)
        begins = min(1.0, ends * share / max(1e-9, 1 - share))
        drawn = self._generator.random()
        self._lost = drawn >= ends if self._lost else drawn < begins
        return self._lost
