"""A function of a layout, sized: what it holds, what it takes, and what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from erless.plan.costs.disk import DiskUse
from erless.specs.plan import Precision

__all__ = ["PlannedFunction", "Role", "Slice"]


@dataclass(frozen=True)
class Slice:
    """Ranks start … stop-1 of table number `table`."""

    table: int
    start: int
    stop: int


class Role(StrEnum):
    """What a function does in its layout."""

    GATEWAY = "gateway"
    SHARD = "shard"
    FROZEN = "frozen"  # a shard of rows that idle
    DENSE = "dense"


@dataclass(frozen=True)
class PlannedFunction:
    """One function with its rows, sized.

    Args:
        name: unique in the layout.
        role: what the function does.
        slices: the rows in it.
        precision: of these rows.
        gathers: per query, of these rows.
        rows: how many there are.
        row_bytes: bytes of all rows in one replica.
        service_s: seconds of one vCPU (on a GPU: of one GPU) per query.
        load: vCPU (or GPUs) at the demanded rate.
        replicas: whole containers.
        vcpu: of one replica.
        memory: bytes of one replica, with its code.
        why: what fixes its cut.
        gpus: of one replica.
        partials: vectors that a shard sends back per query.
        disk: where its rows are read from a local disk.
    """

    name: str
    role: Role
    slices: Sequence[Slice]
    precision: Precision
    gathers: float
    rows: int
    row_bytes: float
    service_s: float
    load: float
    replicas: int
    vcpu: float
    memory: float
    why: str = ""
    gpus: int = 0
    partials: float = 0.0
    disk: DiskUse | None = None

    @property
    def total_memory(self) -> float:
        """Bytes of all replicas."""
        return self.replicas * self.memory
