"""Groups of equal containers, and the room that a node has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from erless.plan.costs.layout import Layout

__all__ = ["SLACK", "Group", "Needs", "dimensions_of", "groups_of"]

Needs = tuple[float, float, float, float]
SLACK = (1e-9, 0.0, 0.0, 1e-6)  # that rounding may take of each


class Group(NamedTuple):
    """Equal containers: vCPU and bytes of each, how many; bytes and reads/s of a local disk."""

    vcpu: float
    memory: float
    number: int
    disk_bytes: float = 0.0
    iops: float = 0.0

    @property
    def needs(self) -> Needs:
        """What one container takes."""
        return (self.vcpu, self.memory, self.disk_bytes, self.iops)


def dimensions_of(groups: Sequence[Group]) -> int:
    """How many needs count: two where nothing needs a disk."""
    return 4 if any(group.disk_bytes for group in groups) else 2


def groups_of(layout: Layout) -> list[Group]:
    """A layout's containers without a GPU."""
    return [
        Group(
            function.vcpu,
            function.memory,
            function.replicas,
            *((function.disk.bytes, function.disk.iops) if function.disk else ()),
        )
        for function in layout.functions
        if not function.gpus
    ]
