"""`erless deploy`: make a release the one that answers queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.cluster.cluster_options import (
    ContextOption,
    ImageOption,
    KubeconfigOption,
    NamespaceOption,
    ReleaseOption,
    desired_release,
)
from erless.cli.deployment.target_options import (
    StateOption,
    TargetOption,
    TimeoutOption,
    resolve_target,
)
from erless.cli.options import EndpointOption, InfraOption, StoreOption, store_of
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.deploy.target import Change, Checked

__all__ = ["deploy"]

VALIDATED = {"server": "API server and Knative", "schemas": "definitions; no cluster answers"}


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
    canary: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=99,
            help="Per cent of queries for the new release, until the next deploy [knative].",
        ),
    ] = None,
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a release: start what is missing, wait until all is ready, then switch queries over.

    Until the switch the old release serves, whatever happens; Ctrl-C undoes. Deploying what runs
    already changes nothing.

    Example: `erless deploy --store releases`, `erless deploy --diff`
    """
    from erless.deploy.target import Validates

    destination, config = resolve_target(
        target,
        state=state,
        port=port,
        kubeconfig=kubeconfig,
        context=context,
        namespace=namespace,
        infra=infra,
        images=image,
        canary_percent=canary,
    )
    if destination.name == "knative":
        endpoint_url = endpoint_url or config.targets.knative.endpoint_url
    desired = desired_release(config, store_of(store, infra, config), release, endpoint_url)
    document: dict[str, Any] = {"target": destination.name, "release": desired.release.digest}
    checked = None
    if dry_run and isinstance(destination, Validates):
        checked = destination.validate(desired)
        document |= {
            "validated_by": checked.by,
            "missing": list(checked.missing),
            "objects": list(checked.objects),
        }
        for missing in checked.missing:
            note(f"note: no {missing} is configured; a placeholder stands for it")
    # where nobody answers, or images are to come, what would change is not known
    offline = checked is not None and (checked.by == "schemas" or bool(checked.missing))
    changes = () if offline else destination.diff(desired)
    document |= {
        "changes": [
            {"action": change.action, "what": change.what, "detail": change.detail}
            for change in changes
        ],
        "changed": any(change.action != "keep" for change in changes) or offline,
    }
    if dry_run or diff:
        emit(output, document, lambda console: _draw_dry(console, changes, checked))
        if diff and document["changed"]:
            raise SystemExit(1)
        return
    with bars() as progress:
        done = destination.deploy(desired, progress, timeout_s)
    document |= {"url": done.url, "deployed_at": done.deployed_at}
    if done.note:
        note(f"note: {done.note}")

    def draw(console: Console) -> None:
        _draw(console, changes)
        console.print(f"release {done.release[:12]} answers at {done.url}")

    emit(output, document, draw)


def _draw_dry(console: Console, changes: tuple[Change, ...], checked: Checked | None) -> None:
    if checked is not None:
        for document in checked.objects:
            console.print(f"  {document['kind']} {document['metadata']['name']}")
        console.print(f"{len(checked.objects)} objects, valid by the {VALIDATED[checked.by]}")
        if checked.by == "schemas" or checked.missing:
            return
    _draw(console, changes)


def _draw(console: Console, changes: tuple[Change, ...]) -> None:
    marks = {
        "create": "[green]+[/green]",
        "update": "[yellow]~[/yellow]",
        "remove": "[red]-[/red]",
        "keep": " ",
    }
    for change in changes:
        console.print(f"{marks[change.action]} {change.what:16} {change.detail}")
    if all(change.action == "keep" for change in changes):
        console.print("nothing to change")
