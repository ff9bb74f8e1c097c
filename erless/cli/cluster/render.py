"""`erless render`: the Kubernetes objects of a release, as YAML, a kustomize base or a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.cluster.cluster_options import (
    ClusterTargetOption,
    ModelOption,
    NamespaceOption,
    ReleaseOptions,
    cluster_config,
    cluster_settings_of,
    cluster_target,
    desired_release,
    named_model,
)
from erless.cli.option_groups import grouped
from erless.cli.options import InfraOption, project, store_of
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.deploy.kubernetes.render.rendered import Rendered

__all__ = ["render"]


class ManifestFormat(StrEnum):
    """How the objects are written."""

    YAML = "yaml"
    KUSTOMIZE = "kustomize"
    HELM = "helm"


@dataclass(frozen=True)
class RenderedPlace:
    """Where the objects are to live, and what is to run them."""

    namespace: NamespaceOption = None
    infra: InfraOption = None
    target: ClusterTargetOption = None
    model: ModelOption = None


@verb
@grouped
def render(
    source: ReleaseOptions,
    place: RenderedPlace,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Write here: a file, or the folder of a base or chart [default: stdout]."
        ),
    ] = None,
    layout: Annotated[
        ManifestFormat,
        typer.Option("--format", help="One YAML file, a kustomize base, or a Helm chart."),
    ] = ManifestFormat.YAML,
    previous: Annotated[
        list[str] | None,
        typer.Option(
            help="A release whose functions stay, for a reconciler that prunes before the gateway "
            "has moved; repeatable."
        ),
    ] = None,
    monitoring: Annotated[
        bool, typer.Option("--monitoring", help="Add a PodMonitor, alerts and dashboards.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write the exact Kubernetes objects that `erless deploy` applies on a cluster.

    They are checked against Kubernetes' and Knative's definitions; no cluster is needed. The Secret
    that the functions show each other is not among them: `erless cluster secret` makes it. With
    --monitoring also what Prometheus' operator and Grafana need, which deploy does not apply.

    A kustomize base and a Helm chart have one object to a file, for a repository that Argo CD or
    Flux applies; a folder that was written so before is replaced.

    Example: `erless render --store releases --namespace recs > release.yaml`

    Example: `erless render --format kustomize --out deploy/recs --previous 3f9c`
    """
    import sys
    from dataclasses import replace

    from erless.deploy.knative.schema import check_objects
    from erless.deploy.monitoring.objects import monitoring_objects
    from erless.deploy.targets import render_objects
    from erless.errors import OptionError

    if layout is not ManifestFormat.YAML and out is None:
        raise OptionError(f"--format {layout.value} writes a folder: name it with --out")
    config = named_model(project(), place.model)
    on = cluster_target(place.target, config)
    values = {"namespace": place.namespace, "infra": place.infra}
    config = cluster_config(config, values, on)
    settings = cluster_settings_of(config, source.image, on)
    if monitoring:
        options = settings.options.model_copy(update={"pod_monitor": True})
        settings = replace(settings, options=options)
    store = store_of(source.store, place.infra, config)
    endpoint = source.endpoint_url or settings.options.endpoint_url

    def rendered(release: str) -> tuple[str, Rendered]:
        desired = desired_release(config, store, release, endpoint)
        return desired.release.digest, render_objects(desired, settings)

    digest, newest = rendered(source.release)
    objects = list(newest.with_functions_of([rendered(release)[1] for release in previous or ()]))
    check_objects(objects)
    if monitoring:
        objects += monitoring_objects(digest, settings.options.namespace, settings.sla_ms)
    document = {"release": digest, "objects": objects}
    secret = f"erless cluster secret --namespace {settings.options.namespace}"
    if out is not None:
        _write(objects, digest, settings.options.namespace, layout, out)
    if output is Output.JSON or out is None:
        then = f"{secret} (pods wait for its Secret, which is not among these)"
        text = _text(objects)
        emit(output, document, lambda _: print(text, end="", file=sys.stdout), then=then)
    else:
        then = f"{_apply(layout, out, settings.options.namespace)} and {secret}, or erless deploy"
        emit(output, document, lambda console: console.print(f"wrote {out}"), then=then)


def _text(objects: Sequence[Mapping[str, Any]]) -> str:
    """All objects as one YAML file."""
    import yaml

    text: str = yaml.safe_dump_all(objects, sort_keys=False, width=1000)
    return text


def _write(
    objects: Sequence[Mapping[str, Any]],
    release: str,
    namespace: str,
    layout: ManifestFormat,
    out: Path,
) -> None:
    """Write the objects to `out`, a file or a folder."""
    from erless.deploy.kubernetes.gitops import helm_chart, kustomize_base, write_folder
    from erless.storage.atomic import replace_file

    match layout:
        case ManifestFormat.YAML:
            replace_file(out, _text(objects).encode())
        case ManifestFormat.KUSTOMIZE:
            write_folder(kustomize_base(objects, release), out)
        case ManifestFormat.HELM:
            write_folder(helm_chart(objects, release, namespace), out)


def _apply(layout: ManifestFormat, out: Path, namespace: str) -> str:
    """The command that applies what was written."""
    if layout is ManifestFormat.HELM:
        return f"helm upgrade --install erless {out} -n {namespace} --create-namespace"
    option = "-f" if layout is ManifestFormat.YAML else "-k"
    return f"kubectl apply --server-side {option} {out}"
