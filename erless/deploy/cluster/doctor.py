"""Is this cluster ready for erless? One line per answer, each with what mends it.

The needs of a rendered release decide which questions are asked: a node selector in no pod asks for
no feature flag. Nothing is changed. A check that is not permitted says so, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from erless.deploy.cluster.checks import access, knative, nodes, plain, sources
from erless.deploy.cluster.checks.examination import Examination, Finding
from erless.deploy.kubernetes.api import Missing
from erless.deploy.kubernetes.kinds import CRD
from erless.errors import DeployError, ForbiddenError, UnreachableError

__all__ = ["CHECKS", "Examination", "Finding", "examine"]

Check = Callable[[Examination], Iterator[Finding]]
_FIRST: tuple[tuple[str, Check], ...] = (
    ("Kubernetes", knative.check_kubernetes),
    ("permissions", access.check_permissions),
)
_LAST: tuple[tuple[str, Check], ...] = (
    ("references", access.check_references),
    ("nodes", nodes.check_nodes),
    ("metrics", nodes.check_metrics),
    ("images", sources.check_images),
    ("store", sources.check_store),
)
CHECKS: tuple[tuple[str, Check], ...] = (
    *_FIRST,
    ("Knative", knative.check_knative),
    ("features", knative.check_features),
    ("scaling", knative.check_scaling),
    ("timeouts", knative.check_timeouts),
    ("ingress class", knative.check_ingress),
    ("domain", knative.check_domain),
    ("resize", nodes.check_resize),
    *_LAST,
)
PLAIN_CHECKS: tuple[tuple[str, Check], ...] = (
    *_FIRST,
    ("drain", plain.check_drain),
    ("scaling", plain.check_scaling),
    ("certificates", plain.check_certificates),
    *_LAST,
)


def examine(examination: Examination) -> Iterator[Finding]:
    """All findings, check by check; stops early where no cluster answers or Knative is absent."""
    api = examination.api
    try:
        version = api.call("GET", "/version", retry_s=3)
    except UnreachableError as error:
        mend = "check --kubeconfig, --context and the network"
        yield Finding("fail", "cluster", str(error), mend)
        return
    examination = replace(examination, version=version)
    if not examination.with_knative:
        yield from _each(PLAIN_CHECKS, examination)
        return
    try:
        installed = api.get(CRD, None, knative.KNATIVE_CRD) is not None
    except ForbiddenError:
        installed = True  # nobody may say; the permissions are listed below
    if not installed:
        yield from knative.check_kubernetes(examination)
        yield Finding("fail", "Knative", "Serving is not installed", "erless cluster init")
        return
    yield from _each(CHECKS, examination)


def _each(checks: tuple[tuple[str, Check], ...], examination: Examination) -> Iterator[Finding]:
    for name, check in checks:
        try:
            yield from check(examination)
        except (DeployError, Missing) as error:
            yield Finding("warn", name, f"not checked: {error}")
