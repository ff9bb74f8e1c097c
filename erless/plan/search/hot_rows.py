"""Local search over single hot rows, which do not divide.

The hottest rows of a skewed table can each carry a tenth of a replica. Where a cut falls between
such rows, moving one to another function, or swapping two, may save a whole replica. Moves are
tried, best first, until none saves memory. A heuristic: the lower bound does not depend on it.
"""

from __future__ import annotations

from itertools import combinations

from erless.plan.costs.layout import Layout, Slice
from erless.plan.search.exact import join
from erless.specs.plan import Precision

__all__ = ["settle_atoms"]

MOST_ATOMS = 16
HEAVY = 0.01  # of one replica
ROUNDS = 8


def settle_atoms(layout: Layout, precision: Precision, resident: Precision) -> Layout:
    """`layout`, or one of less memory that differs in the place of a few hot rows."""
    atoms = _atoms(layout)
    for _ in range(ROUNDS if layout.shards and atoms else 0):
        better = min(
            _neighbours(layout, atoms, precision, resident),
            key=lambda near: near.memory,
            default=layout,
        )
        if better.memory >= layout.memory * (1 - 1e-12):
            break
        layout = better
    return layout


def _atoms(layout: Layout) -> list[Slice]:
    """Rows that carry more than 1 % of a replica, heaviest first."""
    demand, terms = layout.demand, layout.terms
    by_load = []
    for number, table in enumerate(demand.tables):
        beta = terms.beta_for(table, Precision.FP32)
        for rank in range(min(MOST_ATOMS, table.rows)):
            load = demand.qps * beta * table.gathers_between(rank, rank + 1)
            if load < HEAVY * terms.max_vcpu:
                break
            by_load.append((load, Slice(number, rank, rank + 1)))
    return [row for _, row in sorted(by_load, key=lambda entry: -entry[0])[:MOST_ATOMS]]


def _neighbours(
    layout: Layout, atoms: list[Slice], precision: Precision, resident: Precision
) -> list[Layout]:
    places = [list(shard.slices) for shard in (layout.gateway, *layout.shards)]
    home = {atom: _home(places, atom) for atom in atoms}
    moves = [
        ((atom, target),) for atom in atoms for target in range(len(places)) if target != home[atom]
    ]
    swaps = [((a, home[b]), (b, home[a])) for a, b in combinations(atoms, 2) if home[a] != home[b]]
    reasons = [shard.why for shard in layout.shards]
    layouts = []
    for change in [*moves, *swaps]:
        changed = [list(place) for place in places]
        for atom, target in change:
            changed[home[atom]] = _without(changed[home[atom]], atom)
            changed[target] = join(
                sorted([*changed[target], atom], key=lambda part: (part.table, part.start))
            )
        layouts.append(
            Layout.of(
                layout.demand, layout.terms, changed[1:], changed[0], precision, resident, reasons
            )
        )
    return layouts


def _home(places: list[list[Slice]], atom: Slice) -> int:
    return next(
        index
        for index, parts in enumerate(places)
        if any(part.table == atom.table and part.start <= atom.start < part.stop for part in parts)
    )


def _without(parts: list[Slice], atom: Slice) -> list[Slice]:
    remaining = []
    for part in parts:
        if part.table != atom.table or not part.start <= atom.start < part.stop:
            remaining.append(part)
            continue
        remaining += [
            Slice(part.table, part.start, atom.start),
            Slice(part.table, atom.stop, part.stop),
        ]
    return [part for part in remaining if part.stop > part.start]
