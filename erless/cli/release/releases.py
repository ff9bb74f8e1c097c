"""`erless releases`: list, show, verify, prune."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.hints import trying
from erless.cli.options import EndpointOption, StoreOption, project
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.storage.store import Store

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="What a release store holds: `list`, `show`, `verify`, `prune`.",
    epilog="Example: `erless releases list --store releases`",
)

DigestArgument = Annotated[
    str, typer.Argument(help="The release's digest, or its beginning; without it, the newest.")
]


def _open(location: str | None, endpoint_url: str | None) -> Store:
    """The store that the user named, or `erless.yaml` does."""
    from erless.errors import StoreError
    from erless.storage.stores import open_store

    with trying("erless pack --store STORE makes one; --store names another", StoreError):
        return open_store(location or project().store, endpoint_url=endpoint_url)


@app.command("list")
@verb
def list_(
    store: StoreOption = None,
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the releases of a store, newest first.

    Example: `erless releases list --store releases`
    """
    from datetime import UTC, datetime

    from erless.errors import ArtifactError
    from erless.specs.stored import list_releases, load_release

    opened = _open(store, endpoint_url)
    rows: list[dict[str, Any]] = []
    for digest, manifest in list_releases(opened):
        when = datetime.fromtimestamp(manifest.modified_s, UTC).isoformat(timespec="seconds")
        row: dict[str, Any] = {"release": digest, "packed_at": when}
        try:
            release = load_release(opened, digest)
        except ArtifactError as error:
            row["damaged"] = str(error)
        else:
            row |= {
                "model": release.model.name,
                "shards": len(release.shards),
                "size_bytes": sum(shard.size_bytes for shard in release.shards),
                "plan_digest": release.plan_digest,
                "bundle_digest": release.bundle_digest,
            }
        rows.append(row)
    then = f"erless releases show --store {opened.url}" if rows else "erless pack"
    document = {"store": opened.url, "releases": rows}
    emit(output, document, lambda console: _draw(console, rows), then=then)


def _draw(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("release", "packed at", "model", "shards", "MB", "plan")
    for row in rows:
        if "damaged" in row:
            table.add_row(row["release"][:12], row["packed_at"], f"damaged: {row['damaged']}")
            continue
        table.add_row(
            row["release"][:12],
            row["packed_at"],
            row["model"],
            str(row["shards"]),
            f"{row['size_bytes'] / 1e6:,.1f}",
            row["plan_digest"][:12],
        )
    console.print(table)


@app.command()
@verb
def show(
    store: StoreOption = None,
    digest: DigestArgument = "",
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show one release: its shards, and what it was made from.

    Example: `erless releases show 3f9a --store releases`
    """
    from erless.specs.stored import find_release

    release = find_release(_open(store, endpoint_url), digest)

    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table("shard", "tier", "precision", "tables", "rows", "MB", "digest")
        for shard in release.shards:
            table.add_row(
                shard.name,
                shard.tier,
                shard.precision,
                str(len(shard.tables)),
                f"{shard.rows:,}",
                f"{shard.size_bytes / 1e6:,.1f}",
                shard.digest,
            )
        console.print(f"release {release.digest}\nbundle  {release.bundle_digest}")
        console.print(f"plan    {release.plan_digest}\nprofile {release.profile_digest}")
        console.print(table)

    then = f"erless deploy --release {release.digest[:12]}"
    emit(output, release.model_dump(mode="json"), draw, then=then)


@app.command()
@verb
def verify(
    store: StoreOption = None,
    digest: DigestArgument = "",
    every: Annotated[bool, typer.Option("--all", help="All releases of the store.")] = False,
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Read every file of a release and compare it with its digest; exit 1 if one differs.

    Example: `erless releases verify --store releases`
    """
    from erless.errors import ArtifactError, StoreError
    from erless.pack import inventory
    from erless.specs.stored import list_releases

    opened = _open(store, endpoint_url)
    matching = [name for name, _ in list_releases(opened) if name.startswith(digest)]
    if not matching or (digest and len(matching) > 1):
        raise StoreError(
            f"{opened.url}: {len(matching)} releases begin with {digest!r}, expected one"
        )
    damage = {}
    with bars() as progress:
        for name in matching if every else matching[:1]:
            damage[name] = inventory.verify(opened, name, progress)
    facts = [fault for name in damage for fault in damage[name]]
    document = {
        "store": opened.url,
        "releases": [
            {
                "release": name,
                "sound": not damage[name],
                "damage": [{"name": fault.name, "fact": fault.fact} for fault in damage[name]],
            }
            for name in damage
        ],
    }
    if facts and output is Output.TEXT:
        for fact in facts:
            note(f"damaged: {fact.fact}")
        raise ArtifactError(f"{opened.url}: {len(facts)} files are not as they were packed")
    then = "erless pack, which replaces what is damaged" if facts else "erless deploy"
    emit(output, document, lambda console: console.print(f"sound: {', '.join(damage)}"), then=then)
    if facts:
        raise SystemExit(1)


@app.command()
@verb
def prune(
    store: StoreOption = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A release to keep, by digest; may be repeated.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="Keep what is deployed at this target; repeatable."),
    ] = None,
    keep_last: Annotated[int, typer.Option(help="Keep the N newest releases too.", min=0)] = 3,
    grace_hours: Annotated[
        float, typer.Option(help="Spare what is younger: a packer may need it.", min=0)
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Remove old releases, and the files that no release refers to.

    A function that starts anew reads its release again: name every target that uses the store.

    Example: `erless releases prune --store releases --keep-last 2 --target knative`
    """
    from erless.pack import inventory

    opened = _open(store, endpoint_url)
    keeping = _digests_to_keep(opened, keep or (), target or (), keep_last)
    pruned = inventory.prune(opened, keep=keeping, grace_s=grace_hours * 3600, dry_run=dry_run)
    document = {
        "store": opened.url,
        "dry_run": dry_run,
        "releases_removed": list(pruned.releases),
        "objects_removed": pruned.objects,
        "bytes_removed": pruned.size_bytes,
    }
    word = "would remove" if dry_run else "removed"
    emit(
        output,
        document,
        lambda console: console.print(
            f"{word} {len(pruned.releases)} releases, {pruned.objects} objects, "
            f"{pruned.size_bytes / 1e6:,.1f} MB"
        ),
        then="the same without --dry-run" if dry_run else "erless releases list",
    )


def _digests_to_keep(
    store: Store, named: Iterable[str], targets: Iterable[str], newest: int
) -> set[str]:
    """Releases of `store` that stay: those named, the `newest`, and what the targets keep."""
    from erless.cli.deployment.target_options import PlaceOptions, resolve_target
    from erless.specs.stored import find_release, list_releases

    stored = [name for name, _ in list_releases(store)]
    digests = {*stored[:newest], *(find_release(store, digest).digest for digest in named)}
    for name in targets:
        for target in resolve_target(PlaceOptions(name))[0].by_model():
            digests |= {kept.release for kept in target.deployments()}.intersection(stored)
    return digests
