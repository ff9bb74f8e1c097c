"""`erless cluster secret`: what functions show each other, for objects that kubectl applies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.cluster.cluster_options import (
    ClusterTargetOptions,
    ModelOption,
    cluster_settings_of,
    named_model,
)
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.deploy.kubernetes.deployment_secret import SecretChange
    from erless.deploy.kubernetes.names import Scope

__all__ = ["secret"]

OWNER_ONLY = 0o600


@verb
@grouped
def secret(
    cluster: ClusterTargetOptions,
    model: ModelOption = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Change it where it is there.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write a Secret of fresh values to this new file, which only its owner reads, and "
            "ask no cluster: for sealed secrets.",
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make the Secret that functions show each other, where kubectl applies what `render` wrote.

    `erless deploy` makes it by itself. Its values are never printed. Pods that wait for it start
    within about two minutes.

    Example: `erless cluster secret --namespace recs`
    """
    from erless.deploy.kubernetes.api import connect
    from erless.deploy.kubernetes.deployment_secret import ensure_secret
    from erless.deploy.kubernetes.kinds import NAMESPACE
    from erless.errors import ClusterError, OptionError

    config = named_model(cluster.config(), model)
    settings = cluster_settings_of(config, target=cluster.chosen(config))
    options, scope = settings.options, settings.scope
    namespace, name = scope.namespace, scope.secret
    if out is not None:
        if rotate:
            raise OptionError("--out makes fresh values; --rotate changes those of a cluster")
        _write(out, scope)
        document = {"name": name, "namespace": namespace, "file": str(out)}
        then = f"kubectl apply -f {out}, or seal it for GitOps"
        return emit(output, document, lambda console: console.print(f"wrote {out}"), then=then)
    api = connect(options.kubeconfig, options.context)
    if api.get(NAMESPACE, None, namespace) is None:
        raise ClusterError(
            f"namespace {namespace} is not there yet: `kubectl create namespace {namespace}`, or "
            "apply what `erless render` wrote, which has it"
        )
    change = ensure_secret(api, scope, rotate=rotate)
    document = {"name": name, "namespace": namespace, "change": change}
    return emit(
        output,
        document,
        lambda console: console.print(f"{name} in {namespace}: {_words(change, rotate)}"),
        then=f"erless status --target knative --namespace {namespace}",
    )


def _write(out: Path, scope: Scope) -> None:
    """A Secret as YAML, in a file that nobody else reads.

    Raises:
        ArtifactError: the file is there already; its values may be in use.
    """
    import yaml

    from erless.deploy.kubernetes.deployment_secret import fresh_secret
    from erless.errors import ArtifactError
    from erless.storage.atomic import create_file

    text = yaml.safe_dump(fresh_secret(scope), sort_keys=False)
    if not create_file(out, text.encode(), OWNER_ONLY):
        raise ArtifactError(f"{out} is there already; its values may be in use")


def _words(change: SecretChange, rotate: bool) -> str:
    from erless.deploy.kubernetes.deployment_secret import SETTLED_S

    if change == "kept" and rotate:
        return (
            f"kept; it changed less than {SETTLED_S:g} s ago, and not every pod may have seen that"
        )
    return "kept; --rotate changes it" if change == "kept" else change
