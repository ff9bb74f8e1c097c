"""What was counted, wherever that was, becomes a profile: ranked counts, totals, warnings.

`erless.profile.tally` counts on this machine, `erless.profile.spark` on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from erless.errors import LogError
from erless.profile.curves import MachineCurves
from erless.profile.names import LogNames
from erless.profile.ranking import CountDistribution, Window, distribution_of, write_ranked
from erless.progress import Progress
from erless.specs.artifact import FileEntry
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.storage.tensors import write_tensors

__all__ = [
    "LOCALITY_FRACTION",
    "SHARES",
    "AccessReport",
    "Counted",
    "Coverage",
    "TableCounts",
    "TableHotness",
    "write_profile",
]

SHARES = (0.001, 0.01, 0.1, 0.5)  # fractions of a table's rows whose share of accesses is reported
MANY_ROWS = 100_000  # touched: from here on a histogram lies beside the counts, for planning
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
                table.access.model_dump(mode="json", exclude={"counts", "histogram"})
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


class TableCounts(Protocol):
    """What was counted, table by table. `scratch`: a folder to rank rows in, 8 bytes a row."""

    scratch: Path

    def windows(self, table: str) -> Iterable[Window]:
        """The touched rows of `table` with their counts, in the order of ids; as often as asked."""


@dataclass
class Coverage:
    """Samples that the logs cover per table; None once a log could not say."""

    samples: dict[str, int | None]
    covered: set[str]

    @classmethod
    def of(cls, tables: Iterable[str]) -> Coverage:
        """No log covers the tables yet."""
        return cls(dict.fromkeys(tables, 0), set())

    def add(self, samples: int | None, tables: Iterable[str]) -> None:
        """A log of `tables` covers `samples`."""
        for name in tables:
            former = self.samples[name]
            both = former is not None and samples is not None
            self.samples[name] = (former or 0) + (samples or 0) if both else None
            self.covered.add(name)


class Counted(NamedTuple):
    """What was read of logs: the model's digest, the logs as given, accesses, samples.

    Of tables with more than `most_rows` touched rows only a histogram is kept.
    """

    model_digest: str
    sources: tuple[str, ...]
    counts: TableCounts
    coverage: Coverage
    most_rows: int | None = None


def write_profile(
    counted: Counted,
    names: LogNames,
    samples: int | None,
    curves: MachineCurves,
    stage: Path,
    progress: Progress,
) -> AccessReport:
    """Rank and write all that was counted in the logs to the folder `stage`.

    Args:
        counted: the logs' accesses.
        names: of the tables.
        samples: that the logs cover, where they cannot say.
        curves: to be kept in the profile.
        stage: an empty folder, or one with scratch files.
        progress: where to announce steps.

    Raises:
        LogError: there are no accesses.
        StorageError: the disk refused.
    """
    (stage / "counts").mkdir()
    coverage = counted.coverage
    tables = _write_counts(names.table_rows, counted, samples, stage, progress)
    if not any(table.access.accesses for table in tables):
        read = ", ".join(counted.sources)
        raise LogError(f"{read}: no accesses to any table of the model")
    profile = Profile.create(
        model_digest=counted.model_digest,
        sources=counted.sources,
        tables=tuple(table.access for table in tables),
        **curves.fields(),
    )
    profile.save(stage / MANIFEST)
    return AccessReport(profile, tuple(tables), tuple(_coverage_warnings(tables, coverage)))


def _write_counts(
    rows: dict[str, int],
    counted: Counted,
    samples: int | None,
    stage: Path,
    progress: Progress,
) -> list[TableHotness]:
    """Rank and write each table."""
    hotness = []
    counts, coverage = counted.counts, counted.coverage
    with progress.step("rank rows", len(rows), "steps") as step:
        for name, table_rows in rows.items():
            distribution = distribution_of(counts.windows(name))
            entry = histogram = None
            ranked = distribution.touched <= (counted.most_rows or distribution.touched)
            if not ranked or distribution.touched >= MANY_ROWS:
                histogram = _write_histogram(name, distribution, stage)
            if ranked and distribution.touched:
                path = f"counts/{name}.safetensors"
                digest = write_ranked(
                    counts.windows(name), distribution, stage / path, counts.scratch
                )
                entry = FileEntry(path=path, **digest._asdict())
            covered = coverage.samples[name]
            access = TableAccess(
                table=name,
                rows=table_rows,
                samples=(samples or 0) if covered is None else covered,
                accesses=distribution.accesses,
                touched=distribution.touched,
                locality=distribution.share(LOCALITY_FRACTION * table_rows),
                counts=entry,
                histogram=histogram,
            )
            shares = tuple(distribution.share(share * table_rows) for share in SHARES)
            hotness.append(TableHotness(access, shares))
            step.advance(1)
    return hotness


def _write_histogram(table: str, distribution: CountDistribution, stage: Path) -> FileEntry:
    """Keep how many rows have each count."""
    path = f"histograms/{table}.safetensors"
    (stage / path).parent.mkdir(exist_ok=True)
    tensors = {"values": distribution.values, "rows": distribution.rows}
    return FileEntry(path=path, **write_tensors(stage / path, tensors)._asdict())


def _coverage_warnings(tables: Sequence[TableHotness], coverage: Coverage) -> list[str]:
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
