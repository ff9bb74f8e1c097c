"""`erless doctor`: is a cluster ready?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from erless.cli.cluster.cluster_options import (
    ContextOption,
    ImageOption,
    KubeconfigOption,
    NamespaceOption,
    ReleaseOption,
    cluster_config,
    cluster_settings_of,
)
from erless.cli.options import EndpointOption, InfraOption, StoreOption, project, store_of
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.deploy.cluster.doctor import Finding
    from erless.deploy.knative.cluster_settings import ClusterSettings
    from erless.deploy.knative.render import Rendered

__all__ = ["doctor"]

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@verb
def doctor(
    store: StoreOption = None,
    release: ReleaseOption = "",
    image: ImageOption = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    infra: InfraOption = None,
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a cluster: reachable, Knative and its settings, permissions, nodes, images, store.

    Each line passes, warns or fails, with the command that mends it. Exit 1 where one fails.

    Example: `erless doctor --context my-cluster`
    """
    from erless.deploy.cluster.doctor import examine
    from erless.deploy.kubernetes.api import connect

    config = cluster_config(
        project(), kubeconfig=kubeconfig, context=context, namespace=namespace, infra=infra
    )
    settings = cluster_settings_of(config, image)
    options = config.targets.knative
    where = store_of(store, infra, config)
    rendered = _rendered(settings, where, release, endpoint_url)
    findings = list(
        examine(connect(options.kubeconfig, options.context), settings, rendered, where)
    )
    failed = sum(each.level == "fail" for each in findings)
    document = {"ready": not failed, "findings": [asdict(each) for each in findings]}
    emit(output, document, lambda console: _draw(console, findings))
    if failed:
        raise SystemExit(1)


def _rendered(
    settings: ClusterSettings, store: str, release: str, endpoint_url: str | None
) -> Rendered | None:
    """The objects of the release in the store, where there is one."""
    from erless.deploy.desired_release import load_desired
    from erless.deploy.knative.render import render
    from erless.errors import ErlessError

    try:
        return render(load_desired(store, release, endpoint_url), settings)
    except ErlessError as error:
        note(f"note: what a release needs is not checked: {error}")
        return None


def _draw(console: Console, findings: list[Finding]) -> None:
    from rich.table import Table

    table = Table("", "what", "fact", "mend")
    for each in findings:
        colour = COLOURS[each.level]
        table.add_row(f"[{colour}]{each.level}[/]", each.what, each.fact, each.mend)
    console.print(table)
