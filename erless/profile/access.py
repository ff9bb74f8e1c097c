"""Hotness from access logs: how often the log touches each row of each table.

    log files → reader (`formats.open_log`) → ids, checked → `Tallies` → counts/<table>.safetensors

The profile's folder is built beside its final name and renamed, so a killed run leaves nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from erless.errors import ArtifactError, LogError
from erless.profile.curves import MachineCurves
from erless.profile.formats import LogFormat, LogSource, open_log
from erless.profile.logs import AccessLog
from erless.profile.names import LogNames
from erless.profile.tally import Tallies
from erless.progress import Progress, Silent
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST as BUNDLE_MANIFEST
from erless.specs.bundle import BundleManifest
from erless.specs.model import GraphTower, ModelSpec, shape_digest
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.storage.atomic import os_errors, staged_directory

__all__ = [
    "SHARES",
    "AccessReport",
    "TableHotness",
    "extend_profile",
    "profile_access",
    "profile_shape",
]

DAY_S = 86400.0
OLD_S = 7 * DAY_S  # a log that much older than the model is told of
SHARES = (0.001, 0.01, 0.1, 0.5)  # fractions of a table's rows whose share of accesses is reported
NO_CURVES = MachineCurves()
LOCALITY_FRACTION = 0.1  # locality P is over the hottest 10 % of rows


@dataclass(frozen=True, slots=True)
class TableHotness:
    """One table's accesses, and the `shares` that its hottest rows take, by `SHARES`."""

    access: TableAccess
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AccessReport:
    """The profile written, and its warnings."""

    profile: Profile
    tables: tuple[TableHotness, ...]
    warnings: tuple[str, ...]

    def _repr_html_(self) -> str:
        """As a notebook shows it: a row per table."""
        from erless.pages.page import notes, table

        rows = [
            [
                each.access.table,
                f"{each.access.rows:,}",
                f"{each.access.accesses:,}",
                f"{each.access.touched:,}",
                *(f"{share:.1%}" for share in each.shares),
            ]
            for each in self.tables
        ]
        header = ["table", "rows", "accesses", "touched", *(f"{100 * x:g} %" for x in SHARES)]
        return table(header, rows, "hotness") + notes(self.warnings)

    def document(self) -> dict[str, Any]:
        """The report as JSON types."""
        drop = {"machine", "samples"}
        return {
            "digest": self.profile.digest,
            "model_digest": self.profile.model_digest,
            "sources": list(self.profile.sources),
            "tables": [
                table.access.model_dump(mode="json", exclude={"counts"})
                | {
                    "pooling_factor": table.access.pooling_factor,
                    "top_shares": {
                        f"{fraction:g}": share
                        for fraction, share in zip(SHARES, table.shares, strict=True)
                    },
                }
                for table in self.tables
            ],
            "curves": [
                curve.model_dump(mode="json", exclude=drop) for curve in self.profile.curves
            ],
            "disks": [curve.model_dump(mode="json", exclude=drop) for curve in self.profile.disks],
            "gpus": [curve.model_dump(mode="json", exclude=drop) for curve in self.profile.gpus],
            "towers": [
                curve.model_dump(mode="json", exclude=drop) for curve in self.profile.towers
            ],
            "warnings": list(self.warnings),
        }


@dataclass
class _Coverage:
    """Samples that the logs cover per table; None once a log could not say."""

    samples: dict[str, int | None]
    covered: set[str]

    def add(self, log: AccessLog, tables: set[str]) -> None:
        for name in tables:
            former = self.samples[name]
            both = former is not None and log.samples is not None
            self.samples[name] = (former or 0) + (log.samples or 0) if both else None
            self.covered.add(name)


def profile_access(
    model: Path,
    sources: Sequence[LogSource],
    out: Path,
    *,
    log_format: LogFormat = LogFormat.AUTO,
    samples: int | None = None,
    curves: MachineCurves = NO_CURVES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AccessReport:
    """Read the logs and write the profile of the bundle `model` to `out`.

    Args:
        model: folder of a model bundle.
        sources: the logs; accesses of several logs add up.
        out: folder of the profile.
        log_format: how to read them; AUTO looks at each.
        samples: samples that the logs cover, for formats that cannot say (aggregated counts).
        curves: to be kept in the profile; none: those of the profile at `out`.
        overwrite: replace an existing profile; one without accesses is always completed.
        progress: where to announce steps.

    Raises:
        LogError: a log is empty, damaged, or has ids that are not rows of its table.
        ArtifactError: no bundle there, or `out` exists.
        StorageError: the disk refused.
    """
    bundle = BundleManifest.open(model)
    names = LogNames(bundle.model, model)
    warnings = [line for source in sources if (line := _age_warning(source, model))]
    existing = _existing_profile(out)
    if existing:  # what was measured is of this machine still, whatever the log
        curves = curves.over(existing)
    report = _profile(
        bundle.digest,
        names,
        [(source, _logs(source, model, bundle, names, log_format)) for source in sources],
        out,
        samples,
        curves,
        overwrite or bool(existing and not existing.tables),
        progress or Silent(),
    )
    return replace(report, warnings=(*warnings, *report.warnings))


def profile_shape(
    model: ModelSpec,
    sources: Sequence[LogSource],
    out: Path,
    *,
    log_format: LogFormat = LogFormat.AUTO,
    samples: int | None = None,
    progress: Progress | None = None,
) -> AccessReport:
    """Read the logs of a model of which only the shape is known, and write a profile to `out`.

    Raises as `profile_access`.
    """
    names = LogNames(model, Path())
    logs = [(source, open_log(source, names.rows, log_format)) for source in sources]
    digest = shape_digest(model)
    return _profile(digest, names, logs, out, samples, NO_CURVES, False, progress or Silent())


def _profile(
    model_digest: str,
    names: LogNames,
    logs_of: Sequence[tuple[LogSource, Iterator[AccessLog]]],
    out: Path,
    samples: int | None,
    curves: MachineCurves,
    overwrite: bool,
    progress: Progress,
) -> AccessReport:
    """Count all accesses of the logs, and write the profile of the tables to `out`."""
    rows = names.table_rows
    sources = [source for source, _ in logs_of]
    with staged_directory(out, marker=MANIFEST, overwrite=overwrite) as stage:
        scratch = stage / "scratch"
        (stage / "counts").mkdir()
        scratch.mkdir()
        tallies = Tallies(rows, scratch)
        coverage = _Coverage(dict.fromkeys(rows, 0), set())
        for source, logs in logs_of:
            if not _tally(logs, names, tallies, coverage, progress):
                raise LogError(f"{source.path}: the log is empty: no accesses in it")
        tables = _write_counts(rows, tallies, coverage, samples, stage, progress)
        if not any(table.access.accesses for table in tables):
            read = ", ".join(source.text for source in sources)
            raise LogError(f"{read}: no accesses to any table of the model")
        profile = Profile.create(
            model_digest=model_digest,
            sources=tuple(source.text for source in sources),
            tables=tuple(table.access for table in tables),
            **curves.fields(),
        )
        profile.save(stage / MANIFEST)
        shutil.rmtree(scratch)
    return AccessReport(profile, tuple(tables), tuple(_coverage_warnings(tables, coverage)))


def extend_profile(
    out: Path,
    model: Path | None,
    curves: MachineCurves,
) -> AccessReport:
    """Write `curves` to the profile at `out`; its counts stay as they are.

    Where there is no profile yet, it becomes one without tables.

    Raises:
        ArtifactError: `out` holds something else, or a damaged profile.
        StorageError: the disk refused.
    """
    fields: dict[str, Any] = {"sources": (), "tables": (), "model_digest": ""}
    if (out / MANIFEST).is_file():
        old = Profile.load(out / MANIFEST)
        fields = {"sources": old.sources, "tables": old.tables, "model_digest": old.model_digest}
        profile = Profile.create(**curves.over(old).fields(), **fields)
        profile.save(out / MANIFEST)  # one atomic rename: the counts beside it are not touched
        return AccessReport(profile, (), ())
    if model is not None:
        fields["model_digest"] = BundleManifest.open(model).digest
    with staged_directory(out, marker=MANIFEST) as stage:
        profile = Profile.create(**curves.fields(), **fields)
        profile.save(stage / MANIFEST)
    return AccessReport(profile, (), ())


def _existing_profile(out: Path) -> Profile | None:
    """The profile that is there; one that is damaged counts as none."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        return Profile.load(out / MANIFEST)
    except ArtifactError:
        return None


def _age_warning(source: LogSource, model: Path) -> str | None:
    """A log from long before the model says little about how the model is used now.

    That it was written a while before the model was exported is how it usually is. A log inside
    the bundle's folder was made with it (`erless example`), whichever came first.
    """
    if source.path.resolve().is_relative_to(model.resolve()):
        return None
    with os_errors(source.path, "read"):
        log_time = source.path.stat().st_mtime
    with os_errors(model, "read"):
        model_time = (model / BUNDLE_MANIFEST).stat().st_mtime
    if log_time >= model_time - OLD_S:
        return None
    log_at, model_at = (
        datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        for moment in (log_time, model_time)
    )
    days = (model_time - log_time) / DAY_S
    return (
        f"{source.path} ({log_at}) is {days:,.0f} days older than the bundle {model} ({model_at})"
    )


def _logs(
    source: LogSource,
    model: Path,
    bundle: BundleManifest,
    names: LogNames,
    log_format: LogFormat,
) -> Iterator[AccessLog]:
    """The readers of `source`; query files of a graph have its inputs."""
    queries = log_format is LogFormat.QUERIES or source.path.suffix == ".safetensors"
    if isinstance(bundle.model.tower, GraphTower) and queries:
        from erless.profile.graphlog import GraphLog

        yield GraphLog(source.path, model)
        return
    yield from open_log(source, names.rows, log_format)


def _tally(
    logs: Iterable[AccessLog],
    names: LogNames,
    tallies: Tallies,
    coverage: _Coverage,
    progress: Progress,
) -> int:
    """Count all accesses of `logs`, and return how many there are."""
    accesses = 0
    for log in logs:
        accesses += _read(log, names, tallies, progress)
        coverage.add(log, names.tables(log.tables))
    return accesses


def _read(log: AccessLog, names: LogNames, tallies: Tallies, progress: Progress) -> int:
    """Count all accesses of one log, and return how many ids it has."""
    ids = 0
    with progress.step(f"read {log.path.name}", log.total, log.unit) as step:
        for raw in log.chunks(step):
            chunk = names.resolve(raw, log)
            tallies.add(chunk.table, chunk.ids, chunk.counts)
            ids += len(chunk.ids)
    return ids


def _write_counts(
    rows: dict[str, int],
    tallies: Tallies,
    coverage: _Coverage,
    samples: int | None,
    stage: Path,
    progress: Progress,
) -> list[TableHotness]:
    """Rank and write each table."""
    hotness = []
    with progress.step("rank rows", len(rows), "steps") as step:
        for name, table_rows in rows.items():
            distribution = tallies.distribution(name)
            entry = None
            if distribution.touched:
                path = f"counts/{name}.safetensors"
                digest = tallies.write(name, distribution, stage / path)
                entry = FileEntry(path=path, size_bytes=digest.size_bytes, sha256=digest.sha256)
            covered = coverage.samples[name]
            access = TableAccess(
                table=name,
                rows=table_rows,
                samples=(samples or 0) if covered is None else covered,
                accesses=distribution.accesses,
                touched=distribution.touched,
                locality=distribution.share(LOCALITY_FRACTION * table_rows),
                counts=entry,
            )
            shares = tuple(distribution.share(share * table_rows) for share in SHARES)
            hotness.append(TableHotness(access, shares))
            step.advance(1)
    return hotness


def _coverage_warnings(tables: Sequence[TableHotness], coverage: _Coverage) -> list[str]:
    warnings = []
    cold = [table.access.table for table in tables if table.access.table not in coverage.covered]
    if cold:
        names = ", ".join(cold[:8]) + (f" and {len(cold) - 8} more" if len(cold) > 8 else "")
        warnings.append(f"in no log, taken as never accessed (all rows cold): {names}")
    unknown = [
        table.access.table for table in tables if table.access.accesses and not table.access.samples
    ]
    if unknown:
        names = ", ".join(unknown[:8]) + (" …" if len(unknown) > 8 else "")
        warnings.append(
            f"the log does not say how many samples it covers, so the pooling factor is unknown "
            f"(give --samples): {names}"
        )
    return warnings
