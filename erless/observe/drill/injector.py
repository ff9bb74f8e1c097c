"""Break replicas on a clock, and watch until each fault is found and healed.

A fault is *found* when its victim counts as ready no more, and *healed* when its function has as
many ready replicas as before. For a replica that joins it is found when it is ready, and healed
when it has answered a call.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from erless.errors import ErlessError
from erless.specs.churn import FaultKind, FaultSite, LiveReplica, ScheduledFault

__all__ = ["Injected", "Injector", "choose_victim"]

POLL_S = 0.05
START_S = 60.0  # for the load to begin
WATCH_S = 60.0  # what has not healed after so long has not
POSTPONED_S = 1.0  # a fault that finds no victim waits so long for one


@dataclass(slots=True)
class Injected:
    """One fault. at_s: seconds since 1970; found_s, healed_s: seconds later."""

    kind: FaultKind
    function: str
    replica: str
    at_s: float
    before: frozenset[str] = frozenset()  # ready replicas of its function, the victim among them
    found_s: float | None = None
    healed_s: float | None = None

    @property
    def watched(self) -> bool:
        """Whether it may still be found or heal."""
        return self.healed_s is None and time.time() - self.at_s < WATCH_S


def choose_victim(
    kind: FaultKind, replicas: Sequence[LiveReplica], turn: int, *, last: bool, busy: set[str]
) -> LiveReplica | None:
    """The oldest ready replica of the function whose turn it is; None where none may be broken.

    Args:
        kind: of the fault.
        replicas: that live.
        turn: counts the faults of this kind.
        last: a function's only ready replica may be broken too.
        busy: functions in which another fault has not healed; they come last, and only with `last`.
    """
    ready: dict[str, list[LiveReplica]] = {}
    for replica in replicas:
        if replica.ready and kind.befalls(replica.kind):
            ready.setdefault(replica.function, []).append(replica)
    least = 1 if last or kind is FaultKind.ADD else 2
    names = [name for name in sorted(ready) if len(ready[name]) >= least]
    calm = [name for name in names if name not in busy]
    eligible = calm or (names if last else [])
    if not eligible:
        return None
    return max(ready[eligible[turn % len(eligible)]], key=lambda replica: replica.age_s)


@dataclass
class Injector:
    """Break replicas of `site` in a thread of its own while its block runs.

    Args:
        site: what is broken.
        faults: when, in seconds after the first may come.
        started_s: when the load began, in seconds since 1970; None while it has not.
        calm_s: from then to the first fault that may come.
        last: a function's only ready replica may be broken too.
        seed: of the order in which functions are broken.
    """

    site: FaultSite
    faults: Sequence[ScheduledFault]
    started_s: Callable[[], float | None]
    calm_s: float
    last: bool = False
    seed: int = 0
    injected: list[Injected] = field(default_factory=list)
    skipped: int = 0
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="injector", daemon=True)
        generator = random.Random(self.seed)  # noqa: S311 - which function comes first
        self._turns = {kind: generator.randrange(1 << 16) for kind in FaultKind}

    def __enter__(self) -> Injector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        self.site.undo()

    def _run(self) -> None:
        give_up_s = time.time() + START_S
        while (began_s := self.started_s()) is None:
            if self._stop.wait(POLL_S) or time.time() > give_up_s:
                return
        due = [began_s + self.calm_s + fault.t_s for fault in self.faults]
        place = 0
        while not self._stop.wait(POLL_S):
            replicas = self._replicas()
            if replicas is None:
                continue
            self._observe(replicas)
            if place < len(due) and time.time() >= due[place]:
                late = time.time() - due[place] > POSTPONED_S
                if self._inject(self.faults[place].kind, replicas):
                    place += 1
                elif late:
                    self.skipped, place = self.skipped + 1, place + 1

    def _replicas(self) -> Sequence[LiveReplica] | None:
        try:
            return self.site.replicas()
        except ErlessError as error:  # the target is busy: it is asked again
            self._note(error)
            return None

    def _note(self, error: ErlessError) -> None:
        if str(error) not in self.troubles:
            self.troubles.append(str(error))

    def _inject(self, kind: FaultKind, replicas: Sequence[LiveReplica]) -> bool:
        busy = {fault.function for fault in self.injected if fault.watched}
        victim = choose_victim(kind, replicas, self._turns[kind], last=self.last, busy=busy)
        if victim is None:
            return False
        ready = frozenset(
            replica.name
            for replica in replicas
            if replica.ready and replica.function == victim.function
        )
        at_s = time.time()
        try:
            self.site.inject(kind, victim)
        except ErlessError as error:
            self._note(error)
            return False
        self._turns[kind] += 1
        self.injected.append(Injected(kind, victim.function, victim.name, at_s, ready))
        return True

    def _observe(self, replicas: Sequence[LiveReplica]) -> None:
        """See which faults are found, and which have healed."""
        for fault in self.injected:
            if not fault.watched:
                continue
            ready = [r for r in replicas if r.ready and r.function == fault.function]
            since_s = time.time() - fault.at_s
            if fault.kind is FaultKind.ADD:
                self._observe_joined(fault, ready, since_s)
                continue
            others = [replica for replica in ready if replica.name != fault.replica]
            if fault.found_s is None and len(others) == len(ready):
                fault.found_s = since_s
            if fault.found_s is not None and len(others) >= len(fault.before):
                fault.healed_s = since_s

    def _observe_joined(
        self, fault: Injected, ready: Sequence[LiveReplica], since_s: float
    ) -> None:
        joined = [replica for replica in ready if replica.name not in fault.before]
        if not joined:
            return
        if fault.found_s is None:
            fault.found_s, fault.replica = since_s, joined[0].name
        if any(self.site.answered(replica) for replica in joined):
            fault.healed_s = time.time() - fault.at_s
