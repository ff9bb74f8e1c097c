"""Access CDFs of a profile, with the cuts that a plan made: what the report draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from erless.pages.access import hotness_curve
from erless.specs.plan import Plan, Tier
from erless.specs.profile import MANIFEST, Profile
from erless.specs.result import AccessPlot
from erless.storage.tensors import TensorFile

__all__ = ["access_plots"]

MOST_TABLES = 6


def access_plots(profile: Path, plan: Plan | None = None) -> tuple[AccessPlot, ...]:
    """The busiest tables' CDFs.

    Args:
        profile: its folder.
        plan: whose cuts to mark; None marks none.

    Raises:
        ArtifactError: the profile is missing or damaged.
    """
    counted = [
        (table, table.counts) for table in Profile.load(profile / MANIFEST).tables if table.counts
    ]
    plots = []
    for access, file in sorted(counted, key=lambda pair: -pair[0].accesses)[:MOST_TABLES]:
        counts = TensorFile(profile / file.path).map("counts")
        curve = hotness_curve(access.table, access.rows, counts)
        plots.append(
            AccessPlot(
                table=access.table,
                ranks=tuple(curve.ranks.astype(np.int64).tolist()),
                share=tuple(curve.share.tolist()),
                cuts=_cuts(plan, access.table, access.rows),
            )
        )
    return tuple(plots)


def _cuts(plan: Plan | None, table: str, rows: int) -> tuple[tuple[int, str], ...]:
    """Where the shards of `table` end, but for its last rank."""
    if plan is None:
        return ()
    ends = [
        (part.stop, f"{shard.name} (in the gateway)" if shard.tier is Tier.RESIDENT else shard.name)
        for shard in plan.shards
        for part in shard.slices
        if part.table == table and part.stop < rows
    ]
    return tuple(sorted(ends))
