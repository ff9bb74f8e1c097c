"""`erless render`: a release's Kubernetes objects, or a pack's: YAML, kustomize base or chart."""

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
from erless.cli.cluster.pack_jobs import JobOptions
from erless.cli.option_groups import grouped
from erless.cli.options import InfraOption, project, store_of
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.deploy.kubernetes.cluster_settings import ClusterSettings
    from erless.deploy.kubernetes.render.rendered import Rendered
    from erless.specs.config import Config

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


@dataclass(frozen=True)
class PackJobOptions(JobOptions):
    """The Jobs that make a release, in place of a release."""

    job: Annotated[
        bool,
        typer.Option(
            "--job", help="Of `erless pack --engine kubernetes`: the Jobs, not a release."
        ),
    ] = False
    bundle: Annotated[
        str | None,
        typer.Option(help="With --job: the bundle, s3://bucket/prefix [default: erless.yaml's]."),
    ] = None
    profile: Annotated[
        Path | None, typer.Option(help="With --job: of the plan [default: erless.yaml's].")
    ] = None
    plan: Annotated[Path, typer.Option(help="With --job: the plan.")] = Path("plan.json")


@verb
@grouped
def render(
    source: ReleaseOptions,
    place: RenderedPlace,
    packing: PackJobOptions,
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

    With --job it writes the Jobs of `erless pack --engine kubernetes` instead. What their pods read
    besides the tables is put into the store, so it must be a bucket.

    Example: `erless render --store releases --namespace recs > release.yaml`

    Example: `erless render --format kustomize --out deploy/recs --previous 3f9c`

    Example: `erless render --job --bundle s3://bucket/m --store s3://bucket/releases > jobs.yaml`
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
    if packing.job:
        if previous or monitoring or source.release:
            raise OptionError(
                "--job makes a release: there is none yet for --release, --previous or --monitoring"
            )
        if layout is ManifestFormat.HELM:
            raise OptionError(
                "--job is written as YAML or as a kustomize base: a chart is a release"
            )
        _render_jobs(packing, config, store, settings.with_endpoint(endpoint), layout, out, output)
        return

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


def _render_jobs(
    packing: PackJobOptions,
    config: Config,
    store: str,
    settings: ClusterSettings,
    layout: ManifestFormat,
    out: Path | None,
    output: Output,
) -> None:
    """Write the Jobs of a pack; what they read is put into the store."""
    from erless.cli.cluster.pack_jobs import job_objects
    from erless.deploy.kubernetes.schema import check_objects
    from erless.pack.bundle_files import bundle_files
    from erless.pack.inputs import PackInputs
    from erless.pack.packer import Packer
    from erless.storage.stores import open_store

    bundle, endpoint = packing.bundle or str(config.model), settings.options.endpoint_url
    with bundle_files(bundle, endpoint) as files:
        inputs = PackInputs(
            files.folder,
            packing.profile or config.profile,
            packing.plan,
            tables_at=files.tables_at,
            endpoint_url=endpoint,
        )
        packer = Packer(inputs, open_store(store, endpoint_url=endpoint, create=True))
        digest, objects = job_objects(packer, packing, settings)
    check_objects(objects)
    namespace = settings.options.namespace
    if out is not None:
        _write(objects, digest, namespace, layout, out)
    then = f"erless pack --engine kubernetes --model {bundle} --store {store}, once they have run"
    document = {"job": digest, "objects": objects}
    if output is Output.JSON or out is None:
        emit(output, document, lambda _: print(_text(objects), end=""), then=then)
    else:
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
