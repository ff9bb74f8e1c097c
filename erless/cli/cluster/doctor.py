"""`erless doctor`: is a cluster ready?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from erless.cli.cluster.cluster_options import (
    ClusterTargetOptions,
    ReleaseOptions,
    cluster_settings_of,
)
from erless.cli.option_groups import grouped
from erless.cli.options import store_of
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.deploy.cluster.doctor import Finding
    from erless.deploy.kubernetes.api import Api
    from erless.deploy.kubernetes.cluster_settings import ClusterSettings
    from erless.deploy.kubernetes.render.rendered import Rendered

__all__ = ["doctor"]

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@verb
@grouped
def doctor(
    cluster: ClusterTargetOptions,
    source: ReleaseOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a cluster: reachable, set up for the target, rights, nodes, images, store.

    Each line passes, warns or fails, with the command that mends it. Exit 1 where one fails.

    Example: `erless doctor --context my-cluster`
    """
    from erless.deploy.cluster.doctor import Examination, Finding, examine
    from erless.deploy.kubernetes.api import connect

    config = cluster.config()
    target = cluster.chosen(config)
    settings = cluster_settings_of(config, source.image, target)
    options = settings.options
    where = store_of(source.store, cluster.infra, config)
    endpoint = source.endpoint_url or options.endpoint_url
    api = connect(options.kubeconfig, options.context)
    rendered, why = _rendered(api, settings, where, source.release, endpoint)
    findings = list(examine(Examination(api, settings, rendered, where, endpoint)))
    if why:
        findings.append(Finding("fail", "release", f"what it needs is not checked: {why}"))
    failed = sum(finding.level == "fail" for finding in findings)
    document = {"ready": not failed, "findings": [asdict(finding) for finding in findings]}
    then = "mend what fails, then erless doctor" if failed else f"erless deploy --target {target}"
    emit(output, document, lambda console: _draw(console, findings), then=then)
    if failed:
        raise SystemExit(1)


def _rendered(
    api: Api, settings: ClusterSettings, store: str, release: str, endpoint_url: str | None
) -> tuple[Rendered | None, str]:
    """The objects of a release in the store, or why there are none.

    Images that are not pushed yet are a finding of their own: placeholders stand for them.
    """
    from erless.deploy.desired_release import load_desired
    from erless.deploy.targets import render_objects
    from erless.errors import ErlessError

    complete, _ = settings.with_placeholders(("gateway", "sparse", "dense"))
    try:
        desired = load_desired(store, release, endpoint_url)
        return render_objects(desired, complete, api), ""
    except ErlessError as error:
        return None, str(error)


def _draw(console: Console, findings: list[Finding]) -> None:
    from rich.table import Table

    table = Table("", "what", "fact", "mend")
    for finding in findings:
        level = f"[{COLOURS[finding.level]}]{finding.level}[/]"
        table.add_row(level, finding.what, finding.fact, finding.mend)
    console.print(table)
