"""Hotness from access logs: how often the log touches each row of each table.

    log files → reader (`formats.open_log`) → ids, checked → `Tallies` → counts/<table>.safetensors

The profile's folder is built beside its final name and renamed, so a killed run leaves nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from erless.errors import ArtifactError, LogError
from erless.profile.counted import AccessReport, Counted, Coverage, write_profile
from erless.profile.curves import MachineCurves
from erless.profile.formats import LogFormat, LogSource, open_log
from erless.profile.logs import AccessLog
from erless.profile.names import LogNames
from erless.profile.tally import Tallies
from erless.progress import Progress, Silent
from erless.specs.bundle import MANIFEST as BUNDLE_MANIFEST
from erless.specs.bundle import BundleManifest
from erless.specs.model import GraphTower, ModelSpec, shape_digest
from erless.specs.profile import MANIFEST, Profile
from erless.storage.atomic import os_errors, staged_directory

__all__ = ["age_warning", "extend_profile", "kept_curves", "profile_access", "profile_shape"]

DAY_S = 86400.0
OLD_S = 7 * DAY_S  # a log that much older than the model is told of
NO_CURVES = MachineCurves()


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
    warnings = [line for source in sources if (line := age_warning(source, model))]
    curves, unfinished = kept_curves(out, curves)
    report = _profile(
        bundle.digest,
        names,
        [(source, _logs(source, model, bundle, names, log_format)) for source in sources],
        out,
        samples,
        curves,
        overwrite or unfinished,
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
    with staged_directory(out, marker=MANIFEST, overwrite=overwrite) as stage:
        scratch = stage / "scratch"
        scratch.mkdir()
        tallies = Tallies(names.table_rows, scratch)
        coverage = Coverage.of(names.table_rows)
        for source, logs in logs_of:
            if not _tally(logs, names, tallies, coverage, progress):
                raise LogError(f"{source.path}: the log is empty: no accesses in it")
        texts = tuple(source.text for source, _ in logs_of)
        counted = Counted(model_digest, texts, tallies, coverage)
        report = write_profile(counted, names, samples, curves, stage, progress)
        shutil.rmtree(scratch)
    return report


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


def kept_curves(out: Path, curves: MachineCurves) -> tuple[MachineCurves, bool]:
    """`curves` over those of the profile at `out`, and whether that one has no tables yet.

    What was measured is of this machine still, whatever the log; a damaged profile counts as none.
    """
    try:
        existing = Profile.load(out / MANIFEST) if (out / MANIFEST).is_file() else None
    except ArtifactError:
        existing = None
    if existing is None:
        return curves, False
    return curves.over(existing), not existing.tables


def age_warning(source: LogSource, model: Path) -> str | None:
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
    coverage: Coverage,
    progress: Progress,
) -> int:
    """Count all accesses of `logs`, and return how many there are."""
    accesses = 0
    for log in logs:
        accesses += _read(log, names, tallies, progress)
        coverage.add(log.samples, names.tables(log.tables))
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
