"""`erless history` and `erless rollback`: the releases that a target keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.bars import bars
from erless.cli.deployment.target_options import TargetOptions, TimeoutOption, resolve_target
from erless.cli.hints import trying
from erless.cli.option_groups import grouped
from erless.cli.options import StoreOption, store_of
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from erless.deploy.target import Deployment, Target

__all__ = ["history", "rollback"]


@verb
@grouped
def history(
    where: TargetOptions,
    plot: Annotated[
        Path | None, typer.Option(help="Write a page: releases, plans and generations in time.")
    ] = None,
    store: StoreOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the releases that were deployed and are kept, newest first.

    Example: `erless history`, `erless history --plot history.html`
    """
    from dataclasses import asdict

    destination, config = resolve_target(where)
    deployments = destination.deployments()
    if plot is not None:
        _plot(plot, destination.name, deployments, store_of(store, None, config))
        note(f"wrote {plot}")

    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table("", "release", "deployed at", "url")
        for deployment in deployments:
            mark = "→" if deployment.current else ""
            table.add_row(
                mark,
                deployment.release[:12],
                deployment.deployed_at,
                deployment.url if deployment.current else "",
            )
        console.print(table)

    document = {
        "target": destination.name,
        "deployments": [asdict(deployment) for deployment in deployments],
    }
    then = "erless rollback" if len(deployments) > 1 else "erless status"
    emit(output, document, draw, then=then)


def _plot(out: Path, target: str, deployments: Sequence[Deployment], location: str) -> None:
    """Write the page; what the store does not have is left out."""
    from erless.deploy.desired_release import load_desired
    from erless.deploy.history_page import DeployedRelease, write_history
    from erless.errors import ErlessError
    from erless.specs.generations import generations, load_generation
    from erless.storage.stores import open_store

    kept = []
    for deployment in deployments:
        plan, published = None, []
        try:
            plan = load_desired(location, deployment.release).plan
            store = open_store(location)
            numbers = sorted(generations(store, deployment.release), reverse=True)
            published = [load_generation(store, deployment.release, each) for each in numbers]
        except ErlessError as error:
            note(f"note: {deployment.release[:12]}: {error}")
        kept.append(DeployedRelease(deployment, plan, published))
    write_history(out, target, kept)


@verb
@grouped
def rollback(
    release: Annotated[
        str | None, typer.Argument(help="Digest or its beginning [the one before the current].")
    ] = None,
    *,
    where: TargetOptions,
    timeout_s: TimeoutOption = 120,
    generation: Annotated[
        int | None,
        typer.Option(
            min=0, help="Keep the release; answer as its generation N did (0: as it was packed)."
        ),
    ] = None,
    store: StoreOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a kept release current again; queries in flight are answered where they are.

    With --generation the release stays, and a new generation takes back what came behind N.

    Example: `erless rollback`, `erless rollback 3f9a`, `erless rollback --generation 12`
    """
    from dataclasses import asdict

    from erless.errors import NotDeployedError

    destination, config = resolve_target(where)
    if generation is not None:
        _go_back(generation, release, store_of(store, None, config), output)
        return
    with bars() as progress, trying(_instead(destination), NotDeployedError):
        done = destination.rollback(release, progress, timeout_s)
    emit(
        output,
        {"target": destination.name, **asdict(done)},
        lambda console: console.print(f"release {done.release[:12]} answers at {done.url} again"),
        then="erless status",
    )


def _instead(destination: Target) -> str:
    """What to do where there is nothing to go back to."""
    if not destination.deployments():
        return "`erless deploy` first"
    return (
        "`erless history` lists what is kept (deploying one release twice keeps it once); "
        "`erless deploy --release DIGEST` takes any of the store"
    )


def _go_back(generation: int, release: str | None, store: str, output: Output) -> None:
    """Publish a generation that is generation number `generation` once more."""
    from contextlib import closing

    from erless.pack.generations.publish import Publisher
    from erless.specs.stored import find_release
    from erless.storage.stores import open_store

    opened = open_store(store)
    with closing(Publisher(opened, find_release(opened, release or "").digest)) as publisher:
        manifest = publisher.go_back(generation)
    emit(
        output,
        manifest.model_dump(mode="json"),
        lambda console: console.print(
            f"generation {manifest.number} of release {manifest.release[:12]} is generation "
            f"{generation} once more; gateways follow within seconds"
        ),
        then="erless status",
    )
