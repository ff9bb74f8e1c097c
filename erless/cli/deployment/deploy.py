"""`erless deploy`: make a release the one that answers queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.cluster.cluster_options import CLUSTER_TARGETS, ReleaseOptions, desired_release
from erless.cli.deployment.target_options import TargetOptions, TimeoutOption, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.options import InfraOption, store_of
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.deploy.target import Change, Checked, Desired, Target
    from erless.specs.config import Config

__all__ = ["deploy"]

VALIDATED = {"server": "API server and its webhooks", "schemas": "definitions; no cluster answers"}


@dataclass(frozen=True)
class DeployOptions:
    """What deploy does, or only reports."""

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False
    diff: Annotated[
        bool, typer.Option("--diff", help="As --dry-run; exit 1 where something would change.")
    ] = False
    plot: Annotated[Path | None, typer.Option(help="Write a page of what changes.")] = None
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before a cluster is changed.")
    ] = False
    replace_model: Annotated[
        bool,
        typer.Option("--replace-model", help="Let a release take the place of another model's."),
    ] = False


DecoysOption = Annotated[
    int | None,
    typer.Option(
        "--decoys",
        min=0,
        max=32,
        help="Decoy shards beside the release's; whoever touches one raises an alert; 0: none "
        "[default: erless.yaml's].",
    ),
]


@dataclass(frozen=True)
class LocalOptions:
    """How target local runs it."""

    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Gateway's port; 0: any free [local].")
    ] = None
    systemd: Annotated[
        bool | None,
        typer.Option(
            "--systemd/--no-systemd",
            help="Have a systemd user unit keep the supervisor [default: erless.yaml's] [local].",
        ),
    ] = None


@dataclass(frozen=True)
class OnClusterOptions:
    """How a target on a cluster runs it."""

    infra: InfraOption = None
    canary_percent: Annotated[
        int | None,
        typer.Option(
            "--canary",
            min=0,
            max=99,
            help="Per cent of queries for the new release, until the next deploy [knative].",
        ),
    ] = None


@verb
@grouped
def deploy(
    source: ReleaseOptions,
    how: DeployOptions,
    where: TargetOptions,
    local: LocalOptions,
    on_cluster: OnClusterOptions,
    decoys: DecoysOption = None,
    timeout_s: TimeoutOption = 600,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a release: start what is missing, wait until all is ready, then switch queries over.

    Until the switch the old release serves, whatever happens; Ctrl-C undoes. Deploying what runs
    already changes nothing. Where another model runs, --model NAME deploys NAME beside it.

    Example: `erless deploy --store releases`, `erless deploy --diff --plot diff.html`
    """
    destination, config = resolve_target(
        where, local=vars(local), cluster=vars(on_cluster), images=source.image or ()
    )
    endpoint_url = source.endpoint_url
    if destination.name in CLUSTER_TARGETS:
        section = getattr(config.targets, destination.name)
        endpoint_url = endpoint_url or section.endpoint_url
    store = store_of(source.store, on_cluster.infra, config)
    desired = desired_release(
        config, store, source.release, endpoint_url, replace_model=how.replace_model
    )
    writes = not (how.dry_run or how.diff)
    desired = _with_decoys(desired, config, destination, decoys, write=writes)
    checked = _validate(destination, desired) if how.dry_run else None
    if not (how.dry_run or how.diff):
        destination.replaced_model(desired)  # where that is refused, say so before all else
    # where nobody answers, or images are to come, what would change is not known
    offline = checked is not None and (checked.by == "schemas" or bool(checked.missing))
    changes = () if offline else destination.diff(desired)
    document = _document(destination, desired, changes, checked)
    document["changed"] = offline or any(change.action != "keep" for change in changes)
    if how.plot:
        _plot(how.plot, destination, desired, changes)
    if how.dry_run or how.diff:
        document["model"] = _models(destination, desired, offline)
        emit(
            output,
            document,
            lambda console: _draw_dry(console, document, changes, checked),
            then=_without_dry_run(destination.name, source),
        )
        if how.diff and document["changed"]:
            raise SystemExit(1)
        return
    if document["changed"] and destination.name != "local" and output is Output.TEXT:
        _agree(desired, changes, ask=not how.yes)
    with bars() as progress:
        done = destination.deploy(desired, progress, timeout_s)
    document |= {"url": done.url, "deployed_at": done.deployed_at}
    if done.note:
        note(f"note: {done.note}")

    def draw(console: Console) -> None:
        _draw(console, changes)
        console.print(f"release {done.release[:12]} answers at {done.url}")

    emit(output, document, draw, then="erless status --watch")


def _with_decoys(
    desired: Desired, config: Config, destination: Target, count: int | None, *, write: bool
) -> Desired:
    """`desired` with its decoys; what draws them is imported only where there shall be some."""
    if count is None and not (config.decoys.count or desired.decoys):
        count = _standing_decoys(desired, destination, write=write)
        if count == 0:
            return desired
    elif count is None and config.decoys.count in (0, len(desired.decoys)):
        return desired
    from erless.api.decoys import with_decoys

    return with_decoys(desired, config, destination.name, count, write=write)


def _standing_decoys(desired: Desired, destination: Target, *, write: bool) -> int:
    """How many decoys stand beside what serves now; a dry run may have nobody to ask."""
    from erless.deploy.desired_release import standing_decoys
    from erless.errors import DeployError, KubeconfigError

    try:
        return standing_decoys(desired, destination)
    except (DeployError, KubeconfigError):
        if write:
            raise
        return 0


def _without_dry_run(target: str, source: ReleaseOptions) -> str:
    """The same deploy, for real."""
    given = [("--store", source.store), ("--release", source.release)]
    words = [f" {option} {value}" for option, value in given if value]
    return f"erless deploy --target {target}{''.join(words)}"


def _agree(desired: Desired, changes: tuple[Change, ...], *, ask: bool) -> None:
    """Show on stderr what a cluster will run and what the plan costs; on a terminal, ask."""
    import os
    import sys

    from rich.console import Console

    from erless.plan.report.tables import node_line

    console = Console(stderr=True, highlight=False)
    _draw(console, changes)
    console.print(node_line(desired.plan))
    if ask and sys.stdin.isatty() and sys.stderr.isatty() and not os.environ.get("CI"):
        typer.confirm("Deploy this?", abort=True, err=True)


def _plot(out: Path, target: Target, desired: Desired, changes: tuple[Change, ...]) -> None:
    """Write the page of what would change, beside the plan that serves where the store has it."""
    from erless.deploy.desired_release import load_desired
    from erless.deploy.diff_page import write_diff
    from erless.errors import ErlessError

    served = None
    try:
        now = next((each.release for each in target.deployments() if each.current), "")
        served = load_desired(desired.store, now, desired.endpoint_url).plan if now else None
    except ErlessError as error:
        note(f"note: the plan that serves is not on the page: {error}")
    write_diff(out, target.name, served, desired, changes)
    note(f"wrote {out}")


def _validate(destination: Target, desired: Desired) -> Checked | None:
    """What a target that can check its objects finds; None where it has none."""
    from erless.deploy.target import Validates

    if not isinstance(destination, Validates):
        return None
    checked = destination.validate(desired)
    for missing in checked.missing:
        note(f"note: no {missing} is configured; a placeholder stands for it")
    return checked


def _document(
    destination: Target, desired: Desired, changes: tuple[Change, ...], checked: Checked | None
) -> dict[str, Any]:
    """`-o json`, as far as it is known before anything is done."""
    document: dict[str, Any] = {"target": destination.name, "release": desired.release.digest}
    if checked is not None:
        document |= {
            "validated_by": checked.by,
            "missing": list(checked.missing),
            "objects": list(checked.objects),
        }
    document["changes"] = [
        {"action": change.action, "what": change.what, "detail": change.detail}
        for change in changes
    ]
    return document


def _models(destination: Target, desired: Desired, offline: bool) -> dict[str, Any]:
    """Which model answers now and which would; `refused`: not without --replace-model."""
    from dataclasses import replace

    from erless.errors import OtherModelError

    served = refused = ""
    if not offline:
        try:
            served = destination.replaced_model(desired)
        except OtherModelError as error:
            refused = str(error)
            served = destination.replaced_model(replace(desired, replace_model=True))
    return {"now": served, "then": desired.release.model.name, "refused": refused}


def _draw_dry(
    console: Console,
    document: dict[str, Any],
    changes: tuple[Change, ...],
    checked: Checked | None,
) -> None:
    models = document["model"]
    console.print(f"model {models['now'] or 'none'} → {models['then']}")
    if models["refused"]:
        mend = f"--model {models['then']} beside it, --replace-model in its place"
        console.print(f"[red]it would be refused[/red]: {models['refused']} ({mend})")
    if checked is not None:
        for rendered in checked.objects:
            console.print(f"  {rendered['kind']} {rendered['metadata']['name']}{_shares(rendered)}")
        console.print(f"{len(checked.objects)} objects, valid by the {VALIDATED[checked.by]}")
        if checked.by == "schemas" or checked.missing:
            return
    _draw(console, changes)


def _shares(rendered: dict[str, Any]) -> str:
    """How a Service's traffic is shared, where more than one revision gets some."""
    lines = rendered.get("spec", {}).get("traffic", [])
    if len(lines) < 2:
        return ""
    return ": " + ", ".join(f"{line['percent']} % {line['revisionName']}" for line in lines)


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
