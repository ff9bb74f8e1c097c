"""`erless cluster init`: Knative and the settings that erless needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.bars import bars
from erless.cli.cluster.cluster_options import ClusterOptions
from erless.cli.cluster.cluster_secret import secret
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.deploy.cluster.init import Applied
    from erless.deploy.cluster.manifests import ManifestFile
    from erless.deploy.kubernetes.api import Api

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Make a Kubernetes cluster ready for erless: `init`, `secret`.",
    epilog="Example: `erless cluster init`",
)


@dataclass(frozen=True)
class InstallOptions:
    """Versions to install, and the settings to give them."""

    knative: Annotated[
        list[str] | None,
        typer.Option(
            help="Knative's manifests: files or https URLs, may repeat [default: pinned release]."
        ),
    ] = None
    manifest: Annotated[
        list[str] | None,
        typer.Option(help="More to apply, such as a device plugin: files or https URLs."),
    ] = None
    ingress_class: Annotated[
        str, typer.Option(help="Of the networking layer in Knative's manifests.")
    ] = "kourier.ingress.networking.knative.dev"
    domain: Annotated[
        str | None,
        typer.Option(
            help="Domain of public gateways' names; Knative's default reaches them only within "
            "the cluster."
        ),
    ] = None
    host_path: Annotated[
        bool,
        typer.Option(
            "--host-path", help="Let pods mount folders of their node: for a store in a folder."
        ),
    ] = False


@app.command("init")
@verb
@grouped
def init(
    install: InstallOptions,
    cluster: ClusterOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask the server, change nothing.")
    ] = False,
    force_conflicts: Annotated[
        bool, typer.Option("--force-conflicts", help="Take settings that somebody else set.")
    ] = False,
    wait_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for Knative to serve.")
    ] = 600,
    output: OutputOption = Output.TEXT,
) -> None:
    """Install Knative Serving, set what erless needs of it, and let deployers deploy.

    A second run changes nothing; a run that was stopped is completed by the next.

    Example: `erless cluster init --infra infra/terraform/examples/minimal`
    """
    from erless.deploy.cluster.init import ClusterInit
    from erless.deploy.cluster.manifests import KNATIVE, read_manifest_file
    from erless.deploy.cluster.settings import access, settings
    from erless.deploy.kubernetes.api import connect

    options = cluster.config().targets.knative
    api = connect(options.kubeconfig, options.context)
    space = _checked_namespace(api, options.infra, cluster.namespace, options.namespace)
    paths = [*(install.knative or KNATIVE), *(install.manifest or ())]
    sources = [read_manifest_file(path) for path in paths]
    with bars() as progress:
        done = ClusterInit(
            api,
            sources,
            settings(install.ingress_class, domain=install.domain, host_path=install.host_path),
            access(
                space,
                ingress_namespaces=_present(api, sources, options.ingress_namespaces),
                resize=options.resize,
            ),
            dry_run=dry_run,
            force=force_conflicts,
            timeout_s=wait_timeout,
            progress=progress,
        ).run()
    document = {
        "cluster": api.host,
        "dry_run": dry_run,
        "sources": [{"name": source.name, "sha256": source.sha256} for source in sources],
        "objects": [asdict(applied) for applied in done],
    }
    then = "erless cluster init" if dry_run else "erless doctor"
    emit(output, document, lambda console: _draw(console, done, api.host, dry_run), then=then)


app.command("secret")(secret)


def _present(
    api: Api, sources: Iterable[ManifestFile], namespaces: Iterable[str]
) -> tuple[str, ...]:
    """Those of `namespaces` that the cluster has, or gets from the manifests."""
    from erless.deploy.kubernetes.kinds import NAMESPACE

    made = {
        document["metadata"]["name"]
        for source in sources
        for document in source.objects
        if document["kind"] == NAMESPACE.kind
    }
    return tuple(
        space
        for space in namespaces
        if space in made or api.get(NAMESPACE, None, space) is not None
    )


def _checked_namespace(api: Api, infra: Path | None, option: str | None, configured: str) -> str:
    """The functions' namespace; with `infra`, only on the cluster that Terraform made.

    Raises:
        KubeconfigError: kubeconfig leads to another cluster.
    """
    if infra is None:
        return option or configured
    from erless.deploy.infra import read_infra
    from erless.errors import KubeconfigError

    provisioned = read_infra(infra)
    cluster = provisioned.cluster
    if api.host.rstrip("/").lower() != cluster.endpoint.rstrip("/").lower():
        raise KubeconfigError(
            f"kubeconfig leads to {api.host}, but {infra} made the cluster {cluster.name} at "
            f"{cluster.endpoint}; run: aws eks update-kubeconfig --region {provisioned.region} "
            f"--name {cluster.name}"
        )
    return option or provisioned.identity.namespace


def _draw(console: Console, done: list[Applied], host: str, dry_run: bool) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("action", "kind", "namespace", "name"):
        table.add_column(heading)
    changed = [applied for applied in done if applied.action != "keep"]
    for applied in changed:
        table.add_row(applied.action, applied.kind, applied.namespace or "", applied.name)
    if changed:
        console.print(table)
    would = "would be changed" if dry_run else "changed"
    console.print(f"{len(changed)} of {len(done)} objects {would} on {host}")
