"""`erless render`: the Kubernetes objects of a release, as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erless.cli.cluster.cluster_options import (
    NamespaceOption,
    ReleaseOptions,
    cluster_config,
    cluster_settings_of,
    desired_release,
)
from erless.cli.option_groups import grouped
from erless.cli.options import InfraOption, project, store_of
from erless.cli.run import Output, OutputOption, emit, verb

__all__ = ["render"]


@verb
@grouped
def render(
    source: ReleaseOptions,
    namespace: NamespaceOption = None,
    infra: InfraOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the YAML here [default: stdout].")
    ] = None,
    monitoring: Annotated[
        bool, typer.Option("--monitoring", help="Add a PodMonitor, alerts and dashboards.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write the exact Kubernetes objects that `erless deploy --target knative` applies.

    They are checked against Kubernetes' and Knative's definitions; no cluster is needed. The Secret
    that the functions show each other is not among them: `erless cluster secret` makes it. With
    --monitoring also what Prometheus' operator and Grafana need, which deploy does not apply.

    Example: `erless render --store releases --namespace recs > release.yaml`
    """
    import sys
    from dataclasses import replace

    import yaml

    from erless.deploy.knative.render import render as render_objects
    from erless.deploy.knative.schema import check_objects
    from erless.deploy.monitoring.objects import monitoring_objects
    from erless.storage.atomic import os_errors, staged_file

    config = cluster_config(project(), {"namespace": namespace, "infra": infra})
    settings = cluster_settings_of(config, source.image)
    if monitoring:
        options = settings.options.model_copy(update={"pod_monitor": True})
        settings = replace(settings, options=options)
    store = store_of(source.store, infra, config)
    endpoint = source.endpoint_url or settings.options.endpoint_url
    desired = desired_release(config, store, source.release, endpoint)
    rendered = render_objects(desired, settings)
    check_objects(rendered.objects)
    objects = list(rendered.objects)
    if monitoring:
        options = settings.options
        objects += monitoring_objects(desired.release.digest, options.namespace, settings.sla_ms)
    text = yaml.safe_dump_all(objects, sort_keys=False, width=1000)
    if out is not None:
        with staged_file(out) as stage, os_errors(stage):
            stage.write_text(text, encoding="utf-8")
    document = {"release": desired.release.digest, "objects": objects}
    secret = f"erless cluster secret --namespace {settings.options.namespace}"
    if output is Output.JSON or out is None:
        then = f"{secret} (pods wait for its Secret, which is not among these)"
        emit(output, document, lambda _: print(text, end="", file=sys.stdout), then=then)
    else:
        then = f"kubectl apply --server-side -f {out} and {secret}, or erless deploy"
        emit(output, document, lambda console: console.print(f"wrote {out}"), then=then)
