"""Live heat → an ordinary profile, so that all that plans and packs can use it.

    heat/<release>/*.json in the store → one sketch per table → ranks and counts of all rows

Replicas' counts are added, each weighing half as much for each half-life by which it is older than
the newest. Ages are those of the files by the store's own clock: what clocks of gateways say does
not matter. A spill that is damaged is left out and told; so is one that weighs nothing any more.

Rows that have a counter are ranked by it; all others follow in the order that they had before. How
many accesses the j-th row takes is estimated from all that was seen (`erless.profile.thinned`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.heat_sketch import FLOOR, TableSketch, merged
from erless.errors import ArtifactError, ExistsError
from erless.profile.counted import LOCALITY_FRACTION, SHARES, AccessReport, TableHotness
from erless.profile.ranking import CountDistribution
from erless.profile.spills import (
    SpillRead,
    SpillReader,
    check_sampled,
    find_spills,
    left_out,
    sketch_of,
    uncounted,
    weighted_samples,
    weights_of,
)
from erless.profile.thinned import CERTAIN, mixture
from erless.specs.artifact import FileEntry
from erless.specs.counts import open_counts
from erless.specs.heat import HeatSpill, Seen
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.specs.release import ReleaseManifest
from erless.specs.stored import find_release
from erless.storage.atomic import staged_directory
from erless.storage.store import Store
from erless.storage.tensors import write_tensors

__all__ = ["Heat", "MergedHeat", "live_release", "profile_live", "read_live"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST_SHARE = 0.002  # of the accesses may go to rows that are listed with none
MOST_SCALE = 10_000.0


@dataclass(frozen=True)
class MergedHeat:
    """What all replicas saw, added up.

    Args:
        release: that they answer for.
        spills: one for each replica.
        tables: a sketch for each of the model's tables.
        samples: samples of the sampled queries, decayed.
        warnings: about what was left out.
    """

    release: ReleaseManifest
    spills: tuple[HeatSpill, ...]
    tables: Sequence[TableSketch]
    samples: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Heat(MergedHeat):
    """The same, with what each replica saw lately.

    Args:
        recent: as in `erless.specs.heat`, of each replica.
        ages_s: by which each spill is older than the newest.
    """

    recent: tuple[dict[str, NDArray[Any]], ...]
    ages_s: tuple[float, ...]

    def lately(self, window_s: float) -> Seen:
        """What replicas that still write have counted in the last `window_s`, or a little more."""
        shape = len(self.release.shards), len(self.release.model.tables)
        gathers, touched = np.zeros(shape, np.int64), np.zeros(shape[0], np.int64)
        queries, qps, longest_s = 0, 0.0, 0.0
        for spill, content, age_s in zip(self.spills, self.recent, self.ages_s, strict=True):
            if age_s > window_s:
                continue
            seconds = content["recent.seconds"]
            since = np.cumsum(seconds[::-1])[::-1] - seconds  # from an interval's end on
            last = since < window_s
            spent_s, counted = (
                float(seconds[last].sum()),
                int(content["recent.queries"][last].sum()),
            )
            gathers += content["recent.gathers"][last].sum(axis=0)
            touched += content["recent.touched"][last].sum(axis=0)
            queries += counted
            qps += counted / spill.sample / spent_s if spent_s else 0.0
            longest_s = max(longest_s, spent_s)
        return Seen(gathers, touched, queries, qps, longest_s)


def live_release(store: Store, prefix: str = "") -> ReleaseManifest:
    """The release whose digest begins with `prefix`; by default the one that has the newest heat.

    Raises:
        StoreError: none, or several.
    """
    if prefix:
        return find_release(store, prefix)
    manifests = [found for found in store.list("heat/") if found.name.endswith(".json")]
    if not manifests:
        return find_release(store, "")
    newest = max(manifests, key=lambda found: (found.modified_s, found.name))
    return find_release(store, newest.name.split("/")[1])


def read_live(store: Store, release: ReleaseManifest) -> Heat:
    """Read and add up what the replicas of `release`'s gateway wrote.

    Raises:
        LogError: there is nothing, or nothing was sampled.
        ArtifactError: all of it is damaged, or of another model.
    """
    reader = SpillReader.of(release)
    read: list[SpillRead] = []
    ages_s: list[float] = []
    warnings: list[str] = []
    damage = ""
    for found in find_spills(store, release):
        try:
            spill = reader.read(store, found)
        except ArtifactError as error:
            damage = str(error)
            warnings.append(left_out(damage))
            continue
        if spill is not None:
            read.append(spill)
            ages_s.append(found.age_s)
            warnings += uncounted(spill.spill)
    if not read:
        raise ArtifactError(damage)  # the newest weighs 1
    spills = tuple(spill for spill, _, _ in read)
    weights = weights_of([spill.sample for spill in spills], [weight for _, _, weight in read])
    tables = tuple(
        merged([sketch_of(spill, tensors, number) for spill, tensors, _ in read], weights)
        for number in range(len(release.model.tables))
    )
    check_sampled(release, tables)
    return Heat(
        release=release,
        spills=spills,
        tables=tables,
        samples=weighted_samples(spills, weights),
        warnings=tuple(warnings),
        recent=tuple(tensors for _, tensors, _ in read),
        ages_s=tuple(ages_s),
    )


def profile_live(
    store: Store,
    release: ReleaseManifest,
    out: Path,
    *,
    before: Path | None = None,
    overwrite: bool = False,
    heat: MergedHeat | None = None,
) -> AccessReport:
    """Write a profile of what the gateways of `release` see.

    Args:
        store: of the release.
        release: that is deployed.
        out: folder of the profile.
        before: folder of the profile that the release was planned from: rows that were not seen
            keep its order. One of another release is not used, and told.
        overwrite: replace what is at `out`.
        heat: of the release; None: it is read.

    Raises:
        ExistsError: there is a profile at `out`.
        LogError, ArtifactError: as `read_live`.
    """
    if out.exists() and not overwrite:
        raise ExistsError(f"{out} exists")
    heat = heat or read_live(store, release)
    old = Profile.parse(store.read(release.profile.path), f"{store.url}/{release.profile.path}")
    warnings = list(heat.warnings)
    orders = _orders(release, before, warnings)
    hotness = []
    with staged_directory(out, marker=MANIFEST) as stage:
        for spec, sketch, order in zip(release.model.tables, heat.tables, orders, strict=True):
            hotness.append(_table(spec.name, sketch, order, heat.samples, stage))
        profile = Profile.create(
            model_digest=release.bundle_digest,
            sources=(_source(heat),),
            tables=tuple(table.access for table in hotness),
            curves=old.curves,
            towers=old.towers,
            disks=old.disks,
        )
        profile.save(stage / MANIFEST)
    return AccessReport(profile, tuple(hotness), tuple(warnings))


def _source(heat: MergedHeat) -> str:
    """Where the profile comes from, in words."""
    shares = sorted({spill.sample for spill in heat.spills})
    return (
        f"live heat of release {heat.release.digest[:12]}: {len(heat.spills)} "
        f"replica{'s' if len(heat.spills) > 1 else ''}, "
        f"{heat.samples:,.0f} samples of {', '.join(f'{100 * share:g} %' for share in shares)} "
        f"of the queries, half-life {max(s.half_life_s for s in heat.spills):g} s"
    )


def _orders(
    release: ReleaseManifest, before: Path | None, warnings: list[str]
) -> list[Ints | None]:
    """For each table its rows in the order of the profile before; None: by id."""
    nothing: list[Ints | None] = [None] * len(release.model.tables)
    if before is None or not (before / MANIFEST).is_file():
        return nothing
    profile = Profile.load(before / MANIFEST)
    if profile.digest != release.profile_digest:
        warnings.append(
            f"{before} is not the profile that the release was planned from: rows that were not "
            "seen are ranked by id"
        )
        return nothing
    accesses = {access.table: access for access in profile.tables}
    orders: list[Ints | None] = []
    for table in release.model.tables:
        access = accesses.get(table.name)
        counts = open_counts(before, access, placed=profile.placed) if access else None
        orders.append(counts.read("ids") if counts else None)
    return orders


def _table(
    name: str, sketch: TableSketch, order: Ints | None, samples: float, stage: Path
) -> TableHotness:
    """Rank a table's rows and write how often each is accessed."""
    rates, rows = distribution(sketch)
    scale = _scale(rates, rows)
    values = np.rint(rates * scale).astype(np.int64)
    listed = values > 0
    values, rows = values[listed], rows[listed]
    ends = np.minimum(np.rint(np.cumsum(rows)), sketch.rows).astype(np.int64)
    numbers = np.diff(ends, prepend=0)
    values, numbers = values[numbers > 0], numbers[numbers > 0]
    found = CountDistribution(values, numbers)
    entry = None
    if found.touched:
        path = f"counts/{name}.safetensors"
        (stage / "counts").mkdir(exist_ok=True)
        ids = ranked(sketch, order)[: found.touched]
        digest = write_tensors(stage / path, {"ids": ids, "counts": np.repeat(values, numbers)})
        entry = FileEntry(path=path, size_bytes=digest.size_bytes, sha256=digest.sha256)
    access = TableAccess(
        table=name,
        rows=sketch.rows,
        samples=round(samples * scale),
        accesses=found.accesses,
        touched=found.touched,
        locality=min(1.0, found.share(LOCALITY_FRACTION * sketch.rows)),
        counts=entry,
    )
    return TableHotness(access, tuple(found.share(share * sketch.rows) for share in SHARES))


def distribution(sketch: TableSketch) -> tuple[Floats, Floats]:
    """How many rows are accessed how often: (g,) rates, falling, and (g,) rows, in all the table's.

    Large counts are the counters'. The small ones are those of the hash sample where counters were
    taken off, or else of all rows; what a sample so thin has of them is turned into rates.
    """
    alike = sketch.accesses / sketch.squares if sketch.squares else 1.0  # equal accesses for each
    sure = max(CERTAIN / alike, 4 * sketch.error)
    is_heavy = sketch.counts > sure
    heavy = sketch.counts[is_heavy]
    counts, each = sketch.counts[~is_heavy], 1.0
    if sketch.error > FLOOR:
        light = ~np.isin(sketch.sampled, sketch.ids[is_heavy], assume_unique=True)
        counts, each = sketch.sampled_counts[light], 2.0**sketch.level
    times = np.rint(counts * alike).astype(np.int64)
    middle = counts[times > CERTAIN]
    seen = np.bincount(times[times <= CERTAIN], minlength=CERTAIN + 1) * np.float64(each)
    seen[0] += max(0.0, sketch.rows - len(heavy) - len(middle) * each - seen.sum())
    rates, rows = mixture(seen)
    rates = np.concatenate([heavy, middle, rates / alike])
    rows = np.concatenate([np.ones(len(heavy)), np.full(len(middle), each), rows])
    falling = np.argsort(-rates, kind="stable")
    return rates[falling], rows[falling]


def _scale(rates: Floats, rows: Floats) -> float:
    """What counts are multiplied with, so that whole numbers tell all but the coldest rows."""
    taken = np.cumsum(rates * rows)
    if not len(taken) or not taken[-1]:
        return 1.0
    last = int(np.searchsorted(taken, (1 - LEAST_SHARE) * taken[-1]))
    return float(np.clip(2 / rates[min(last, len(rates) - 1)], 16.0, MOST_SCALE))


def ranked(sketch: TableSketch, order: Ints | None) -> Ints:
    """All rows of the table: by what was seen of them, then in the `order` before, then by id."""
    place = np.full(sketch.rows, sketch.rows, np.int64)
    if order is not None:
        place[order] = np.arange(len(order))
    ids = np.concatenate([sketch.ids, np.setdiff1d(sketch.sampled, sketch.ids, True)])
    counts = np.zeros(sketch.rows)
    counts[sketch.sampled] = sketch.sampled_counts
    counts[sketch.ids] = np.maximum(counts[sketch.ids], sketch.counts)
    first = ids[np.lexsort((ids, place[ids], -np.rint(4 * counts[ids])))]
    others = np.ones(sketch.rows, np.bool_)
    others[first] = False
    known = order[others[order]] if order is not None else np.empty(0, np.int64)
    others[known] = False
    return np.concatenate([first, known, np.flatnonzero(others)])
