"""Machines under the replicas: when there is no room, a replica waits for a machine to boot.

Room is counted in sums: Σ vCPU, Σ memory and what disks give of all containers against the
machines' times `fill`, instead of packing each container. Exact packing is the planner's; here it
is one of 43,200 steps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from erless.observe.simulator.fleet import NodeType, Terms

__all__ = ["Nodes"]

Floats = NDArray[np.float64]


@dataclass
class Nodes:
    """A pool of equal machines that follows demand.

    Args:
        kind: of machine.
        terms: boot and idle times, fill, failures.
        vcpu, memory: (F,) of one replica of each function.
        disks: (F, 2) bytes and reads/s of the machine's disk that one replica takes.
    """

    kind: NodeType
    terms: Terms
    vcpu: Floats
    memory: Floats
    disks: Floats
    ready: int = 0
    booting: deque[tuple[float, int]] = field(default_factory=deque)
    _spare_since: float | None = None

    def needed(self, replicas: NDArray[np.int64]) -> int:
        """Machines that hold `replicas`."""
        used = replicas @ self._needs
        counts = used[used > 0] / self._each[used > 0]
        return max(1, int(np.ceil(float(counts.max(initial=0.0)) - 1e-9)))

    @property
    def _needs(self) -> Floats:
        """(F, 4) what one replica takes."""
        return np.column_stack([self.vcpu, self.memory, self.disks])

    @property
    def _each(self) -> Floats:
        """(4,) what one machine gives, as far as containers fill it."""
        kind = self.kind
        gives = (kind.vcpu, kind.memory_bytes, kind.disk_bytes, kind.read_iops)
        return np.array(gives) * self.terms.fill

    def step(self, now_s: float, placed: NDArray[np.int64], waiting: NDArray[np.int64]) -> None:
        """Boot what is missing for placed and waiting replicas; drop what was spare for long."""
        while self.booting and self.booting[0][0] <= now_s:
            self.ready += self.booting.popleft()[1]
        coming = sum(count for _, count in self.booting)
        missing = self.needed(placed + waiting) - self.ready - coming
        if missing > 0:
            self.booting.append((now_s + self.terms.node_boot_s, missing))
        spare = self.ready - self.needed(placed + waiting)
        if spare <= 0:
            self._spare_since = None
        elif self._spare_since is None:
            self._spare_since = now_s
        elif now_s - self._spare_since >= self.terms.node_idle_s:
            self.ready -= spare
            self._spare_since = None

    def room(self, placed: NDArray[np.int64], waiting: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the `waiting` replicas fit now, function by function: (F,)."""
        needs = self._needs
        free = self.ready * self._each - placed @ needs
        fits = np.zeros_like(waiting)
        for index in np.flatnonzero(waiting):
            need = needs[index]
            most = float((free[need > 0] / need[need > 0]).min(initial=np.inf))
            fits[index] = max(0, min(float(waiting[index]), np.floor(most + 1e-9)))
            free -= fits[index] * need
        return fits
