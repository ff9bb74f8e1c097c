"""Five load traces, each played against the autoscaler with replicas that take 4 s to start.

`python -m tests.autoscale.traces` writes the tables again; `git diff` then shows what a change of
the autoscaler does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from erless.autoscale.kpa import TICK_S, Decision, Observation, Scaler
from erless.specs.plan import Scaling

TABLES = Path(__file__).with_name("tables")
START_S = 4.0  # from wanted to ready

# target 10 requests/s at 70 %: 7 per replica
SPARSE = Scaling(target=10, min_scale=0, max_scale=20, initial_scale=1, activation_scale=2)
CALM = SPARSE.model_copy(update={"scale_down_delay_s": 60.0, "min_scale": 1})


def step(t: float) -> float:
    return 10.0 if t < 60 else 20.0


def ramp(t: float) -> float:
    return min(120.0, t / 2)


def spike(t: float) -> float:
    return 100.0 if 60 <= t < 70 else 5.0


def sawtooth(t: float) -> float:
    return 10.0 + t % 60


def idle(t: float) -> float:
    """A query a second for a minute, three minutes nothing, then one single query."""
    if t < 60:
        return 1.0
    return 0.5 if 240 <= t < 242 else 0.0


TRACES: dict[str, tuple[Scaling, Callable[[float], float]]] = {
    "step": (SPARSE, step),
    "ramp": (SPARSE, ramp),
    "spike": (SPARSE, spike),
    "sawtooth": (CALM, sawtooth),
    "idle": (SPARSE, idle),
}


def play(
    scaling: Scaling, load: Callable[[float], float], seconds: float = 360.0
) -> Iterator[tuple[float, float, int, Decision]]:
    """(time, load, ready, decision) per tick. At zero, a load waits until a replica is ready."""
    scaler = Scaler(scaling, 0.0)
    ready, starting = 0, [(0.0, scaler.wanted)]  # (since, how many)
    now = backlog = 0.0
    while now < seconds:
        now += TICK_S
        ready += sum(count for since, count in starting if now - since >= START_S)
        starting = [(since, count) for since, count in starting if now - since < START_S]
        offered = load(now - TICK_S)
        backlog += offered * TICK_S
        served = backlog if ready else 0.0
        backlog -= served
        decision = scaler.observe(Observation(now, served / TICK_S, ready, backlog > 0))
        yield now, offered, ready, decision
        soon = ready + sum(count for _, count in starting)
        if decision.wanted > soon:
            starting.append((now, decision.wanted - soon))
        elif decision.wanted < soon:
            ready, starting = decision.wanted, []


def table(name: str) -> str:
    """Every change of the decision, with its reason, one line each."""
    lines = [f"{'t':>5} {'load':>6} {'ready':>5} {'wanted':>6}  mode    reason"]
    before = None
    for now, offered, ready, decision in play(*TRACES[name]):
        mode = "panic" if decision.panic else "stable"
        if (decision.wanted, mode) != before:
            lines.append(
                f"{now:5.0f} {offered:6.1f} {ready:5d} {decision.wanted:6d}  {mode:6}  "
                f"{decision.reason}"
            )
            before = (decision.wanted, mode)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLES.mkdir(exist_ok=True)
    for name in TRACES:
        (TABLES / f"{name}.txt").write_text(table(name))
