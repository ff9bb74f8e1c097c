"""Layouts that need not be made where a cheaper one is known."""

from collections.abc import Sequence

from erless.plan.costs.layout import Layout
from erless.plan.planner import Planner
from erless.plan.policies.proposals import Proposal, every_layout, having
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables


def planner(**asked: object) -> Planner:
    model, tables = workload_tables("rm1", 0.9, 32)
    return Planner(model, tables, PlanRequest(traffic=4, **asked))


def test_what_costs_more_than_a_known_layout_is_not_made() -> None:
    made = []
    plan = planner()

    def never() -> Sequence[Layout]:
        made.append(1)
        return []

    pool = [*plan.pools.of("model-wise"), Proposal(1e9, never)]
    best = plan.selection.best("joint", pool, strict=True)
    assert best is not None
    assert not made
    plan.selection.best("joint", [Proposal(0.0, never), *pool], strict=True)
    assert made == [1]


def test_no_layout_costs_less_than_its_proposals_floor() -> None:
    for aim in ("dollars", "memory"):
        plan = planner(objective=aim, allowed=("fp32", "int8"), max_vcpu=8)
        for proposal in plan.pools.of("joint"):
            assert isinstance(proposal, Proposal)
            for entry in proposal.make():
                inner = entry if isinstance(entry, Proposal) else None
                layouts = list(every_layout([entry]))
                best = plan.selection.best("joint", layouts, strict=False)
                if best is None:
                    continue
                dollars = best.packing.usd_per_month
                value = best.layout.memory if aim == "memory" else dollars
                assert value >= proposal.floor * (1 - 1e-9)
                assert inner is None or value >= inner.floor * (1 - 1e-9)


def test_a_number_of_shards_is_picked_without_making_the_others() -> None:
    pool = planner().pools.of("joint")
    kept = list(every_layout(having(pool, 2, lambda layout: not layout.gateway.slices)))
    assert kept
    assert all(len(layout.shards) == 2 and not layout.gateway.slices for layout in kept)
