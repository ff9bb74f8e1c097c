"""Machines under the replicas: when there is no room, a replica waits for a machine to boot.

Room is counted in sums: Σ vCPU and Σ memory of all containers against the machines' times `fill`,
instead of packing each container. Exact packing is the planner's; here it is one of 43,200 steps.
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
    """

    kind: NodeType
    terms: Terms
    vcpu: Floats
    memory: Floats
    ready: int = 0
    booting: deque[tuple[float, int]] = field(default_factory=deque)
    _spare_since: float | None = None

    def needed(self, replicas: NDArray[np.int64]) -> int:
        """Machines that hold `replicas`."""
        cpu = float(replicas @ self.vcpu) / (self.kind.vcpu * self.terms.fill)
        memory = float(replicas @ self.memory) / (self.kind.memory_bytes * self.terms.fill)
        return max(1, int(np.ceil(max(cpu, memory) - 1e-9)))

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
        cpu = self.ready * self.kind.vcpu * self.terms.fill - float(placed @ self.vcpu)
        memory = self.ready * self.kind.memory_bytes * self.terms.fill
        memory -= float(placed @ self.memory)
        fits = np.zeros_like(waiting)
        for index in np.flatnonzero(waiting):
            most = min(cpu / self.vcpu[index], memory / max(self.memory[index], 1.0))
            fits[index] = max(0, min(int(waiting[index]), int(most + 1e-9)))
            cpu -= fits[index] * self.vcpu[index]
            memory -= fits[index] * self.memory[index]
        return fits
