"""`erless update`: changed rows and dense weights → the next generation of a release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.option_groups import grouped
from erless.cli.options import EndpointOption, StoreOption, project, store_of
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.pack.generations.publish import Publisher
    from erless.specs.generations import GenerationManifest

__all__ = ["update"]


@dataclass(frozen=True)
class UpdateOptions:
    """What is changed, and in which release."""

    rows: Annotated[
        list[str] | None,
        typer.Option(
            help="TABLE=FILE: changed and added rows, .parquet (id, vector) or .safetensors "
            "(ids, rows). May be given for several tables."
        ),
    ] = None
    delete: Annotated[
        list[str] | None,
        typer.Option(help="TABLE=FILE: ids of rows that become zeros, in the same formats."),
    ] = None
    tower: Annotated[
        Path | None, typer.Option(help="Bundle of the same model with newer dense weights.")
    ] = None
    follow: Annotated[
        str | None,
        typer.Option(
            help="Folder or s3://bucket/prefix: publish every batch that comes into it, until "
            "Ctrl-C. In a bucket a batch ends with an object _SUCCESS."
        ),
    ] = None
    compact_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="While following: fold the generations into a new release and deploy it once "
            "they are this share of its rows; 0: never [default: erless.yaml's].",
        ),
    ] = None
    release: Annotated[
        str, typer.Option(help="Digest or its beginning [default: the last that was packed].")
    ] = ""
    store: StoreOption = None
    endpoint_url: EndpointOption = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything; tell which shards would change.")
    ] = False


@verb
@grouped
def update(given: UpdateOptions, output: OutputOption = Output.TEXT) -> None:
    """Publish changed rows or dense weights of a release: gateways answer with them in seconds.

    Each call makes a numbered generation, visible whole or not at all. `erless rollback
    --generation N` takes back what came behind N.

    Example: `erless update --rows item=rows.parquet`, `erless update --follow incoming/`
    """
    from contextlib import closing

    from erless.errors import OptionError
    from erless.pack.generations.follow import Batch
    from erless.pack.generations.publish import Publisher
    from erless.specs.stored import find_release
    from erless.storage.stores import open_store

    batch = Batch(_pairs("--rows", given.rows), _pairs("--delete", given.delete), given.tower)
    if bool(given.follow) == bool(batch):
        raise OptionError("give --rows, --delete or --tower, or else --follow")
    if given.follow:
        _follow(given, given.follow, output)
        return
    store = open_store(store_of(given.store, None, project()), endpoint_url=given.endpoint_url)
    with closing(Publisher(store, find_release(store, given.release).digest)) as publisher:
        if given.dry_run:
            _preview(publisher, batch, output)
            return
        _tell(batch.publish(publisher), "", "", output)


def _follow(given: UpdateOptions, inbox: str, output: Output) -> None:
    """Publish what comes; fold it into a new release where it has become much."""
    from erless.cli.release.fresh_release import FreshRelease
    from erless.pack.generations.follow import follow
    from erless.pack.generations.inbox import open_inbox

    with FreshRelease(given.release, given.store, given.endpoint_url, given.compact_share) as fresh:
        opened = open_inbox(inbox, given.endpoint_url)
        note(f"following {opened.url} for release {fresh.digest[:12]}: Ctrl-C ends")
        for outcome in follow(lambda: fresh.publisher, opened):
            _tell(outcome.manifest, outcome.error, outcome.name, output)
            if outcome.manifest is not None:
                fresh.compact_when_due(outcome.manifest)


def _pairs(option: str, given: list[str] | None) -> dict[str, Path]:
    """TABLE=FILE options as a mapping."""
    from erless.errors import OptionError

    pairs: dict[str, Path] = {}
    for text in given or ():
        table, equals, file = text.partition("=")
        if not table or not equals or not file:
            raise OptionError(f"{option} {text}: expected TABLE=FILE")
        if table in pairs:
            raise OptionError(f"{option} {text}: table {table} is given twice")
        pairs[table] = Path(file)
    return pairs


def _preview(publisher: Publisher, batch: Any, output: Output) -> None:
    shards = publisher.preview(batch.changes(publisher))

    def draw(console: Console) -> None:
        for name, rows in shards.items():
            console.print(f"{name}: {rows:,} rows would change")
        console.print("nothing was published: this was a dry run")

    document = {"release": publisher.release.digest, "shards": shards}
    emit(output, document, draw, then="the same without --dry-run")


def _tell(manifest: GenerationManifest | None, error: str, name: str, output: Output) -> None:
    document: dict[str, Any] = {"batch": name} if name else {}
    if manifest is None:
        emit(
            output,
            {**document, "error": error},
            lambda console: console.print(f"{name}: not published: {error}"),
            then="",
        )
        return
    text = (
        f"generation {manifest.number} of release {manifest.release[:12]}: "
        f"{manifest.changed:,} rows changed, {manifest.added:,} added, {manifest.deleted:,} "
        f"deleted{', new dense weights' if manifest.tower else ''}; "
        f"{manifest.size_bytes / 1e6:,.1f} MB"
    )
    emit(
        output,
        {**document, **manifest.model_dump(mode="json")},
        lambda console: console.print(f"{name}: {text}" if name else text),
        then="" if name else "erless status",
    )
