"""The kinds that erless applies, reads and removes: where the API serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from erless.errors import DeployError

__all__ = [
    "ACCESS_REVIEW",
    "ACCOUNT",
    "AUTOSCALER",
    "BUDGET",
    "CERTIFICATE",
    "CERTIFICATES",
    "CLAIM",
    "CONFIG_MAP",
    "CRD",
    "DEPLOYMENT",
    "EVENT",
    "HTTP_SCALER",
    "ISSUER",
    "JOB",
    "KNATIVE_KINDS",
    "KSERVICE",
    "LEASE",
    "NAMESPACE",
    "NODE",
    "PLAIN_KINDS",
    "POD",
    "POD_AUTOSCALER",
    "POD_METRICS",
    "REVISION",
    "SECRET",
    "SECURED",
    "SERVICE",
    "Kind",
    "kind_of",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of object; `plural` is its name in paths."""

    api: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group; empty for the core."""
        return self.api.rpartition("/")[0]

    def path(self, namespace: str | None = None, name: str = "", sub: str = "") -> str:
        """The path of the collection, or of one object, or of a part of it."""
        root = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        where = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(part for part in (f"{root}{where}/{self.plural}", name, sub) if part)


NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
EVENT = Kind("v1", "Event", "events")
SECRET = Kind("v1", "Secret", "secrets")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SERVICE = Kind("v1", "Service", "services")
JOB = Kind("batch/v1", "Job", "jobs")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
AUTOSCALER = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
CERTIFICATE = Kind("cert-manager.io/v1", "Certificate", "certificates")
CERTIFICATES = "certificates.cert-manager.io"  # the name of the definition
ISSUER = Kind("cert-manager.io/v1", "Issuer", "issuers")
HTTP_SCALER = Kind("http.keda.sh/v1alpha1", "HTTPScaledObject", "httpscaledobjects")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")
KSERVICE = Kind("serving.knative.dev/v1", "Service", "services")
REVISION = Kind("serving.knative.dev/v1", "Revision", "revisions")
POD_AUTOSCALER = Kind(
    "autoscaling.internal.knative.dev/v1alpha1", "PodAutoscaler", "podautoscalers"
)
POD_METRICS = Kind("metrics.k8s.io/v1beta1", "PodMetrics", "pods")
CRD = Kind(
    "apiextensions.k8s.io/v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
)
ACCESS_REVIEW = Kind(
    "authorization.k8s.io/v1",
    "SelfSubjectAccessReview",
    "selfsubjectaccessreviews",
    namespaced=False,
)

# what deploy applies, in the order of removing: functions first, what they need last
_BESIDE = (BUDGET, MONITOR, POLICY, ACCOUNT, SECRET)
KNATIVE_KINDS = (KSERVICE, *_BESIDE)
SECURED = (CERTIFICATE, ISSUER)  # with mutual TLS
# without Knative; certificates go before the Secrets that would be made anew
PLAIN_KINDS = (HTTP_SCALER, AUTOSCALER, DEPLOYMENT, SERVICE, *SECURED, *_BESIDE)
_APPLIED = {(kind.api, kind.kind): kind for kind in (NAMESPACE, *KNATIVE_KINDS, *PLAIN_KINDS, JOB)}


def kind_of(document: dict[str, Any]) -> Kind:
    """The kind of an object that erless rendered.

    Raises:
        DeployError: erless applies no such kind.
    """
    kind = _APPLIED.get((document["apiVersion"], document["kind"]))
    if kind is None:
        raise DeployError(f"{document['apiVersion']} {document['kind']} is none of erless's kinds")
    return kind
