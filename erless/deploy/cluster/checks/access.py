"""What this user may do, and whether what the pods are told to use is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from erless.deploy.cluster.checks.examination import Examination, Finding
from erless.deploy.cluster.settings import SERVING
from erless.deploy.kubernetes.kinds import (
    ACCESS_REVIEW,
    CLAIM,
    CONFIG_MAP,
    CRD,
    DEPLOYMENT,
    EVENT,
    KSERVICE,
    LEASE,
    NAMESPACE,
    NODE,
    OWNED_KINDS,
    POD,
    POD_AUTOSCALER,
    REVISION,
    SECRET,
    Kind,
)
from erless.errors import DeployError

__all__ = ["check_permissions", "check_references"]


@dataclass(frozen=True, slots=True)
class Permission:
    """One thing to be allowed to do.

    part: of an object, such as a pod's log. namespace: empty for the whole cluster. only: the one
    object that it is asked for. optional: something is shown less well without it.
    """

    kind: Kind
    verb: str
    namespace: str
    part: str = ""
    only: str = ""
    optional: bool = False

    @property
    def resource(self) -> str:
        """In kubectl's words: plural, part and group."""
        what = "/".join(filter(None, (self.kind.plural, self.part)))
        return f"{what}.{self.kind.group}" if self.kind.group else what


def needed_permissions(examination: Examination) -> Iterator[Permission]:
    """Every verb that deploy, status, logs, destroy and doctor use."""
    space, options = examination.namespace, examination.settings.options
    optional = {EVENT.kind, "PodDisruptionBudget"}
    for kind in OWNED_KINDS:
        if kind.kind == "PodMonitor" and not options.pod_monitor:
            continue
        for verb in ("get", "list", "patch", "create", "delete"):
            yield Permission(kind, verb, space, optional=kind.kind in optional)
    for kind, verbs in (
        (KSERVICE, "watch"),
        (REVISION, "get list patch delete"),
        (POD, "list"),
        (EVENT, "list"),
        (POD_AUTOSCALER, "get list watch patch"),
        (LEASE, "update"),
        (CLAIM, "get"),
    ):
        for verb in verbs.split():
            yield Permission(kind, verb, space, optional=kind.kind in optional)
    yield Permission(POD, "get", space, part="log")
    yield Permission(POD, "get", space, part="proxy", optional=True)
    for verb in ("get", "patch"):
        yield Permission(NAMESPACE, verb, "", only=space)
    yield Permission(CRD, "get", "")
    yield Permission(CONFIG_MAP, "get", SERVING, optional=True)
    yield Permission(DEPLOYMENT, "list", SERVING, optional=True)
    yield Permission(NODE, "list", "", optional=True)


def check_permissions(examination: Examination) -> Iterator[Finding]:
    """Every missing permission, each with the command that grants it."""
    needed = list(needed_permissions(examination))
    refused = [permission for permission in needed if not _is_allowed(examination, permission)]
    if not refused:
        yield Finding("pass", "permissions", f"all {len(needed)} that erless needs")
    for permission in refused:
        where = f"in {permission.namespace}" if permission.namespace else "in the cluster"
        yield Finding(
            "warn" if permission.optional else "fail",
            "permission",
            f"you may not {permission.verb} {permission.resource} {where}",
            _grant(permission),
        )


def _is_allowed(examination: Examination, permission: Permission) -> bool:
    review = {
        "apiVersion": ACCESS_REVIEW.api,
        "kind": ACCESS_REVIEW.kind,
        "spec": {
            "resourceAttributes": {
                "namespace": permission.namespace,
                "group": permission.kind.group,
                "resource": permission.kind.plural,
                "subresource": permission.part,
                "verb": permission.verb,
                "name": permission.only,
            }
        },
    }
    answer = examination.api.call("POST", ACCESS_REVIEW.path(), review)
    return bool(answer.get("status", {}).get("allowed"))


def _grant(permission: Permission) -> str:
    """The command that makes a role with this permission."""
    what = f"--verb={permission.verb} --resource={permission.resource}"
    if not permission.namespace:
        return f"kubectl create clusterrole erless-deployer {what}"
    return f"kubectl -n {permission.namespace} create role erless-deployer {what}"


def check_references(examination: Examination) -> Iterator[Finding]:
    """Secrets and claims that the pods are told to use."""
    options, space = examination.settings.options, examination.namespace
    secrets = (*options.image_pull_secrets, options.credentials_secret, options.token_secret)
    claims = (options.cache_claim, options.store_volume.claim)
    for kind, wanted in ((SECRET, secrets), (CLAIM, claims)):
        for name in filter(None, wanted):
            what = f"{kind.kind} {name}"
            try:
                there = examination.api.get(kind, space, name) is not None
            except DeployError as error:
                yield Finding("warn", what, str(error))
                continue
            if there:
                yield Finding("pass", what, "there")
            else:
                mend = f"kubectl -n {space} create {kind.kind.lower()} …"
                yield Finding("fail", what, f"not in namespace {space}", mend)
