"""Which shards decoys should look like."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.plan.decoys import (
    AttackPath,
    DecoyOption,
    choose_best,
    choose_decoys,
    share_met,
)

PLACES = [f"place {number}" for number in range(6)]


def policy(draw: random.Random) -> tuple[list[AttackPath], list[DecoyOption]]:
    """Paths that some network policy leaves open, and what decoys may look like."""
    paths = [
        AttackPath(
            draw.uniform(0.1, 2.0),
            {place: draw.randint(1, 4) for place in draw.sample(PLACES, draw.randint(1, 3))},
        )
        for _ in range(draw.randint(3, 12))
    ]
    options = [
        DecoyOption(
            f"option {number}",
            draw.randint(20, 400),
            frozenset(draw.sample(PLACES, draw.randint(1, 2))),
        )
        for number in range(draw.randint(2, 5))
    ]
    return paths, options


def by_degree(
    paths: list[AttackPath], options: list[DecoyOption], most: int, budget: int
) -> tuple[int, ...]:
    """One after the other to the option whose places most paths pass, while it can be paid."""
    degrees = [
        sum(bool(option.places & path.places.keys()) for path in paths) for option in options
    ]
    counts, left = [0] * len(options), budget
    order = sorted(range(len(options)), key=lambda number: -degrees[number])
    while sum(counts) < most:
        taken = False
        for number in order:
            if sum(counts) < most and options[number].cost_bytes <= left:
                counts[number] += 1
                left -= options[number].cost_bytes
                taken = True
        if not taken:
            break
    return tuple(counts)


def at_random(
    draw: random.Random, options: list[DecoyOption], most: int, budget: int
) -> tuple[int, ...]:
    counts, left = [0] * len(options), budget
    while sum(counts) < most:
        payable = [n for n, option in enumerate(options) if option.cost_bytes <= left]
        if not payable:
            break
        number = draw.choice(payable)
        counts[number] += 1
        left -= options[number].cost_bytes
    return tuple(counts)


def test_never_below_random_or_degree_based_choice_over_a_hundred_policies() -> None:
    means = {"ours": 0.0, "degree": 0.0, "random": 0.0}
    for seed in range(100):
        draw = random.Random(seed)
        paths, options = policy(draw)
        most, budget = draw.randint(1, 5), draw.randint(300, 1000)
        found = share_met(paths, options, choose_decoys(paths, options, most, budget))
        degree = share_met(paths, options, by_degree(paths, options, most, budget))
        chances = [
            share_met(paths, options, at_random(draw, options, most, budget)) for _ in range(10)
        ]
        assert found >= max(degree, *chances) - 1e-9, seed
        means["ours"] += found / 100
        means["degree"] += degree / 100
        means["random"] += sum(chances) / 1000
    print(means)
    assert means["ours"] > means["degree"] > means["random"]


@given(st.integers(0, 10_000))
def test_close_to_the_best_of_all_choices_where_everything_can_be_tried(seed: int) -> None:
    draw = random.Random(seed)
    paths, options = policy(draw)
    options, most, budget = options[:3], draw.randint(1, 4), draw.randint(100, 900)
    found = share_met(paths, options, choose_decoys(paths, options, most, budget))
    best = share_met(paths, options, choose_best(paths, options, most, budget))
    assert found <= best + 1e-9
    assert found >= 0.8 * best


@given(st.integers(0, 10_000))
def test_gains_shrink(seed: int) -> None:
    draw = random.Random(seed)
    paths, options = policy(draw)
    less = [draw.randint(0, 2) for _ in options]
    more = [count + draw.randint(0, 2) for count in less]
    number = draw.randrange(len(options))

    def gain(counts: list[int]) -> float:
        grown = [count + (place == number) for place, count in enumerate(counts)]
        return share_met(paths, options, grown) - share_met(paths, options, counts)

    assert gain(less) >= gain(more) - 1e-9 >= -1e-9


@pytest.mark.parametrize("count", [1, 3])
def test_a_prober_of_four_shards_meets_one_of_three_decoys_first_three_times_in_four(
    count: int,
) -> None:
    paths = [AttackPath(1.0, {"addresses": 1}) for _ in range(4)]
    options = [DecoyOption("cold-0", 10, frozenset({"addresses"}))]
    chosen = choose_decoys(paths, options, count)
    assert share_met(paths, options, chosen) == count / (count + 1)
