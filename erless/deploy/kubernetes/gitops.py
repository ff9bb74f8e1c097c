"""Objects as a folder that a reconciler applies from a repository: kustomize's base, Helm's chart.

One object to a file, named for its kind and name, so that a release's difference is read file by
file. The same objects give the same bytes: nothing here knows the time. A chart takes no values:
names, addresses and memory come from the release and its plan, and belong together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.kinds import NAMESPACE
from erless.storage.atomic import os_errors, staged_directory

__all__ = ["MARKER", "helm_chart", "kustomize_base", "object_text", "write_folder"]

Object = Mapping[str, Any]
MARKER = ".erless-release"  # only a folder with this file is ever overwritten; it names the release
CHART = "erless"
# Helm creates the namespace that it is given by itself, and refuses to adopt one; the addresses of
# the functions name theirs, so the chart goes there or nowhere.
NAMESPACE_CHECK = """\
{{{{- if ne .Release.Namespace "{namespace}" }}}}
{{{{- fail "this chart was rendered for namespace {namespace}: pass --namespace {namespace}" }}}}
{{{{- end }}}}
"""


def kustomize_base(objects: Sequence[Object], release: str) -> dict[str, str]:
    """Files of a kustomize base, by path: its objects, and `kustomization.yaml`.

    Args:
        objects: in the order of applying.
        release: the digest that they are of.
    """
    files = {_file_name(document): object_text(document) for document in objects}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(files),
    }
    return files | {"kustomization.yaml": object_text(kustomization), MARKER: f"{release}\n"}


def helm_chart(objects: Sequence[Object], release: str, namespace: str) -> dict[str, str]:
    """Files of a Helm chart, by path: all objects but the namespace, which Helm makes by itself.

    Args:
        objects: in the order of applying.
        release: the digest that they are of: the chart's version carries it.
        namespace: that the objects are rendered for.
    """
    chart = {
        "apiVersion": "v2",
        "name": CHART,
        "description": f"Release {release[:12]} of an erless deployment",
        "type": "application",
        "version": f"1.0.0+{names.short(release)}",
        "appVersion": release,
    }
    templates = {
        f"templates/{_file_name(document)}": _escaped(object_text(document))
        for document in objects
        if document["kind"] != NAMESPACE.kind
    }
    check = {"templates/namespace.yaml": NAMESPACE_CHECK.format(namespace=namespace)}
    return {"Chart.yaml": object_text(chart)} | check | templates | {MARKER: f"{release}\n"}


def object_text(document: Object) -> str:
    """One object as YAML, its keys in the order that they were rendered in."""
    text: str = yaml.safe_dump(dict(document), sort_keys=False, width=1000)
    return text


def write_folder(files: Mapping[str, str], out: Path) -> None:
    """Write `files` as the folder `out`; one that was written so before is replaced whole.

    Args:
        files: text by path below `out`; `MARKER` among them.
        out: the folder.

    Raises:
        ArtifactError: `out` holds something else.
        StorageError: the disk refused.
    """
    with staged_directory(out, marker=MARKER, overwrite=True) as stage, os_errors(stage):
        for name, text in files.items():
            (stage / name).parent.mkdir(exist_ok=True)
            (stage / name).write_text(text, encoding="utf-8")


def _file_name(document: Object) -> str:
    return f"{document['kind'].lower()}-{document['metadata']['name']}.yaml"


def _escaped(text: str) -> str:
    """`text` such that Helm's templates give it back: alerts have braces of their own.

    >>> _escaped("summary: '{{ $value }} of queries'")
    'summary: \\'{{ "{{" }} $value }} of queries\\''
    """
    return text.replace("{{", '{{ "{{" }}')
