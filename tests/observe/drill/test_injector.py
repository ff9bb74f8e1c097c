"""Faults come on a clock, to whom they may, and are watched until they heal."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from erless.errors import DeployError, OptionError
from erless.observe.drill.injector import Injected, Injector, choose_victim
from erless.observe.drill.outcome import WRONG, drill_result, fault_events
from erless.observe.drill.run import Drill
from erless.observe.drill.summary import summary_lines
from erless.observe.loadtest.record import LoadRecord
from erless.observe.queries import QueryOutcomes
from erless.specs.churn import Churn, FaultKind, LiveReplica, ScheduledFault, parse_churn
from erless.specs.functions import FunctionKind


@dataclass(frozen=True)
class Copy:
    function: str
    kind: FunctionKind
    name: str
    ready: bool = True
    age_s: float = 1.0


TWO = (
    Copy("hot", "sparse", "h1", age_s=5),
    Copy("hot", "sparse", "h2", age_s=9),
    Copy("cold", "sparse", "c1"),
    Copy("gateway", "gateway", "g1"),
    Copy("gateway", "gateway", "g2", ready=False),
)


class Site:
    """Copies in memory. What is broken is replaced as soon as it has been seen to be gone."""

    kinds = frozenset(FaultKind) - {FaultKind.DRAIN}
    shared = False

    def __init__(self, *copies: Copy) -> None:
        self.copies = list(copies)
        self.injected: list[tuple[FaultKind, str]] = []
        self.undone = threading.Event()
        self._due: list[Copy] = []
        self._asked = 0

    def replicas(self) -> Sequence[LiveReplica]:
        self._asked += 1
        if self._asked == 2:
            raise DeployError("busy")
        now = list(self.copies)
        self.copies += self._due
        self._due.clear()
        return now

    def inject(self, kind: FaultKind, victim: LiveReplica) -> None:
        self.injected.append((kind, victim.name))
        copy = next(copy for copy in self.copies if copy.name == victim.name)
        if kind is not FaultKind.ADD:
            self.copies.remove(copy)
        self._due.append(replace(copy, name=f"{copy.name}'", age_s=0.0))

    def answered(self, replica: LiveReplica) -> int:
        return 3

    def undo(self) -> None:
        self.undone.set()


def test_the_oldest_of_the_function_whose_turn_it_is() -> None:
    def name(kind: FaultKind, turn: int = 0, last: bool = False, busy: str = "") -> str:
        victim = choose_victim(kind, TWO, turn, last=last, busy={busy})
        return victim.name if victim else ""

    assert name(FaultKind.KILL) == name(FaultKind.HANG, 7) == "h2"
    assert name(FaultKind.KILL, busy="hot") == ""
    assert [name(FaultKind.KILL, turn, last=True) for turn in (0, 1)] == ["c1", "h2"]
    assert name(FaultKind.KILL, last=True, busy="hot") == "c1"
    assert name(FaultKind.GATEWAY) == ""
    assert name(FaultKind.GATEWAY, last=True) == "g1"
    assert name(FaultKind.ADD) == "c1"


def test_what_cannot_be_broken_is_refused_before_anything_is() -> None:
    def refusal(churn: str, site: Site) -> str:
        plan = Drill(parse_churn(churn), 1, 1, 1, 100.0)
        with pytest.raises(OptionError) as refused:
            plan.check(site)
        return str(refused.value)

    assert "this target can only add, gateway, hang, kill" in refusal("drain:2s", Site(*TWO))
    assert "no gateway has two ready replicas" in refusal("gateway:2s", Site(*TWO))
    for text in ("kill", "kill:2", "burn:2s", "kill:0.1s", "kill:2s,kill:3s"):
        with pytest.raises(OptionError):
            parse_churn(text)


def test_kinds_of_faults_do_not_fall_on_one_moment() -> None:
    churn = parse_churn("kill:2s,hang:10s,add:7s,drain:9s,gateway:30s")
    times = [fault.t_s for fault in churn.schedule(60)]
    assert len(times) == 30 + 5 + 8 + 6 + 1
    assert np.diff(times).min() > 0.05
    assert max(times) <= 60


def test_faults_are_found_and_heal() -> None:
    site = Site(*TWO[:2])
    faults = [ScheduledFault(0, FaultKind.KILL), ScheduledFault(0.1, FaultKind.ADD)]
    faults.append(ScheduledFault(0.2, FaultKind.GATEWAY))  # nobody there
    started: list[float | None] = [None, None, time.time()]
    with Injector(site, faults, lambda: started.pop(0), calm_s=0.0) as injector:
        end = time.monotonic() + 20
        while time.monotonic() < end and not (
            injector.skipped and all(fault.healed_s for fault in injector.injected)
        ):
            time.sleep(0.02)
    assert [kind for kind, _ in site.injected] == [FaultKind.KILL, FaultKind.ADD]
    killed, added = injector.injected
    assert (killed.replica, added.replica) == ("h2", "h1'")
    for fault in (killed, added):
        assert fault.found_s is not None and fault.healed_s is not None
        assert 0 < fault.found_s <= fault.healed_s < 20
    assert injector.skipped == 1
    assert injector.troubles == ["busy"]
    assert site.undone.is_set()


def record(rows: Sequence[tuple[float, float, str]]) -> LoadRecord:
    due, took = (np.array([row[place] for row in rows], np.float64) for place in (0, 1))
    failure = [row[2] for row in rows]
    latency = np.where([not each for each in failure], took, np.nan)
    nothing = np.zeros(len(rows), bool)
    return LoadRecord(
        1000.0, QueryOutcomes(due, latency, failure, nothing, nothing), took, np.zeros(0)
    )


def test_a_query_meets_the_last_fault_before_its_answer() -> None:
    kill = Injected(FaultKind.KILL, "hot", "h2", 1010.0, found_s=0.1, healed_s=0.5)
    hang = Injected(FaultKind.HANG, "cold", "c1", 1012.0)
    rows = [
        (1.0, 0.01, ""),
        (2.0, 0.2, ""),  # late in the calm part
        (9.9, 0.3, ""),  # under way when the first fault came, and late
        (10.4, 0.01, ""),
        (10.6, 0.01, ""),  # after it had healed
        (11.9, 5.0, "timeout"),  # the second never heals
        (30.0, 0.01, WRONG),
    ]
    result = drill_result(
        record(rows), [kill, hang], churn="kill:2s", calm_s=9.0, good_ms=100.0, skipped=1
    )
    assert (result.calm_goodput, result.goodput) == (0.5, 0.4)
    assert (result.queries, result.failed, result.wrong, result.late) == (5, 1, 1, 1)
    first, second = result.faults
    assert (first.queries, first.failed, first.late, first.slowest_ms) == (2, 0, 1, 300.0)
    assert (second.queries, second.failed, second.wrong, second.slowest_ms) == (2, 1, 1, 5000.0)
    assert second.healed_s is None
    lines = summary_lines(result)
    assert all(len(line) <= 80 for line in lines[2:])
    assert "1 failed, 1 wrong, 1 later than 100 ms; 1 faults found no victim" in lines[0]
    assert "1 not" in lines[-1]
    assert [event.kind for event in fault_events(result)] == ["drill: kill", "drill: hang"]


def test_a_drill_without_faults_has_an_outcome() -> None:
    assert Churn(()).schedule(10) == ()
    result = drill_result(record([]), [], churn="", calm_s=1.0, good_ms=1.0, skipped=0)
    assert (result.queries, result.kept) == (0, 0.0)
