"""`erless pack`: plan + bundle → release."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.hints import trying
from erless.cli.option_groups import grouped
from erless.cli.options import EndpointOption, InfraOption, StoreOption, project, store_of
from erless.cli.release.pack_pods import PodOptions, pack_by_pods
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.pack.evaluate import Evaluation
    from erless.pack.inputs import PackInputs
    from erless.pack.packer import Packed, Packer
    from erless.progress import Progress
    from erless.specs.release import ReleaseManifest

__all__ = ["pack"]


@dataclass(frozen=True)
class PackOptions:
    """The inputs of a release, and the store that it goes to."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model bundle, a folder or s3://bucket/prefix [default: erless.yaml's].",
        ),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="Profile of the plan [default: erless.yaml's]."),
    ] = None
    plan: Annotated[Path, typer.Option(help="The plan.")] = Path("plan.json")
    onto: Annotated[
        str | None,
        typer.Option(
            help="Instead of a plan: fold the generations of this release (its digest, the "
            "beginning of it, or `last`) into a new one."
        ),
    ] = None
    store: StoreOption = None
    shard: Annotated[
        int | None,
        typer.Option(help="Only shard number I of the plan: many workers share the work.", min=0),
    ] = None
    workers: Annotated[
        int,
        typer.Option(help="Processes of this machine that share the work.", min=1, max=256),
    ] = 1
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what the store has; make the damaged again.")
    ] = False
    infra: InfraOption = None
    evaluate: Annotated[
        Path | None,
        typer.Option(help="Query file: report what precision costs in predictions, and in AUC."),
    ] = None
    endpoint_url: EndpointOption = None


class PackEngine(StrEnum):
    """Who cuts the tables."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


@verb
@grouped
def pack(
    options: PackOptions,
    pods: PodOptions,
    engine: Annotated[
        PackEngine, typer.Option(help="Who cuts the tables: this machine, or Jobs on a cluster.")
    ] = PackEngine.LOCAL,
    output: OutputOption = Output.TEXT,
) -> None:
    """Cut a model into the shards of a plan and keep them in a store.

    Packing what is there already does nothing; a run that was stopped is completed by the next.

    Example: `erless pack --model m --profile p --plan plan.json --store releases`,
    `erless pack --onto last`,
    `erless pack --engine kubernetes --model s3://bucket/m --store s3://bucket/releases`
    """
    if options.onto is not None:
        _pack_onto(options, options.onto, output)
        return
    from erless.errors import OptionError, PlanError
    from erless.pack.bundle_files import bundle_files
    from erless.pack.inputs import PackInputs
    from erless.pack.packer import Packer
    from erless.storage.stores import open_store

    config = project()
    bundle, profile = options.model or str(config.model), options.profile or config.profile
    shared = options.workers > 1 or engine is PackEngine.KUBERNETES
    if options.shard is not None and shared:
        raise OptionError("--shard is one worker's share already: leave out --workers and --engine")
    if options.evaluate and bundle.startswith("s3://"):
        raise OptionError("--evaluate reads rows at random: copy the bundle to this machine first")
    _present(bundle, profile, options.plan)
    with bars() as progress, bundle_files(bundle, options.endpoint_url) as files:
        inputs = PackInputs(  # what cannot be packed makes no store
            files.folder,
            profile,
            options.plan,
            tables_at=files.tables_at,
            endpoint_url=options.endpoint_url,
        )
        numbers = (
            f"--shard takes 0 to {len(inputs.plan.shards) - 1}; `erless plan` shows the shards"
        )
        where = store_of(options.store, options.infra, config)
        store = open_store(where, endpoint_url=options.endpoint_url, create=True)
        packer = Packer(inputs, store, verify=options.verify, progress=progress)
        with trying(numbers, PlanError):
            if engine is PackEngine.KUBERNETES:
                packed = pack_by_pods(packer, pods, options.endpoint_url, progress)
            elif options.workers > 1:
                packed = _pack_by_processes(packer, options, progress)
            else:
                packed = packer.pack(options.shard)
        evaluations = _evaluations(inputs, options.evaluate, progress)
    document = _document(packed, store.url)
    if options.evaluate:
        budget = config.precision.max_auc_loss
        document["evaluation"] = _evaluation(options.evaluate, evaluations, budget)

    def draw(console: Console) -> None:
        _draw(console, packed, store.url)
        if evaluations:
            _draw_evaluation(console, evaluations)

    if packed.release is None:
        then = f"erless pack --shard N for each of {', '.join(packed.missing)}"
    else:
        then = f"erless deploy --store {where}"
    emit(output, document, draw, then=then)


def _evaluations(inputs: PackInputs, queries: Path | None, progress: Progress) -> list[Evaluation]:
    """What precision costs on a query file, if one is given."""
    if queries is None:
        return []
    import torch

    from erless.pack.evaluate import evaluate

    torch.set_num_threads(1)  # as `erless predict`: small layers gain nothing from more
    return evaluate(inputs, queries, progress=progress)


def _pack_by_processes(packer: Packer, options: PackOptions, progress: Progress) -> Packed:
    """Share the work between processes of this machine."""
    from erless.pack.job import PackJob
    from erless.pack.parallel import pack_in_portions
    from erless.pack.portions import PackStep, Portions, PortionSizes
    from erless.pack.processes import Processes

    inputs = packer.inputs
    sizes = PortionSizes.for_workers(inputs, options.workers)
    if len(Portions(inputs, sizes).of(PackStep.CUT)) == 1:
        return packer.pack()  # one process would do it all, and this one would wait
    job = PackJob.here(inputs, packer.store, sizes)
    return pack_in_portions(packer, sizes, Processes(job, options.workers), progress)


def _present(bundle: str, profile: Path, plan: Path) -> None:
    """Say what makes each artifact that is not there, before its reader says what it misses.

    Raises:
        ArtifactError: one is not there.
    """
    from erless.errors import ArtifactError

    model = Path(bundle)
    made_by = {
        model: (
            "model",
            "`erless import`, or `erless example rm1 --out m` to try",
        ),
        profile: ("profile", f"`erless profile --model {bundle} --log LOG --out {profile}`"),
        plan: ("plan", f"`erless plan --model {bundle} --profile {profile} --out {plan}`"),
    }
    for path, (artifact, hint) in made_by.items():
        in_bucket = path is model and bundle.startswith("s3://")
        if not path.exists() and not in_bucket:
            with trying(f"{hint}; or name another with --{artifact}", ArtifactError):
                raise ArtifactError(f"no {artifact} at {path}")


def _pack_onto(options: PackOptions, release: str, output: Output) -> None:
    """Fold the generations of a release into a new one."""
    from erless.errors import OptionError
    from erless.pack.generations.compact import compact
    from erless.storage.stores import open_store

    if options.shard is not None or options.evaluate or options.model or options.profile:
        raise OptionError(
            "--onto takes rows from the release: no --model, --profile, --shard or "
            "--evaluate beside it"
        )
    store = open_store(
        store_of(options.store, options.infra, project()), endpoint_url=options.endpoint_url
    )
    with bars() as progress:
        folded = compact(store, "" if release == "last" else release, progress)
    base = folded.release.folds
    document = {
        "store": store.url,
        "release": folded.release.digest,
        "folds": base.model_dump() if base else None,
        "carried": folded.carried,
        "slices_written": folded.slices_written,
        "slices_kept": folded.slices_kept,
        "bytes_written": folded.bytes_written,
        "shards": [shard.model_dump(mode="json") for shard in folded.release.shards],
    }

    def draw(console: Console) -> None:
        if base is not None:
            console.print(f"generation {base.generation} of release {base.release[:12]} is folded")
        if folded.carried:
            console.print(f"{folded.carried} generations published meanwhile are carried over")
        _draw_release(console, folded.release, store.url, folded.slices_written, folded.slices_kept)

    emit(output, document, draw, then=f"erless deploy --release {folded.release.digest[:12]}")


def _evaluation(queries: Path, evaluations: list[Evaluation], budget: float) -> dict[str, Any]:
    """The evaluation as a document; warns where the plan loses more than the budget."""
    loss = evaluations[0].auc_loss if evaluations else None
    if (loss or 0.0) > budget:
        note(f"warning: the plan's precisions lose {loss:.4f} of AUC, allowed are {budget:g}")
    return {
        "queries": str(queries),
        "max_auc_loss": budget,
        "precisions": [
            asdict(evaluation) | {"auc_loss": evaluation.auc_loss} for evaluation in evaluations
        ],
    }


def _document(packed: Packed, url: str) -> dict[str, Any]:
    release = packed.release
    return {
        "store": url,
        "release": release.digest if release else None,
        "missing_shards": list(packed.missing),
        "slices_written": packed.slices_written,
        "slices_kept": packed.slices_kept,
        "bytes_written": packed.bytes_written,
        "shards": [shard.model_dump(mode="json") for shard in release.shards] if release else [],
    }


def _draw(console: Console, packed: Packed, url: str) -> None:
    if packed.release is None:
        done = _done(packed.slices_written, packed.slices_kept)
        console.print(f"{done}; the release waits for: {', '.join(packed.missing)}")
        return
    _draw_release(console, packed.release, url, packed.slices_written, packed.slices_kept)


def _done(written: int, kept: int) -> str:
    return f"{written} slices written, {kept} were there"


def _draw_release(
    console: Console, release: ReleaseManifest, url: str, written: int, kept: int
) -> None:
    from rich.table import Table

    table = Table("shard", "tier")
    lossy = any(shard.largest_error for shard in release.shards)
    error = ("error",) if lossy else ()
    for heading in ("precision", "tables", "rows", "MB", *error, "digest"):
        table.add_column(heading, justify="right")
    for shard in release.shards:
        table.add_row(
            shard.name,
            shard.tier,
            shard.precision,
            str(len(shard.tables)),
            f"{shard.rows:,}",
            f"{shard.size_bytes / 1e6:,.1f}",
            *((f"{shard.largest_error:.1g}",) if lossy else ()),
            shard.digest[:12],
        )
    console.print(table)
    console.print(f"release {release.digest} in {url}: {_done(written, kept)}")


def _draw_evaluation(console: Console, evaluations: list[Evaluation]) -> None:
    from rich.table import Table

    table = Table("rows", title="predictions against fp32; precisions are below the resident tier")
    for heading in ("row MB", "max error", "mean error", "max relative", "AUC", "AUC loss"):
        table.add_column(heading, justify="right")
    for evaluation in evaluations:
        table.add_row(
            evaluation.precision,
            f"{evaluation.row_bytes / 1e6:,.1f}",
            f"{evaluation.max_error:.2g}",
            f"{evaluation.mean_error:.2g}",
            f"{evaluation.relative_error:.2g}",
            "" if evaluation.auc_after is None else f"{evaluation.auc_after:.5f}",
            "" if evaluation.auc_loss is None else f"{evaluation.auc_loss:+.5f}",
        )
    console.print(table)
