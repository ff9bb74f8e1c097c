"""Names, labels and annotations: how erless knows its own objects again.

A function is named by its content, so that the same shard in two releases is the same Service.
Everything else is named for its role. A label holds at most 63 characters: it has the first 16
digits of a digest, the annotation beside it all 64.
"""

from __future__ import annotations

import hashlib
import json
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
    "OWNED",
    "RELEASE",
    "TIER",
    "dense_name",
    "function_labels",
    "metadata",
    "revision_name",
    "shard_service",
    "short",
]

GATEWAY = "erless-gateway"
MANAGER = "erless"
MANAGED = "app.kubernetes.io/managed-by"
OWNED = f"{MANAGED}={MANAGER}"  # the label selector of all that is ours
KIND = "app.kubernetes.io/component"  # gateway, sparse, dense
TIER = "erless.dev/tier"
DIGEST = "erless.dev/digest"
RELEASE = "erless.dev/release"
HISTORY = "erless.dev/history"
FUNCTION = "erless.dev/function"
FULL_COPY = "erless.dev/full-copy-bytes"
DISK = "erless.dev/disk-bytes"  # files that a replica reads from its node's disk as it serves
SHORT = 16
CLUSTER_LOCAL = "svc.cluster.local"  # the domain that Knative gives every route by default


def short(digest: str) -> str:
    """As much of a digest as a name and a label carry."""
    return digest[:SHORT]


def shard_service(digest: str) -> str:
    """The Knative Service of the shard with `digest`.

    >>> shard_service("0123456789abcdef" * 4)
    'erless-s-0123456789abcdef'
    """
    return f"erless-s-{short(digest)}"


def dense_name(digest: str) -> str:
    """The Knative Service of the dense tower with `digest`."""
    return f"erless-d-{short(digest)}"


def revision_name(release: str, template: dict[str, Any]) -> str:
    """The gateway's revision for `release`; a changed `template` gets another name.

    Knative refuses a changed template under an old name, and keeps the revision otherwise.
    """
    text = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return f"{GATEWAY}-{short(release)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


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
