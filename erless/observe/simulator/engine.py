"""The simulation: the autoscaler's own steps, with a queue per function in between.

In each step of `TICK_S`: replicas that have started become ready, some fail; queries arrive (a
Poisson count, which the autoscaler sees); each function serves what its replicas can, the rest
queues; the autoscaler (`erless.autoscale`, the very code of the local target) says how many
replicas it wants; new ones wait for a machine, then for their cold start.

Queues between steps are fluid: of the expected flow, what is beyond capacity is carried over, and a
query waits until what is before it has been served. Waiting *within* a step comes from queueing
theory (`queueing.py`). That makes a day of 10,000 replicas a matter of seconds, and is why single
queries have no identity here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from erless.autoscale.kpa import TICK_S, Decision
from erless.observe.results import Event
from erless.observe.simulator.autoscalers import Autoscalers, Told
from erless.observe.simulator.fleet import Fleet, NodeType, Terms
from erless.observe.simulator.nodes import Nodes
from erless.observe.simulator.queueing import mean_wait
from erless.observe.simulator.quotas import PERIOD_S, PERIODS, Periods, advance, mean_stay
from erless.specs.traffic import Traffic

__all__ = ["Trace", "simulate"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
MOST_EVENTS = 2000
GATEWAY = 0


@dataclass
class Trace:
    """What happened, step by step. Arrays are (T,) or (T, F).

    arrived: queries offered. failed: of them, past the deadline or refused. backlog_s: wait of a
    query that arrives at the middle of the step, behind what is queued. busy: share of the ready
    replicas' time that arrivals take, ∞ at zero replicas. disk_busy: likewise of their disks.
    stretch: slowdown by a shared host.
    """

    step_s: float
    t_s: Floats
    arrived: Counts
    failed: Counts
    called: Counts
    ready: Counts
    wanted: Counts
    placed: Counts
    backlog_s: Floats
    busy: Floats
    disk_busy: Floats
    stretch: Floats
    nodes: Counts
    vcpu: Floats
    work: Floats
    ahead: Floats
    events: list[Event] = field(default_factory=list)


class _Replicas:
    """Ready and starting replicas of all functions."""

    def __init__(self, fleet: Fleet) -> None:
        self.ready = np.array([function.initial for function in fleet.functions], np.int64)
        self.starting: list[deque[tuple[float, int]]] = [deque() for _ in fleet.functions]
        self.waiting = np.zeros(len(fleet), np.int64)

    @property
    def placed(self) -> Counts:
        """Ready or starting: what takes memory."""
        coming = [sum(count for _, count in start) for start in self.starting]
        return self.ready + np.array(coming, np.int64)

    def arrive(self, now_s: float) -> None:
        """Started replicas become ready."""
        for index, queue in enumerate(self.starting):
            while queue and queue[0][0] <= now_s:
                self.ready[index] += queue.popleft()[1]

    def follow(self, index: int, wanted: int) -> None:
        """Ask for more, or let go: those that wait first, then starting ones, then ready ones."""
        queue = self.starting[index]
        have = int(self.ready[index]) + sum(count for _, count in queue)
        self.waiting[index] = max(0, wanted - have)
        surplus = max(0, have - wanted)
        while surplus and queue:
            at, count = queue.pop()
            if count > surplus:
                queue.append((at, count - surplus))
            surplus -= min(count, surplus)
        self.ready[index] -= surplus


def simulate(
    fleet: Fleet, traffic: Traffic, terms: Terms, node: NodeType | None = None, seed: int = 0
) -> Trace:
    """Run the fleet under `traffic`.

    Args:
        fleet: functions; their planned replicas are ready at the start.
        traffic: offered.
        terms: cold starts, failures, machines.
        node: machines to boot as needed; None: there is always room.
        seed: of arrivals and failures.
    """
    generator = np.random.default_rng(seed)
    steps, size = max(1, math.ceil(traffic.duration_s / TICK_S)), len(fleet)
    held = np.flatnonzero(fleet.quota)
    edges = np.minimum(np.arange(steps + 1) * TICK_S, traffic.duration_s)
    expected = traffic.expected(edges)
    trace = _empty(steps, size, len(held), traffic.arriving(expected, generator))
    replicas = _Replicas(fleet)
    autoscalers = Autoscalers(fleet, terms, np.random.default_rng([seed, 2]))
    pool = Nodes(node, terms, fleet.vcpu, fleet.memory, fleet.disks) if node else None
    if pool:
        pool.ready = pool.needed(replicas.ready)
    backlog = np.zeros(size)
    calm = _unfailing(terms)
    for step in range(steps):
        now = step * TICK_S
        replicas.arrive(now)
        if not calm:
            _fail(trace, replicas, pool, terms, now, generator)
        ready = replicas.ready
        called = _called(fleet, int(trace.arrived[step]), generator)
        flow = np.where(ready > 0, expected[step] * fleet.touch, called)
        stretch = _stretch(fleet, flow, terms)
        rate = fleet.rate_at(autoscalers.vcpu) / stretch
        capacity = ready * np.minimum(rate, fleet.disk_rate) * TICK_S
        _limit_by_gateway(flow, called, capacity[GATEWAY], backlog[GATEWAY])
        before = backlog
        backlog = np.maximum(0.0, before + flow - capacity)
        periods = _periods(fleet, held, flow, before, ready, autoscalers.vcpu, stretch, generator)
        backlog[held] = np.where(
            ready[held] > 0,
            periods.left * ready[held] / (fleet.service_s[held] * stretch),
            backlog[held],
        )
        backlog = np.maximum(backlog, _left_by_disks(fleet, before + flow, ready))
        backlog, lost = _deadline(ready, backlog, np.minimum(rate, fleet.disk_rate), terms)
        with np.errstate(divide="ignore", invalid="ignore"):
            disk = np.where(ready > 0, flow * fleet.disk_s / (ready * TICK_S), 0.0)
            wait = np.where(ready > 0, (before + backlog) / 2 / capacity * TICK_S, 0.0)
            busy = np.where(ready > 0, flow / (ready * rate * TICK_S), np.inf)
        trace.called[step], trace.ready[step], trace.stretch[step] = called, ready, stretch
        trace.backlog_s[step], trace.busy[step], trace.disk_busy[step] = wait, busy, disk
        trace.work[step], trace.ahead[step] = periods.work, periods.ahead
        trace.vcpu[step] = autoscalers.vcpu
        trace.failed[step] = min(int(trace.arrived[step]), lost)
        waits = (ready == 0) & (backlog > 0)
        stay = _stay(fleet, terms, busy, disk, wait, stretch, held, periods)
        seen = Told.of(fleet, called, ready, waits, stay, held, periods)
        decisions = autoscalers.decide(now + TICK_S, seen)
        _follow(trace, step, fleet, replicas, decisions, waits)
        if pool:
            pool.vcpu = autoscalers.vcpu
        _start(fleet, replicas, pool, now + TICK_S)
        trace.placed[step] = replicas.placed
        trace.nodes[step] = pool.ready if pool else 0
    return trace


def _left_by_disks(fleet: Fleet, offered: Floats, ready: Counts) -> Floats:
    """Calls that the disks of a step's replicas leave, whatever their cores do: (F,)."""
    room = np.where(fleet.disk_s > 0, ready * TICK_S / np.maximum(fleet.disk_s, 1e-12), np.inf)
    return np.where(ready > 0, np.maximum(0.0, offered - room), 0.0)


def _limit_by_gateway(flow: Floats, called: Floats, capacity: float, backlog: float) -> None:
    """The gateway passes on what it serves: lessen the `flow` and calls to what lies behind it."""
    offered = flow[GATEWAY] + backlog
    if capacity < offered:
        flow[1:] *= capacity / offered
        called[1:] = np.rint(called[1:] * capacity / offered)


def _periods(
    fleet: Fleet,
    held: NDArray[np.int64],
    flow: Floats,
    before: Floats,
    ready: Counts,
    vcpu: Floats,
    stretch: float,
    generator: np.random.Generator,
) -> Periods:
    """One replica of each function under a quota, in the periods of a step."""
    count, service = np.maximum(ready[held], 1), fleet.service_s[held] * stretch
    awake = ready[held] > 0
    mean = np.where(awake, flow[held] / count / PERIODS, 0.0)
    work = generator.poisson(mean[:, None], (len(held), PERIODS)) * service[:, None]
    waiting = np.where(awake, before[held] * service / count, 0.0)
    return advance(work.astype(np.float64), waiting, vcpu[held] * PERIOD_S)


def _follow(
    trace: Trace,
    step: int,
    fleet: Fleet,
    replicas: _Replicas,
    decisions: Sequence[Decision],
    waits: NDArray[np.bool_],
) -> None:
    """Start and let go of replicas as was decided at the end of a step.

    waits: (F,) whether calls wait at zero replicas.
    """
    for index, decision in enumerate(decisions):
        trace.wanted[step, index] = decision.wanted
        replicas.follow(index, decision.wanted)
        begins = waits[index] and not replicas.starting[index]
        if begins and len(trace.events) < MOST_EVENTS:
            name = fleet.functions[index].name
            trace.events.append(Event(step * TICK_S, "cold start", name, decision.reason))


def _empty(steps: int, size: int, held: int, arrived: Counts) -> Trace:
    def counts() -> Counts:
        return np.zeros((steps, size), np.int64)

    return Trace(
        step_s=TICK_S,
        t_s=np.arange(steps, dtype=np.float64) * TICK_S,
        arrived=arrived.astype(np.int64),
        failed=np.zeros(steps, np.int64),
        called=counts(),
        ready=counts(),
        wanted=counts(),
        placed=counts(),
        backlog_s=np.zeros((steps, size)),
        busy=np.zeros((steps, size)),
        disk_busy=np.zeros((steps, size)),
        stretch=np.ones(steps),
        nodes=np.zeros(steps, np.int64),
        vcpu=np.zeros((steps, size)),
        work=np.zeros((steps, held, PERIODS)),
        ahead=np.zeros((steps, held, PERIODS)),
    )


def _unfailing(terms: Terms) -> bool:
    return math.isinf(terms.replica_mtbf_s) and math.isinf(terms.node_mtbf_s)


def _called(fleet: Fleet, arrived: int, generator: np.random.Generator) -> Floats:
    """Calls to each function: a query touches a shard with its touch probability."""
    certain = fleet.touch >= 1
    if certain.all():
        return np.full(len(fleet), float(arrived))
    return np.where(certain, arrived, generator.binomial(arrived, fleet.touch)).astype(np.float64)


def _stretch(fleet: Fleet, flow: Floats, terms: Terms) -> float:
    """How much longer a call takes because all functions share a host's cores.

    Processor sharing on c cores at load ρ: 1 + P(wait)/(c(1-ρ)), P by Sakasegawa (1977).
    """
    if terms.host_cores is None:
        return 1.0
    cores = terms.host_cores
    load = min(0.98, float((flow * fleet.service_s).sum()) / TICK_S / cores)
    chance = load ** (math.sqrt(2 * (cores + 1)) - 1)
    return float(1.0 + chance / (cores * (1 - load)))


def _stay(
    fleet: Fleet,
    terms: Terms,
    busy: Floats,
    disk: Floats,
    wait: Floats,
    stretch: float,
    held: NDArray[np.int64],
    periods: Periods,
) -> Floats:
    """Mean seconds that a call is in flight at each function: (F,), for Little's law.

    A query is in flight at the gateway until the slowest of its calls is answered.
    """
    service = fleet.service_s * stretch
    stay = service + wait + mean_wait(busy, fleet.servers, service, terms.call_spread)
    stay[held] = mean_stay(periods, service[held], fleet.servers[held])
    stay += fleet.disk_s + mean_wait(disk, 1.0, fleet.disk_s, 0.0)
    if len(stay) > 1:
        stay[GATEWAY] += float(np.max(fleet.touch[1:] * (terms.hop_s + stay[1:])))
    return stay


def _deadline(ready: Counts, backlog: Floats, rate: Floats, terms: Terms) -> tuple[Floats, int]:
    """Drop what could not be served before the deadline; a function at zero keeps what waits."""
    most = np.where(ready > 0, ready * rate * terms.deadline_s, np.inf)
    lost = np.maximum(0.0, backlog - most)
    return backlog - lost, math.ceil(float(lost.max(initial=0.0)) - 1e-9)


def _fail(
    trace: Trace,
    replicas: _Replicas,
    pool: Nodes | None,
    terms: Terms,
    now: float,
    generator: np.random.Generator,
) -> None:
    """Replicas crash on their own, or all at once with their machine."""
    crashed = generator.binomial(replicas.ready, min(1.0, TICK_S / terms.replica_mtbf_s))
    if pool and pool.ready and math.isfinite(terms.node_mtbf_s):
        gone = int(generator.binomial(pool.ready, min(1.0, TICK_S / terms.node_mtbf_s)))
        if gone:
            crashed = crashed + generator.binomial(replicas.ready - crashed, gone / pool.ready)
            pool.ready -= gone
            if len(trace.events) < MOST_EVENTS:
                trace.events.append(Event(now, "failure", "", f"{gone} of the machines"))
    lost = int(crashed.sum())
    if lost and len(trace.events) < MOST_EVENTS:
        trace.events.append(Event(now, "failure", "", f"{lost} replicas"))
    replicas.ready -= crashed


def _start(fleet: Fleet, replicas: _Replicas, pool: Nodes | None, now: float) -> None:
    """Start the replicas that wait, where there is room."""
    if pool is not None:
        placed = replicas.placed
        pool.step(now, placed, replicas.waiting)
        fits = pool.room(placed, replicas.waiting)
    elif replicas.waiting.any():
        fits = replicas.waiting
    else:
        return
    for index in np.flatnonzero(fits):
        at = now + float(fleet.cold_start_s[index])
        replicas.starting[index].append((at, int(fits[index])))
    replicas.waiting = replicas.waiting - fits
