"""Decoys of a release: chosen by the ways to its shards, drawn, and kept in its store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from erless.deploy.desired_release import standing_decoys
from erless.deploy.target import Desired, Target
from erless.errors import InfeasibleError, PlanError
from erless.pack.decoys import plant_decoys
from erless.plan.decoys import (
    DecoyOption,
    Exposure,
    attack_paths,
    choose_decoys,
    decoy_options,
    share_met,
)
from erless.specs.config import Config
from erless.specs.plan import Plan
from erless.storage.stores import open_store

__all__ = [
    "PlacedDecoys",
    "count_to_follow",
    "exposure_of",
    "follow_with_decoys",
    "place_decoys",
    "with_decoys",
]

MB = 1_000_000


class PlacedDecoys:
    """What `count` decoys beside the shards of a plan should look like.

    Args:
        plan: of the shards.
        count: of decoys.
        budget_mb: memory that all of them may take awake; 0: any.
        exposure: the ways that are open.

    Raises:
        InfeasibleError: the plan has no shard to look like, or the budget is too small for one.
    """

    def __init__(self, plan: Plan, count: int, budget_mb: int, exposure: Exposure) -> None:
        self.options: tuple[DecoyOption, ...] = decoy_options(plan)
        paths = attack_paths(plan, exposure)
        budget_bytes = budget_mb * MB if budget_mb else None
        self.counts = choose_decoys(paths, self.options, count, budget_bytes)
        self.share_met = share_met(paths, self.options, self.counts)
        if count and not any(self.counts):
            least = min(option.cost_bytes for option in self.options)
            raise InfeasibleError(
                "no decoy fits its budget",
                (f"decoys.budget_mb is {budget_mb}; one takes {least / MB:,.0f} MB awake",),
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The shards to look like, one for each decoy."""
        pairs = zip(self.options, self.counts, strict=True)
        return tuple(option.name for option, count in pairs for _ in range(count))

    @property
    def sentence(self) -> str:
        """What the plan's report says of them."""
        standing = ", ".join(f"{count} like {name}" for name, count in self._counted().items())
        return (
            f"decoys: {standing}; who tries functions in random order meets one before the shard "
            f"he wants on {self.share_met:.0%} of the ways that are open"
        )

    @property
    def document(self) -> dict[str, Any]:
        """The same for `-o json`."""
        return {"like": self._counted(), "share_met": round(self.share_met, 6)}

    def _counted(self) -> dict[str, int]:
        pairs = zip(self.options, self.counts, strict=True)
        return {option.name: count for option, count in pairs if count}


def exposure_of(config: Config, target: str) -> Exposure:
    """The ways to a shard that `target` leaves open."""
    if target == "local":  # any process of this machine reaches loopback
        return Exposure(gateway=True, node=True, lists=False, pivot=True)
    options = config.targets.knative
    closed = options.network_policies and options.egress == "store"
    return Exposure(pivot=not closed)


def place_decoys(config: Config, target: str, plan: Plan, count: int) -> PlacedDecoys:
    """`count` decoys beside the shards of `plan`, as `erless.yaml` allows. Errors as the class."""
    return PlacedDecoys(plan, count, config.decoys.budget_mb, exposure_of(config, target))


def with_decoys(
    desired: Desired, config: Config, target: str, count: int | None, *, write: bool = True
) -> Desired:
    """`desired` with decoys beside its shards.

    Args:
        desired: a release, with the decoys that its store has for it.
        config: how many there shall be, and their budget.
        target: where it is deployed.
        count: instead of the configuration's; 0 takes them away.
        write: keep in the store what is drawn.

    Raises:
        InfeasibleError, PlanError: there is nothing to look like, or no budget for it.
        StorageError: the store cannot be written to.
    """
    wanted = config.decoys.count if count is None else count
    if target == "kubernetes" and wanted:
        raise PlanError(
            f"{wanted} decoys are asked for, and target kubernetes places none: without Knative a "
            "function does not wait at zero; use target knative or local"
        )
    if count is None and (wanted == 0 or wanted == len(desired.decoys)):
        return desired  # what an earlier deploy placed stays
    store = open_store(desired.store, endpoint_url=desired.endpoint_url)
    digests = {shard.name: shard.digest for shard in desired.release.shards}
    names = place_decoys(config, target, desired.plan, wanted).names if wanted else ()
    likes = [digests[name] for name in names]
    return replace(desired, decoys=plant_decoys(store, desired.release, likes, write=write))


def count_to_follow(desired: Desired, config: Config, target: Target) -> int | None:
    """How many decoys `desired` shall have: as stand now; None where it or `config` says how many.

    Raises:
        DeployError: the target does not tell what it serves.
        StorageError: the store refused.
    """
    if config.decoys.count or desired.decoys:
        return None
    return standing_decoys(desired, target)


def follow_with_decoys(
    desired: Desired, config: Config, target: Target, tell: Callable[[str], None]
) -> Desired:
    """`desired` with as many decoys as `erless.yaml` says, or as stand beside what serves now.

    For a release that takes over by itself: it does not wait for decoys that cannot be placed.

    Args:
        desired: as of `with_decoys`.
        config: how many there shall be, and their budget.
        target: what serves now.
        tell: is called with the reason where there can be none.

    Raises:
        DeployError: the target does not tell what it serves.
        StorageError: the store refused.
    """
    count = count_to_follow(desired, config, target)
    if count == 0:
        return desired
    try:
        return with_decoys(desired, config, target.name, count)
    except (InfeasibleError, PlanError) as error:
        tell(f"release {desired.release.digest[:12]} has no decoys: {error}")
        return desired
