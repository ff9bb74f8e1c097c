"""What this user may do, and whether the Secrets and claims that the pods name exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from erless.deploy.cluster.checks.examination import Examination, Finding
from erless.deploy.cluster.settings import DEPLOYERS, SERVING
from erless.deploy.kubernetes.kinds import (
    ACCESS_REVIEW,
    CLAIM,
    CONFIG_MAP,
    CRD,
    DEPLOYMENT,
    EVENT,
    HTTP_SCALER,
    KNATIVE_KINDS,
    KSERVICE,
    LEASE,
    NAMESPACE,
    NODE,
    PLAIN_KINDS,
    POD,
    POD_AUTOSCALER,
    REVISION,
    SECURED,
    SERVICE,
    Kind,
)
from erless.errors import DeployError

__all__ = ["check_permissions", "check_references"]


# A role by itself grants nobody anything, so the mend is what binds the roles too.
GRANT = f"an administrator: erless cluster init; and you in the group {DEPLOYERS}"


@dataclass(frozen=True, slots=True)
class Permission:
    """One thing that the user has to be allowed to do.

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
        path = "/".join(filter(None, (self.kind.plural, self.part)))
        return f"{path}.{self.kind.group}" if self.kind.group else path


def needed_permissions(examination: Examination) -> Iterator[Permission]:
    """Every verb that deploy, status, logs, destroy and doctor use."""
    space, options = examination.namespace, examination.settings.options
    optional = {EVENT.kind, "PodDisruptionBudget"}
    kinds = KNATIVE_KINDS if examination.with_knative else PLAIN_KINDS
    for kind in (*kinds, LEASE):
        if kind.kind == "PodMonitor" and not options.pod_monitor:
            continue
        if kind == HTTP_SCALER and not examination.scales_by_http:
            continue
        if kind in SECURED and not examination.settings.mutual_tls:
            continue
        for verb in ("get", "list", "patch", "create", "delete"):
            yield Permission(kind, verb, space, optional=kind.kind in optional)
    targets_own = (
        (
            (KSERVICE, "watch"),
            (REVISION, "get list patch delete"),
            (POD, "list"),
            (POD_AUTOSCALER, "get list watch patch"),
        )
        if examination.with_knative
        else ((DEPLOYMENT, "watch"), (POD, "list delete"))
    )
    for kind, verbs in (*targets_own, (EVENT, "list"), (LEASE, "update"), (CLAIM, "get")):
        for verb in verbs.split():
            yield Permission(kind, verb, space, optional=kind.kind in optional)
    yield Permission(POD, "get", space, part="log")
    yield Permission(POD, "get", space, part="proxy", optional=True)
    for verb in ("get", "patch"):
        yield Permission(NAMESPACE, verb, space, only=space)
    yield Permission(CRD, "get", "")
    if examination.with_knative:
        yield Permission(CONFIG_MAP, "get", SERVING, optional=True)
        yield Permission(DEPLOYMENT, "list", SERVING, optional=True)
    yield Permission(NODE, "list", "", optional=True)


def check_permissions(examination: Examination) -> Iterator[Finding]:
    """Every missing permission, those to one kind of object in one line."""
    needed = list(needed_permissions(examination))
    refused = [permission for permission in needed if not _is_allowed(examination, permission)]
    ingress = list(_unseen_ingress(examination))
    if not refused and not ingress:
        yield Finding("pass", "permissions", f"all {len(needed)} that erless needs")
    verbs: dict[Permission, list[str]] = {}
    for permission in refused:
        verbs.setdefault(replace(permission, verb=""), []).append(permission.verb)
    for permission, missing in verbs.items():
        where = f"in {permission.namespace}" if permission.namespace else "in the cluster"
        yield Finding(
            "warn" if permission.optional else "fail",
            "permission",
            f"you may not {', '.join(missing)} {permission.resource} {where}",
            GRANT,
        )
    yield from ingress


def _unseen_ingress(examination: Examination) -> Iterator[Finding]:
    """Where the ingress' Services may not be listed: they tell how its gateways are reached."""
    if not examination.with_knative:
        return
    options = examination.settings.knative
    asked = [Permission(SERVICE, "list", space) for space in options.ingress_namespaces]
    if options.gateway_address or any(_is_allowed(examination, each) for each in asked):
        return
    yield Finding(
        "warn",
        "permission",
        f"you may not list services in {' or '.join(options.ingress_namespaces)}: a gateway whose "
        "name is in no DNS is not found",
        f"{GRANT}; or targets.knative.gateway_address: HOST:PORT",
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


def check_references(examination: Examination) -> Iterator[Finding]:
    """Whether each Secret and claim that the configuration names for the pods exists."""
    space = examination.namespace
    for kind, name in examination.settings.references():
        subject = f"{kind.kind} {name}"
        try:
            exists = examination.api.get(kind, space, name) is not None
        except DeployError as error:
            yield Finding("warn", subject, str(error))
            continue
        if exists:
            yield Finding("pass", subject, "there")
        else:
            mend = f"kubectl -n {space} create {kind.kind.lower()} …"
            yield Finding("fail", subject, f"not in namespace {space}", mend)
