"""`erless deploy`: make a release the one that answers queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.cluster_options import (
    ContextOption,
    ImageOption,
    InfraOption,
    KubeconfigOption,
    NamespaceOption,
    ReleaseOption,
    desired_release,
)
from erless.cli.options import EndpointOption, StoreOption
from erless.cli.run import Output, OutputOption, emit, verb
from erless.cli.target_options import StateOption, TargetOption, TimeoutOption, chosen_target

if TYPE_CHECKING:
    from rich.console import Console

    from erless.deploy.target import Change

__all__ = ["deploy"]


@verb
def deploy(
    target: TargetOption = None,
    store: StoreOption = None,
    release: ReleaseOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="As --dry-run; exit 1 where something would change.")
    ] = False,
    timeout_s: TimeoutOption = 600,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Gateway's port; 0: any free [local].")
    ] = None,
    state: StateOption = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    infra: InfraOption = None,
    image: ImageOption = None,
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a release: start what is missing, wait until all is ready, then switch queries over.

    Until the switch the old release serves, whatever happens; Ctrl-C undoes. Deploying what runs
    already changes nothing.

    Example: `erless deploy --store releases`, `erless deploy --diff`
    """
    chosen, config = chosen_target(
        target, state=state, port=port, kubeconfig=kubeconfig, context=context,
        namespace=namespace, infra=infra, images=image,
    )  # fmt: skip
    desired = desired_release(config, store, release, endpoint_url)
    changes = chosen.diff(desired)
    document: dict[str, Any] = {
        "target": chosen.name,
        "release": desired.release.digest,
        "changes": [
            {"action": each.action, "what": each.what, "detail": each.detail} for each in changes
        ],
        "changed": any(each.action != "keep" for each in changes),
    }
    if dry_run or diff:
        emit(output, document, lambda console: _draw(console, changes))
        if diff and document["changed"]:
            raise SystemExit(1)
        return
    with bars() as progress:
        done = chosen.deploy(desired, progress, timeout_s)
    document |= {"url": done.url, "deployed_at": done.deployed_at}

    def draw(console: Console) -> None:
        _draw(console, changes)
        console.print(f"release {done.release[:12]} answers at {done.url}")

    emit(output, document, draw)


def _draw(console: Console, changes: tuple[Change, ...]) -> None:
    marks = {"create": "[green]+[/green]", "update": "[yellow]~[/yellow]",
             "remove": "[red]-[/red]", "keep": " "}  # fmt: skip
    for each in changes:
        console.print(f"{marks[each.action]} {each.what:16} {each.detail}")
    if all(each.action == "keep" for each in changes):
        console.print("nothing to change")
