"""`erless profile`: access logs and this machine's speed → a profile."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.hints import trying
from erless.cli.model.counting import CountingOptions, Engine
from erless.cli.option_groups import grouped
from erless.cli.options import EndpointOption, StoreOption, project, store_of
from erless.cli.query_columns import column_pairs
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from erless.profile.counted import AccessReport
    from erless.profile.curves import MachineCurves
    from erless.profile.formats import LogSource
    from erless.progress import Progress
    from erless.specs.config import Config

__all__ = ["profile"]

LIVE = Path("live")
EXAMPLE_LOG = "access.parquet"  # as `erless example` writes it into the bundle


class Format(StrEnum):
    """Log formats; the same names as `erless.profile.formats.LogFormat`."""

    AUTO = "auto"
    QUERIES = "queries"
    PARQUET = "parquet"
    CRITEO = "criteo"
    INTERACTIONS = "interactions"
    COUNTS = "counts"


@dataclass(frozen=True)
class LogOptions(CountingOptions):
    """The access logs, and who counts them."""

    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            help="PATH, or TABLE:PATH for the log of one table. Repeatable. "
            "[default: access.parquet beside the model]",
        ),
    ] = None
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE=COLUMN",
            help="A table whose column in parquet logs has another name. Repeatable.",
        ),
    ] = None
    log_format: Annotated[
        Format, typer.Option("--format", help="How the logs are laid out; auto looks at each.")
    ] = Format.AUTO
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Samples covered, for aggregated logs that cannot say."),
    ] = None


@dataclass(frozen=True)
class LiveProfileOptions:
    """Live heat, in place of logs."""

    live: Annotated[
        bool,
        typer.Option("--live", help="Of the queries that deployed gateways sample, from a store."),
    ] = False
    release: Annotated[
        str, typer.Option(help="Digest or its beginning [default: the last that has live heat].")
    ] = ""
    store: StoreOption = None
    endpoint_url: EndpointOption = None


@dataclass(frozen=True)
class SpeedOptions:
    """How fast machines are: measured here, or reported from a GPU."""

    throughput: Annotated[
        bool, typer.Option("--throughput", help="Measure gathers and tower on this machine.")
    ] = False
    quick: Annotated[
        bool, typer.Option("--quick", help="With --throughput or --disk: fewer points, about 10 s.")
    ] = False
    disk: Annotated[
        Path | None,
        typer.Option("--disk", help="Measure random reads of the disk that this folder is on."),
    ] = None
    gpu_towers: Annotated[
        Path | None,
        typer.Option(help="Take the GPU's speed from a report of benchmarks/gpu_tower.py."),
    ] = None

    @property
    def any(self) -> bool:
        """Whether there is something to measure or to take."""
        return self.throughput or self.disk is not None or self.gpu_towers is not None

    def curves(self, model: Path | None, progress: Progress) -> MachineCurves:
        """What was asked for, measured now.

        Raises:
            ArtifactError: the GPU's report is none.
            StorageError, DiskReadError: the disk cannot be measured.
        """
        from erless.profile.curves import MachineCurves, read_gpu_towers

        curves = MachineCurves()
        if self.throughput:
            from erless.profile.throughput import measure

            curves = measure(model, quick=self.quick, progress=progress)
        if self.disk is not None:
            from erless.profile.disk import measure_disk

            reads = measure_disk(self.disk, quick=self.quick, progress=progress)
            curves = curves._replace(disks=(reads,))
        if self.gpu_towers is not None:
            curves = curves._replace(gpus=read_gpu_towers(self.gpu_towers))
        return curves


@verb
@grouped
def profile(
    logs: LogOptions,
    heat: LiveProfileOptions,
    speed: SpeedOptions,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the profile [default: erless.yaml's].")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Model bundle of these tables [erless.yaml's]."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the profile.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a page of how hot rows are.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Measure how hot each row is from access logs; with --throughput or --disk how fast this
    machine is.

    With --live the profile is of the queries that gateways sample now (`observe.sample` in
    erless.yaml), written to the folder `live` or to --out. Rows that were not seen keep the order
    of erless.yaml's profile.

    Logs: query files, parquet with a list of ids per table, Criteo TSV/CSV, interactions
    (`user item item …`), aggregated parquet (table, id, count); larger than memory is fine.

    Example: `erless profile --model m --log m/access.parquet --out p`,
    `erless profile --engine spark --master 'local[4]'`
    """
    logs.check()
    config = project()
    if heat.live:
        _live(logs, heat, out or LIVE, config, overwrite, plot, output)
        return
    if model is None and config.model.exists():
        model = config.model
    out = out or config.profile
    log = _log_paths(logs, model, speed.any)
    from erless.errors import ArtifactError
    from erless.profile.access import extend_profile, profile_access
    from erless.profile.formats import LogFormat, LogSource

    missing = f"`erless import` makes {model}, `erless example rm1 --out {model}` one to try"
    absent = trying(missing, ArtifactError) if model and not model.exists() else nullcontext()
    with bars() as progress, absent:
        curves = speed.curves(model, progress)
        columns = column_pairs(logs.column)
        sources = [replace(LogSource.parse(path), columns=columns) for path in log]
        if log and model is not None and logs.engine is Engine.SPARK:
            report = _on_spark(logs, model, sources, out, curves, overwrite, progress)
        elif log and model is not None:
            report = profile_access(
                model,
                sources,
                out,
                log_format=LogFormat(logs.log_format.value),
                samples=logs.samples,
                curves=curves,
                overwrite=overwrite,
                progress=progress,
            )
        else:
            report = extend_profile(out, model, curves)
    for line in report.warnings:
        note(f"warning: {line}")
    document = report.document()
    document["out"] = str(out)
    _plot(plot, out, report.warnings)
    then = "erless profile --log LOG" if not document["tables"] else "erless plan --compare"
    then += f" --model {model}" if model else ""
    then += f" --profile {out}" if document["tables"] else f" --out {out}"
    emit(output, document, lambda console: _text(console, document), then=then)


def _on_spark(
    logs: LogOptions,
    model: Path,
    sources: list[LogSource],
    out: Path,
    curves: MachineCurves,
    overwrite: bool,
    progress: Progress,
) -> AccessReport:
    """Count the logs on Spark."""
    from erless.profile.formats import LogFormat
    from erless.profile.spark.job import SparkProfile, profile_on_spark

    how = SparkProfile(
        log_format=LogFormat(logs.log_format.value),
        samples=logs.samples,
        every=logs.every,
        most_rows=logs.most_rows,
        counts_at=logs.counts_out,
    )
    return profile_on_spark(
        logs.spark(),
        model,
        sources,
        out,
        how,
        curves=curves,
        overwrite=overwrite,
        progress=progress,
    )


def _live(
    counting: CountingOptions,
    heat: LiveProfileOptions,
    out: Path,
    config: Config,
    overwrite: bool,
    plot: Path | None,
    output: Output,
) -> None:
    """Make a profile of live heat, and say where it comes from."""
    from erless.profile.live import live_release, profile_live
    from erless.storage.stores import open_store

    location = store_of(heat.store, None, config)
    store = open_store(location, endpoint_url=heat.endpoint_url)
    release = live_release(store, heat.release)
    if counting.engine is Engine.SPARK:
        from erless.profile.spark.heat import StoreAt, profile_live_on_spark

        with bars() as progress:
            report = profile_live_on_spark(
                counting.spark(),
                StoreAt(location, heat.endpoint_url),
                release,
                out,
                before=config.profile,
                overwrite=overwrite,
                sums_at=counting.counts_out,
                progress=progress,
            )
    else:
        report = profile_live(store, release, out, before=config.profile, overwrite=overwrite)
    for line in report.warnings:
        note(f"warning: {line}")
    document = {**report.document(), "out": str(out), "release": release.digest}
    _plot(plot, out, report.warnings)

    def draw(console: Console) -> None:
        _text(console, document)
        for source in document["sources"]:
            console.print(source)

    emit(output, document, draw, then=f"erless plan --compare --profile {out}")


def _plot(plot: Path | None, profile: Path, warnings: Sequence[str]) -> None:
    """Write the page of the profile, where one is wanted."""
    if plot is None:
        return
    from erless.profile.hotness_page import write_hotness

    write_hotness(profile, plot, warnings)
    note(f"wrote {plot}")


def _log_paths(logs: LogOptions, model: Path | None, measures: bool) -> list[str]:
    """The logs to read: those given, else the example's, unless this machine is measured.

    Raises:
        typer.BadParameter: there is nothing to measure, or no model to check ids against.
    """
    log = logs.log
    if not log and not measures and model and (model / EXAMPLE_LOG).is_file():
        log = [str(model / EXAMPLE_LOG)]
    if not log and not measures:
        what = "--log" if model else "--model BUNDLE and --log"
        raise typer.BadParameter(
            f"give {what} (`erless example rm1 --out m` makes both, to try), or --throughput or "
            "--disk to measure this machine, or --gpu-towers"
        )
    if log and model is None:
        raise typer.BadParameter(
            "--log needs --model, ids are checked against its tables: `erless import` makes one"
        )
    return log or []


def _text(console: Console, document: dict[str, Any]) -> None:
    from rich.table import Table

    if document["tables"]:
        table = Table("table", title=f"profile {document['out']}")
        for head in ("rows", "accesses", "touched", "ids per bag", "hottest 1 %", "10 %"):
            table.add_column(head, justify="right")
        for row in document["tables"]:
            shares = row["top_shares"]
            table.add_row(
                row["table"],
                f"{row['rows']:,}",
                f"{row['accesses']:,}",
                f"{row['touched']:,}",
                f"{row['pooling_factor']:.2f}",
                *(f"{100 * shares[key]:.1f} %" for key in ("0.01", "0.1")),
            )
        console.print(table)
    if document["curves"]:
        table = Table("gather", title="QPS(n; c) = c ÷ (a + β·n)")
        for head in ("row bytes", "locality", "vCPU", "a (µs)", "β (ns)", "residual"):
            table.add_column(head, justify="right")
        for curve in document["curves"]:
            table.add_row(
                curve["precision"],
                str(curve["row_bytes"]),
                f"{curve['locality']:.2f}",
                f"{curve['vcpu']:g}",
                f"{1e6 * curve['overhead_s']:.2f}",
                f"{1e9 * curve['gather_s']:.2f}",
                f"{100 * curve['residual']:.0f} %",
            )
        console.print(table)
    for disk in document["disks"]:
        console.print(
            f"disk ({disk['engine']}): {disk['reads_per_s']:,.0f} reads/s of 4 KiB, "
            f"{1e6 * disk['read_cpu_s']:.2f} µs of CPU each, {1e6 * disk['seek_s']:.0f} µs alone"
        )
    for gpu in document["gpus"]:
        console.print(
            f"tower {gpu['name']} on {gpu['gpu']} in {gpu['precision']}: "
            f"{1e6 * gpu['overhead_s']:.1f} µs + {1e6 * gpu['sample_s']:.3f} µs per sample"
        )
    for tower in document["towers"]:
        console.print(
            f"tower {tower['name']}: {1e6 * tower['overhead_s']:.1f} µs + "
            f"{1e6 * tower['sample_s']:.2f} µs per sample, residual {100 * tower['residual']:.0f} %"
        )
