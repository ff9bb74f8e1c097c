"""Faults over time, and what a place to run functions must do for them: drills share it.

    kill:2s       a replica dies, every two seconds
    hang:10s      one stops working and keeps its connections
    add:7s        one more joins, and leaves again after a while
    drain:9s      one is told to end: it answers what it has
    gateway:30s   a gateway's replica dies

All but the last befall what the gateway calls: shards and the dense function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from erless.errors import OptionError
from erless.specs.functions import GATEWAY, FunctionKind

__all__ = ["Churn", "FaultKind", "FaultSite", "LiveReplica", "ScheduledFault", "parse_churn"]

_ITEM = re.compile(r"([a-z]+):(\d+(?:\.\d+)?)s")
LEAST_S = 0.2  # between two faults of a kind
PHASE = 0.37  # of its interval, by which each kind comes later than the one named before it


class FaultKind(StrEnum):
    """What befalls a replica."""

    KILL = "kill"
    HANG = "hang"
    ADD = "add"
    DRAIN = "drain"
    GATEWAY = "gateway"

    def befalls(self, kind: FunctionKind) -> bool:
        """Whether it may befall a function of `kind`."""
        return (kind == GATEWAY) == (self is FaultKind.GATEWAY)


@dataclass(frozen=True, slots=True)
class ScheduledFault:
    """A fault that is due `t_s` seconds after the first may come."""

    t_s: float
    kind: FaultKind


@dataclass(frozen=True, slots=True)
class Churn:
    """How often each kind of fault comes: seconds by kind, in the order given."""

    every_s: tuple[tuple[FaultKind, float], ...]

    def __str__(self) -> str:
        return ",".join(f"{kind}:{every_s:g}s" for kind, every_s in self.every_s)

    def schedule(self, duration_s: float) -> tuple[ScheduledFault, ...]:
        """All faults within `duration_s`, in order. Kinds do not fall on the same moment.

        >>> [(f"{fault.t_s:g}", str(fault.kind)) for fault in parse_churn("kill:2s").schedule(5)]
        [('2', 'kill'), ('4', 'kill')]
        """
        faults = []
        for place, (kind, every_s) in enumerate(self.every_s):
            shift_s = PHASE * place % 1.0 * min(every_s, LEAST_S * 4)
            count = int((duration_s - shift_s) / every_s)
            faults += [
                ScheduledFault(number * every_s + shift_s, kind) for number in range(1, count + 1)
            ]
        return tuple(sorted(faults, key=lambda fault: fault.t_s))


def parse_churn(text: str) -> Churn:
    """Read `kill:2s,hang:10s`.

    >>> str(parse_churn("kill:2s, hang:0.5s"))
    'kill:2s,hang:0.5s'

    Raises:
        OptionError: no such fault, no such interval, or one that comes twice.
    """
    kinds = [kind.value for kind in FaultKind]
    every_s: dict[FaultKind, float] = {}
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None or match[1] not in kinds:
            raise OptionError(
                f"churn {item.strip()!r}: not like kill:2s; faults are {', '.join(kinds)}"
            )
        kind, seconds = FaultKind(match[1]), float(match[2])
        if seconds < LEAST_S:
            raise OptionError(f"churn {item.strip()!r}: at most one every {LEAST_S:g} s")
        if kind in every_s:
            raise OptionError(f"churn {text!r}: {kind} comes twice")
        every_s[kind] = seconds
    return Churn(tuple(every_s.items()))


class LiveReplica(Protocol):
    """A running copy of a function, as a target sees it now."""

    @property
    def function(self) -> str:
        """The function's name."""

    @property
    def kind(self) -> FunctionKind:
        """The function's kind."""

    @property
    def name(self) -> str:
        """The replica's own name: no other, before or after it, has the same."""

    @property
    def ready(self) -> bool:
        """Whether it serves."""

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""


class FaultSite(Protocol):
    """A deployment that can be broken on purpose. Every method may raise DeployError."""

    kinds: frozenset[FaultKind]
    shared: bool  # others may depend on it: it is broken only where that was said expressly

    def replicas(self) -> Sequence[LiveReplica]:
        """All replicas of the current release. It is asked many times a second."""

    def inject(self, kind: FaultKind, victim: LiveReplica) -> None:
        """Let the fault befall `victim`; for `add`, give its function one replica more."""

    def answered(self, replica: LiveReplica) -> int:
        """How many calls a replica has answered; 0 where it does not say."""

    def undo(self) -> None:
        """Let go of whatever still hangs."""
