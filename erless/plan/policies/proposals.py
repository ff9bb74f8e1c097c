"""Layouts that need not be made where a cheaper one is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from erless.plan.costs.layout import Layout

__all__ = ["Proposal", "every_layout", "having"]


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


def every_layout(pool: Iterable[Layout | Proposal]) -> Iterator[Layout]:
    """All layouts of a pool, made."""
    for entry in pool:
        if isinstance(entry, Layout):
            yield entry
        else:
            yield from every_layout(entry.make())


def having(
    pool: Iterable[Layout | Proposal], shards: int | None, wanted: Callable[[Layout], bool]
) -> list[Layout | Proposal]:
    """What of a pool has so many shards, None being any number, and is wanted."""
    kept: list[Layout | Proposal] = []
    for entry in pool:
        if isinstance(entry, Layout):
            if shards in (None, len(entry.shards)) and wanted(entry):
                kept.append(entry)
        elif shards is None or entry.shards in (None, shards):
            kept.append(replace(entry, make=partial(_having, entry, shards, wanted)))
    return kept


def _having(
    proposal: Proposal, shards: int | None, wanted: Callable[[Layout], bool]
) -> list[Layout | Proposal]:
    return having(proposal.make(), shards, wanted)
