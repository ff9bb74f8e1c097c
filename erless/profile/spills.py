"""The spills of a gateway's replicas: found, read, checked and weighed, by whoever adds them up.

A spill weighs half as much for each half-life by which it is older than the newest, by the store's
clock. Replicas that sampled other shares of their queries are brought to the largest share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.heat_sketch import TableSketch
from erless.errors import ArtifactError, LogError
from erless.specs.heat import UNITS, HeatSpill, heat_prefix, read_heat
from erless.specs.release import ReleaseManifest
from erless.storage.store import Store

__all__ = [
    "FoundSpill",
    "SpillRead",
    "SpillReader",
    "check_sampled",
    "find_spills",
    "left_out",
    "sketch_of",
    "uncounted",
    "weighted_samples",
    "weights_of",
]

FORGOTTEN = 1 / 1024  # what weighs less is left out

Tensors = dict[str, NDArray[Any]]


class FoundSpill(NamedTuple):
    """The name of a spill's manifest in the store, and its age beside the newest."""

    name: str
    age_s: float


class SpillRead(NamedTuple):
    """A spill, its tensors, and what its age leaves of its weight."""

    spill: HeatSpill
    tensors: Tensors
    weight: float


def find_spills(store: Store, release: ReleaseManifest) -> list[FoundSpill]:
    """All spills of `release`, by name.

    Raises:
        LogError: there is none.
    """
    found = store.list(heat_prefix(release.digest))
    manifests = [entry for entry in found if entry.name.endswith(".json")]
    if not manifests:
        raise LogError(
            f"{_where(release.digest)}: there is none: no gateway has sampled a query "
            "(`observe.sample`)"
        )
    newest_s = max(entry.modified_s for entry in manifests)
    return [FoundSpill(entry.name, newest_s - entry.modified_s) for entry in manifests]


@dataclass(frozen=True)
class SpillReader:
    """Reads the spills of one release.

    Args:
        release: its digest.
        model: digest of its bundle.
        tables: name and rows of each of its tables.
    """

    release: str
    model: str
    tables: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, release: ReleaseManifest) -> SpillReader:
        """A reader for `release`."""
        tables = tuple((table.name, table.rows) for table in release.model.tables)
        return cls(release.digest, release.bundle_digest, tables)

    def read(self, store: Store, found: FoundSpill) -> SpillRead | None:
        """A spill; None: it is so old that it weighs nothing.

        Raises:
            ArtifactError: it is damaged, or of another release or model.
            StorageError: the disk or service refused.
        """
        spill, tensors = read_heat(store, found.name, self.release)
        if spill.model != self.model or self.tables != tuple(
            (table.table, table.rows) for table in spill.tables
        ):
            raise ArtifactError(f"{found.name}: is of another model, {spill.model[:12]}")
        weight = 2 ** (-found.age_s / spill.half_life_s)
        return None if weight < FORGOTTEN else SpillRead(spill, tensors, weight)


def sketch_of(spill: HeatSpill, tensors: Tensors, number: int) -> TableSketch:
    """What a spill tells of table `number`."""
    told = spill.tables[number]
    ids = tensors[f"ids.{told.table}"]
    order = np.argsort(ids)
    return TableSketch(
        rows=told.rows,
        capacity=told.capacity,
        ids=ids[order],
        counts=tensors[f"counts.{told.table}"][order] / UNITS,
        error=told.error,
        accesses=told.accesses,
        squares=told.squares,
        level=told.level,
        sampled=tensors[f"sampled.{told.table}"],
        sampled_counts=tensors[f"sampled_counts.{told.table}"] / UNITS,
        registers=tensors[f"registers.{told.table}"],
    )


def weights_of(shares: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weights by age, of replicas that sampled these shares of queries, for adding up."""
    finest = max(shares)
    return [weight * finest / share for weight, share in zip(weights, shares, strict=True)]


def weighted_samples(spills: Iterable[HeatSpill], weights: Iterable[float]) -> float:
    """Samples of all replicas' sampled queries."""
    return sum(spill.samples * weight for spill, weight in zip(spills, weights, strict=True))


def left_out(damage: str) -> str:
    """What is told of a damaged spill."""
    return f"left out: {damage}"


def uncounted(spill: HeatSpill) -> list[str]:
    """What is told of a replica that had no room for some queries."""
    if not spill.dropped:
        return []
    return [f"replica {spill.replica} left {spill.dropped:,} sampled queries uncounted"]


def check_sampled(release: ReleaseManifest, tables: Iterable[TableSketch]) -> None:
    """Refuse heat without accesses.

    Raises:
        LogError: no table has any.
    """
    if not any(table.accesses for table in tables):
        raise LogError(f"{_where(release.digest)}: no query was sampled in the last hours")


def _where(release: str) -> str:
    return f"live heat of release {release[:12]}"
