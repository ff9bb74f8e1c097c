"""Small and random instances for the planning tests."""

import itertools

import numpy as np

from erless.plan.costs.cost import PAPER_TERMS
from erless.plan.costs.curves import AccessCurve, TableLoad
from erless.plan.costs.layout import Demand, Layout
from erless.specs.model import TableSpec


def table(name: str, gathers: float, curve: AccessCurve, dim: int = 32) -> TableLoad:
    return TableLoad(TableSpec(name=name, rows=curve.rows, dim=dim), gathers, curve)


def random_demand(seed: int) -> Demand:
    """1 … 12 tables of 10^4 … 10^7 rows, localities 0.3 … 0.98, 1 … 20 × one replica's traffic."""
    rng = np.random.default_rng(seed)
    tables = tuple(
        table(
            f"t{index}",
            float(32 * rng.integers(1, 200)),
            AccessCurve.power_law(int(10 ** rng.uniform(4, 7)), float(rng.uniform(0.3, 0.98))),
            int(rng.choice([16, 32, 64])),
        )
        for index in range(int(rng.integers(1, 13)))
    )
    idle = Demand(tables, 0.0, float(rng.uniform(0, 2e-3)))
    return Demand(tables, float(rng.uniform(1, 20)) / idle.monolith_s(PAPER_TERMS), idle.tower_s)


def assert_covers(layout: Layout) -> None:
    """Every row of every table is in exactly one function."""
    for number, table in enumerate(layout.demand.tables):
        pieces = sorted(
            (part.start, part.stop)
            for function in layout.functions
            for part in function.slices
            if part.table == number
        )
        assert pieces[0][0] == 0
        assert pieces[-1][1] == table.rows
        assert all(first[1] == second[0] for first, second in itertools.pairwise(pieces))
