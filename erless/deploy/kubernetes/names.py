"""Names, labels and annotations: how erless knows its own objects again.

A function is named by its content, so that the same shard in two releases is the same Service.
Everything else is named for its role. A label holds at most 63 characters: it has the first 16
digits of a digest, the annotation beside it all 64.

Several models may live in one namespace. Each but one is deployed under its model's name, which all
names end in and all labels carry; the objects of the one without a name end in nothing and carry
none. No two share an object but the namespace and the service account.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from erless.version import __version__

__all__ = [
    "CLUSTER_LOCAL",
    "DIGEST",
    "FULL_COPY",
    "FUNCTION",
    "GATEWAY",
    "HISTORY",
    "KIND",
    "MANAGED",
    "MODEL",
    "OWNED",
    "RELEASE",
    "SIZING",
    "TIER",
    "Scope",
    "function_labels",
    "metadata",
    "scope_of",
    "short",
]

GATEWAY = "erless-gateway"
MANAGER = "erless"
MANAGED = "app.kubernetes.io/managed-by"
OWNED = f"{MANAGED}={MANAGER}"  # the label selector of all that is ours
KIND = "app.kubernetes.io/component"  # gateway, sparse, dense
TIER = "erless.dev/tier"
DIGEST = "erless.dev/digest"
MODEL = "erless.dev/model"
RELEASE = "erless.dev/release"
HISTORY = "erless.dev/history"
FUNCTION = "erless.dev/function"
FULL_COPY = "erless.dev/full-copy-bytes"
DISK = "erless.dev/disk-bytes"  # files that a replica reads from its node's disk as it serves
SIZING = "erless.dev/sizing"  # of pods whose vCPU `erless autoscale` changes
SHORT = 16
CLUSTER_LOCAL = "svc.cluster.local"  # the domain that Knative gives every route by default


def short(digest: str) -> str:
    """As much of a digest as a name and a label carry."""
    return digest[:SHORT]


@dataclass(frozen=True, slots=True)
class Scope:
    """One model's objects in a namespace; `model` is the key of its name, or empty.

    >>> Scope("recs", "ads").shard("0123456789abcdef" * 4)
    'erless-s-0123456789abcdef-ads'
    >>> Scope("recs").shard("0123456789abcdef" * 4)
    'erless-s-0123456789abcdef'
    """

    namespace: str
    model: str = ""

    def name(self, base: str) -> str:
        """The name of what is `base` where there is one model."""
        return f"{base}-{self.model}" if self.model else base

    @property
    def gateway(self) -> str:
        """The gateway's Service."""
        return self.name(GATEWAY)

    @property
    def secret(self) -> str:
        """The Secret that the functions show each other."""
        return self.name("erless-secret")

    @property
    def lock(self) -> str:
        """The Lease that a deploy holds."""
        return self.name("erless-deploy")

    @property
    def leadership(self) -> str:
        """The Lease of the pod autoscaler that is at work; others wait for it."""
        return self.name("erless-autoscale")

    def shard(self, digest: str) -> str:
        """The Service of the shard with `digest`."""
        return self.name(f"erless-s-{short(digest)}")

    def dense(self, digest: str) -> str:
        """The Service of the dense tower with `digest`."""
        return self.name(f"erless-d-{short(digest)}")

    def revision(self, release: str, template: dict[str, Any]) -> str:
        """The gateway's revision for `release`; a changed `template` gets another name.

        Knative refuses a changed template under an old name, and keeps the revision otherwise.
        """
        text = json.dumps(template, sort_keys=True, separators=(",", ":"))
        mark = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.gateway}-{short(release)}-{mark}"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of all objects and pods, beside what says that they are erless's."""
        return {MODEL: self.model} if self.model else {}

    @property
    def selector(self) -> str:
        """The label selector of all objects and pods."""
        return f"{OWNED},{MODEL}={self.model}" if self.model else f"{OWNED},!{MODEL}"

    def matching(self, *more: dict[str, Any]) -> dict[str, Any]:
        """The selector of the pods in an object's own words, with further expressions."""
        absent = {"key": MODEL, "operator": "DoesNotExist"}
        expressions = [*([] if self.model else [absent]), *more]
        labels = {"matchLabels": {MANAGED: MANAGER} | self.labels}
        return labels | ({"matchExpressions": expressions} if expressions else {})


def scope_of(document: dict[str, Any]) -> Scope:
    """The scope that an object of ours belongs to."""
    meta = document["metadata"]
    return Scope(meta.get("namespace", ""), meta.get("labels", {}).get(MODEL, ""))


def function_labels(kind: str, tier: str, digest: str) -> dict[str, str]:
    """Labels of a function and of its pods; nothing here changes while its content does not."""
    return {
        "app.kubernetes.io/name": "erless",
        KIND: kind,
        MANAGED: MANAGER,
        TIER: tier,
        DIGEST: short(digest),
    }


def metadata(
    name: str,
    release: str,
    *,
    namespace: str | None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Metadata of one object of ours, with the release that it was applied for."""
    document: dict[str, Any] = {"name": name}
    if namespace is not None:
        document["namespace"] = namespace
    document["labels"] = {
        "app.kubernetes.io/name": "erless",
        "app.kubernetes.io/part-of": "erless",
        "app.kubernetes.io/version": __version__,
        MANAGED: MANAGER,
        RELEASE: short(release),
    } | (labels or {})
    document["annotations"] = {RELEASE: release} | (annotations or {})
    return document
