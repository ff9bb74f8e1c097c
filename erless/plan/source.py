"""Where traffic comes from: a profile of a real log, or a reference workload's power law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erless.dlrm.workload import WORKLOADS
from erless.errors import PlanError
from erless.plan.costs.curves import AccessCurve, TableLoad, breakpoint_ratio
from erless.plan.costs.measured import MeasuredSpeed
from erless.specs.bundle import BundleManifest
from erless.specs.counts import open_counts, read_histogram
from erless.specs.model import ModelSpec, Pooling, shape_digest
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.storage.digests import digest_json

__all__ = [
    "PlanSource",
    "bundle_source",
    "profile_source",
    "profile_tables",
    "shape_source",
    "workload_source",
    "workload_tables",
]

COARSE = 1.05  # breakpoints farther apart than this are told


def workload_tables(
    name: str, locality: float, batch: int, rows: int | None = None
) -> tuple[ModelSpec, list[TableLoad]]:
    """A reference workload at full size; no weights are needed.

    Raises:
        PlanError: no such workload, or a locality outside 0 … 1.
    """
    if (name := name.lower()) not in WORKLOADS:
        raise PlanError(f"no workload {name}; there are {', '.join(WORKLOADS)}")
    if not 0 < locality < 1:
        raise PlanError(f"locality is {locality:g}: it must lie between 0 and 1")
    workload = WORKLOADS[name]
    if rows:
        workload = workload.scaled(rows / workload.rows)
    model = workload.model()
    curves = {rows: AccessCurve.power_law(rows, locality) for rows, _ in workload.table_sizes}
    return model, [
        TableLoad(table, float(batch * pooling), curves[table.rows])
        for table, (_, pooling) in zip(model.tables, workload.table_sizes, strict=True)
    ]


@dataclass(frozen=True)
class PlanSource:
    """A model with its traffic, its measured speed, and notes on gaps in the profile."""

    model: ModelSpec
    tables: list[TableLoad]
    measured: MeasuredSpeed
    model_digest: str
    profile_digest: str
    notes: list[str]


def workload_source(name: str, locality: float, batch: int, rows: int | None = None) -> PlanSource:
    """A reference workload; its digests identify its shape.

    Raises:
        PlanError: no such workload, or a locality outside 0 … 1.
    """
    model, tables = workload_tables(name, locality, batch, rows)
    shape = {"workload": name, "locality": locality}
    return PlanSource(
        model,
        tables,
        MeasuredSpeed(),
        shape_digest(model),
        digest_json(shape),
        [],
    )


def profile_source(model: Path, profile: Path, batch: int, stale: bool = False) -> PlanSource:
    """A bundle with the traffic and the speed of its profile.

    Raises:
        ArtifactError: one of them is missing or damaged.
        PlanError: they do not fit together.
    """
    return bundle_source(BundleManifest.open(model), profile, batch, stale)


def bundle_source(
    bundle: BundleManifest, profile: Path, batch: int, stale: bool = False
) -> PlanSource:
    """As `profile_source`, where the bundle's manifest is at hand and its folder need not be."""
    most = bundle.model.largest_batch(batch)
    if batch > most:
        raise PlanError(f"a batch of {batch:,} samples, the tower takes at most {most:,}")
    hotness, tables, notes = profile_tables(bundle, profile, batch, stale)
    accesses = sum(table.accesses for table in hotness.tables)
    locality = sum(table.locality * table.accesses for table in hotness.tables) / max(1, accesses)
    size = bundle.tower.size_bytes
    measured = MeasuredSpeed(
        hotness.curves, hotness.towers, locality, size, hotness.disks, hotness.gpus
    )
    return PlanSource(bundle.model, tables, measured, bundle.digest, hotness.digest, notes)


def profile_tables(
    bundle: BundleManifest, folder: Path, batch: int, stale: bool = False
) -> tuple[Profile, list[TableLoad], list[str]]:
    """The bundle's tables with the traffic of the profile at `folder`, and notes on gaps.

    Raises:
        ArtifactError: the profile is missing or damaged.
        PlanError: it was made for another bundle, or for tables of another size.
    """
    return _tables(bundle.model, bundle.digest, folder, batch, stale)


def shape_source(model: ModelSpec, profile: Path, batch: int) -> PlanSource:
    """A model of which only the shape is known, with the traffic of its logs' profile.

    Raises:
        ArtifactError: the profile is missing or damaged.
        PlanError: it is of another shape.
    """
    digest = shape_digest(model)
    hotness, tables, notes = _tables(model, digest, profile, batch, False)
    notes.append(
        "there is no model yet: its dense tower is taken to be a small one "
        "(--tower-ms says what it takes)"
    )
    return PlanSource(model, tables, MeasuredSpeed(), digest, hotness.digest, notes)


def _tables(
    model: ModelSpec, digest: str, folder: Path, batch: int, stale: bool
) -> tuple[Profile, list[TableLoad], list[str]]:
    profile = Profile.load(folder / MANIFEST)
    if profile.placed:
        raise PlanError(
            f"{folder}: its ranks are those of a replan, for `erless pack`: plan from the log, or "
            "from `erless profile --live`"
        )
    if not profile.tables:
        raise PlanError(
            f"{folder}: the profile has no accesses, only measurements of speed: "
            "profile a log into it with --log"
        )
    if profile.model_digest != digest and not stale:
        raise PlanError(
            f"{folder}: profiled for bundle {profile.model_digest[:12]}, the model is "
            f"{digest[:12]}: profile again, or accept it with --stale-profile"
        )
    accesses = {access.table: access for access in profile.tables}
    names = {spec.name for spec in model.tables}
    ratio = breakpoint_ratio([spec.rows for spec in model.tables])
    bags = _bags(model)
    tables: list[TableLoad] = []
    notes = [
        f"table {name} of the profile is not in the model: its accesses are left out"
        for name in accesses
        if name not in names
    ]
    for spec in model.tables:
        access = accesses.get(spec.name)
        curve = _curve(folder, access, spec.rows, ratio) if access else None
        if access is None or curve is None:
            notes.append(f"table {spec.name} is not in the log: all its rows are cold")
            tables.append(TableLoad(spec, 0.0, AccessCurve.cold(spec.rows)))
            continue
        if access.rows != spec.rows:
            raise PlanError(
                f"{folder}: table {spec.name} has {access.rows:,} rows in the profile, "
                f"{spec.rows:,} in the model"
            )
        if not access.samples:
            raise PlanError(
                f"{folder}: table {spec.name}: the log did not say how many samples it "
                "covers, so traffic per query is unknown: profile again with --samples"
            )
        tables.append(TableLoad(spec, access.pooling_factor * batch, curve, bags[spec.name]))
    return profile, tables, [*notes, *_coarseness(tables, ratio)]


def _coarseness(tables: Sequence[TableLoad], ratio: float) -> list[str]:
    """How far gathers may be off, where curves have fewer points than each alone would have."""
    gathers = sum(table.gathers for table in tables)
    if ratio <= COARSE or not gathers:
        return []
    off = sum(table.gathers * table.curve.most_under for table in tables) / gathers
    return [
        f"{len(tables):,} tables: their access curves have points {ratio:.2f}× apart, so the rows "
        f"up to any cut take at most {off:.2%} more of all gathers than the plan counts"
    ]


def _curve(folder: Path, access: TableAccess, rows: int, ratio: float) -> AccessCurve | None:
    """The curve of one table's accesses; None where the log never touched it."""
    histogram = read_histogram(folder, access)
    if histogram is not None:
        return AccessCurve.from_histogram(*histogram, rows, ratio)
    counts = open_counts(folder, access)
    if counts is None or not access.accesses:
        return None
    return AccessCurve.from_counts(counts.map("counts"), rows, ratio)


def _bags(model: ModelSpec) -> dict[str, float]:
    """Vectors that a sample wants of each table; infinite where a feature pools nothing.

    A profile counts a table's accesses, not those of each feature: where one pools nothing, all
    count as vectors of their own.
    """
    bags = dict.fromkeys((spec.name for spec in model.tables), 0.0)
    for feature in model.lookups:
        bags[feature.table] += math.inf if feature.pooling is Pooling.NONE else 1.0
    return bags
