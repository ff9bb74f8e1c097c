"""Which shards decoys should look like, so that an intruder meets one before the shard he wants.

After resource-aware cyber deception for microservices (arXiv 2303.03151). An attack path leads from
an entry to a shard and passes places; in each the intruder looks for one of n functions and takes
what is there in random order. With x decoys there that look alike he meets one of them first but
for n / (n + x) of the time, so a path with weight w is met with

    w · (1 - Π n / (n + x))        over the places that it passes

and the whole, Σ over paths ÷ Σ w, is monotone and submodular in the number of decoys: greedy choice
is good, and where it is small it is compared with trying everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from erless.errors import InfeasibleError
from erless.specs.plan import Plan, ShardPlan, Tier

__all__ = [
    "AttackPath",
    "DecoyOption",
    "Exposure",
    "attack_paths",
    "choose_best",
    "choose_decoys",
    "decoy_options",
    "share_met",
]

ANYWHERE = "addresses"  # where a prober tries what answers, and cannot tell tiers apart
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class AttackPath:
    """A way to a shard; places → how many functions there are what the intruder looks for."""

    weight: float
    places: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DecoyOption:
    """What a decoy may look like: a shard's name, the memory it takes awake, where it stands."""

    name: str
    cost_bytes: int
    places: frozenset[str]


@dataclass(frozen=True, slots=True)
class Exposure:
    """What network policies leave open.

    gateway: who holds the gateway may call shards. node: who holds a node may. lists: who may list
    the cluster's objects reaches shards too, and sees tiers. pivot: a shard may call another.
    """

    gateway: bool = True
    node: bool = True
    lists: bool = True
    pivot: bool = False


def attack_paths(plan: Plan, exposure: Exposure) -> tuple[AttackPath, ...]:
    """The ways to each function of `plan`, each entry and each shard with the same weight."""
    remote = [shard for shard in plan.shards if shard.tier is not Tier.RESIDENT]
    paths: list[AttackPath] = []
    for entry_open, sees_tiers in (
        (exposure.gateway, False),
        (exposure.node, False),
        (exposure.lists, True),
    ):
        if not entry_open:
            continue
        for shard in remote:
            place = _tier_place(shard) if sees_tiers else ANYWHERE
            paths.append(AttackPath(1.0, {place: 1}))
            if exposure.pivot and len(remote) > 1:  # by a shard of any other kind
                paths.append(AttackPath(1.0, {place: 1, f"behind {place}": 1}))
    return tuple(paths)


def decoy_options(plan: Plan) -> tuple[DecoyOption, ...]:
    """The shards that a decoy may look like: those that may sleep, with their rows in memory.

    Where none may, the coldest: its decoys sleep, and stand out to who sees replicas.

    Raises:
        InfeasibleError: there is no function whose rows lie in memory.
    """
    candidates = [
        shard for shard in plan.shards if shard.tier is not Tier.RESIDENT and shard.disk is None
    ]
    if not candidates:
        raise InfeasibleError(
            "no decoy can stand beside the shards of this plan",
            ("every shard is inside the gateway, or on disks; a decoy's rows lie in memory",),
        )
    asleep = [shard for shard in candidates if shard.scaling.min_scale == 0]
    alike = asleep or [min(candidates, key=lambda shard: shard.share)]
    return tuple(
        DecoyOption(
            shard.name,
            shard.memory_bytes,
            frozenset(
                (ANYWHERE, _tier_place(shard), f"behind {ANYWHERE}", f"behind {_tier_place(shard)}")
            ),
        )
        for shard in alike
    )


def _tier_place(shard: ShardPlan) -> str:
    return f"tier {shard.tier.value}"


def share_met(
    paths: Sequence[AttackPath], options: Sequence[DecoyOption], counts: Sequence[int]
) -> float:
    """The share of `paths`, by weight, on which a decoy is met first; `counts` of each option.

    >>> probe = [AttackPath(1.0, {"addresses": 1})] * 4
    >>> share_met(probe, [DecoyOption("cold-0", 1, frozenset({"addresses"}))], [3])
    0.75
    """
    standing: dict[str, int] = {}
    for option, count in zip(options, counts, strict=True):
        for place in option.places:
            standing[place] = standing.get(place, 0) + count
    whole = sum(path.weight for path in paths)
    met = sum(path.weight * (1.0 - _missed(path, standing)) for path in paths)
    return met / whole if whole else 0.0


def _missed(path: AttackPath, standing: Mapping[str, int]) -> float:
    """The probability that no decoy is met first in any place of `path`."""
    return math.prod(real / (real + standing.get(place, 0)) for place, real in path.places.items())


def choose_decoys(
    paths: Sequence[AttackPath],
    options: Sequence[DecoyOption],
    most: int,
    budget_bytes: int | None = None,
) -> tuple[int, ...]:
    """How many decoys of each option: at most `most`, and of `budget_bytes` together.

    Greedy by gain per byte and greedy by gain, the better of both (by bytes alone one dear, good
    choice may be missed), then single exchanges for as long as they gain.
    """
    drafts = [
        _greedy(paths, options, most, budget_bytes, per_byte=per_byte) for per_byte in (True, False)
    ]
    improved = [_exchange(paths, options, budget_bytes, draft) for draft in drafts]
    return max(improved, key=lambda counts: share_met(paths, options, counts))


def _greedy(
    paths: Sequence[AttackPath],
    options: Sequence[DecoyOption],
    most: int,
    budget_bytes: int | None,
    *,
    per_byte: bool,
) -> tuple[int, ...]:
    counts = (0,) * len(options)
    for _ in range(most):
        met = share_met(paths, options, counts)
        best, best_gain = counts, _TINY
        for number, option in enumerate(options):
            more = _with(counts, number, 1)
            if not _affordable(options, more, budget_bytes):
                continue
            gain = share_met(paths, options, more) - met
            if per_byte:
                gain /= max(1, option.cost_bytes)
            if gain > best_gain or (per_byte and best is counts and gain > 0):
                best, best_gain = more, gain
        if best is counts:
            break
        counts = best
    return counts


def _exchange(
    paths: Sequence[AttackPath],
    options: Sequence[DecoyOption],
    budget_bytes: int | None,
    counts: tuple[int, ...],
) -> tuple[int, ...]:
    """`counts` after all exchanges of one decoy for another that gain."""
    while True:
        met = share_met(paths, options, counts)
        better = max(
            (other for other in _neighbours(counts) if _affordable(options, other, budget_bytes)),
            key=lambda other: share_met(paths, options, other),
            default=counts,
        )
        if share_met(paths, options, better) <= met + _TINY:
            return counts
        counts = better


def _neighbours(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for old, count in enumerate(counts):
        for new in range(len(counts)) if count else ():
            if new != old:
                yield _with(_with(counts, old, -1), new, 1)


def choose_best(
    paths: Sequence[AttackPath],
    options: Sequence[DecoyOption],
    most: int,
    budget_bytes: int | None = None,
) -> tuple[int, ...]:
    """As `choose_decoys`, by trying everything: for few options and decoys."""
    choices = [
        counts
        for counts in _all_counts(len(options), most)
        if _affordable(options, counts, budget_bytes)
    ]
    return max(choices, key=lambda counts: share_met(paths, options, counts))


def _all_counts(options: int, most: int) -> Iterator[tuple[int, ...]]:
    if options == 0:
        yield ()
        return
    for count in range(most + 1):
        for rest in _all_counts(options - 1, most - count):
            yield (count, *rest)


def _with(counts: tuple[int, ...], number: int, change: int) -> tuple[int, ...]:
    return (*counts[:number], counts[number] + change, *counts[number + 1 :])


def _affordable(
    options: Sequence[DecoyOption], counts: Sequence[int], budget_bytes: int | None
) -> bool:
    if budget_bytes is None:
        return True
    costs = (option.cost_bytes * count for option, count in zip(options, counts, strict=True))
    return sum(costs) <= budget_bytes
