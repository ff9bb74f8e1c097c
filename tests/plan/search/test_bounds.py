"""Dollar bounds against every plan of small models, whatever the policy."""

import itertools

import numpy as np
import pytest

from erless.plan.costs.cost import DEFAULT_TERMS
from erless.plan.costs.curves import AccessCurve
from erless.plan.costs.layout import Demand, Layout, Slice
from erless.plan.nodes.packing import pack
from erless.plan.nodes.prices import InstanceType, Prices
from erless.plan.search.bounds import dollars_bound
from erless.specs.plan import Precision
from tests.plan.instances import table

FP32 = Precision.FP32
TYPES = (
    InstanceType("small", 2, 4, 0, 0.09),
    InstanceType("big", 8, 16, 0, 0.40),
    InstanceType("wide", 4, 16, 0, 0.25),
)


@pytest.mark.parametrize("seed", range(12))
def test_no_layout_costs_less_than_the_bound(seed: int) -> None:
    """Three tables of a few GB, each whole or cut once, in every arrangement of functions."""
    rng = np.random.default_rng(seed)
    tables = tuple(
        table(
            f"t{index}",
            float(rng.uniform(1e3, 2e4)),
            AccessCurve.power_law(rows, float(rng.uniform(0.3, 0.95))),
        )
        for index in range(3)
        for rows in [int(10 ** rng.uniform(6.5, 7.3))]
    )
    demand = Demand(tables, float(rng.uniform(50, 2000)), float(rng.uniform(0, 1e-3)))
    prices = Prices("test", "2026-01-01", TYPES)
    terms = DEFAULT_TERMS.on(7.9)
    bound = dollars_bound(demand, terms, FP32, FP32, prices)
    cuts = [int(each.rows * rng.uniform(0.01, 0.5)) for each in tables]
    parts = [
        piece
        for index, each in enumerate(tables)
        for piece in (Slice(index, 0, cuts[index]), Slice(index, cuts[index], each.rows))
    ]
    tried = 0
    for homes in itertools.product(range(3), repeat=len(parts)):
        groups = [
            [part for part, home in zip(parts, homes, strict=True) if home == which]
            for which in range(3)
        ]
        packing = pack(Layout.of(demand, terms, groups[1:], groups[0]), prices)
        if packing is not None:
            tried += 1
            assert packing.usd_per_month >= bound - 1e-6
    assert tried > 10
