"""Layouts that need not be made where a cheaper one is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from erless.plan.costs.layout import Layout

__all__ = ["Proposal", "every_layout"]


@dataclass(frozen=True)
class Proposal:
    """Layouts not made yet.

    Args:
        floor: bytes or dollars a month, by the objective, below which none of them costs.
        make: the layouts, or proposals of them.
        shards: how many each has, where that is known.
    """

    floor: float
    make: Callable[[], Sequence[Layout | Proposal]]
    shards: int | None = None


def every_layout(pool: Iterable[Layout | Proposal], shards: int | None = None) -> Iterator[Layout]:
    """All layouts of a pool, made; with `shards`, not those known to have another number."""
    for entry in pool:
        if isinstance(entry, Layout):
            yield entry
        elif shards is None or entry.shards in (None, shards):
            yield from every_layout(entry.make(), shards)
