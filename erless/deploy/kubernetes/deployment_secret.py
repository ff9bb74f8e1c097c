"""The secret that the functions of a model show each other, so that nobody else reads rows.

It lies in a Kubernetes Secret that every pod mounts as a file, one value a line: gateways send the
first, functions accept all. It rotates with a deploy that makes a new gateway. A running pod sees
a changed Secret only once its kubelet has looked again, within about two minutes, so the value
that a new gateway sends has been in the file since the deploy before: each rotation promotes the
second value to the first, adds a fresh second one, and keeps the former first ones for gateways
that still run.
"""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime
from typing import Any, Literal

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import SECRET
from erless.deploy.kubernetes.render.pods import SECRET_KEY

__all__ = ["SETTLED_S", "SecretChange", "ensure_secret", "fresh_secret", "rotated"]

ROTATED_AT = "erless.dev/rotated-at"
SETTLED_S = 600.0  # after this long every kubelet has shown the last change to its pods
FORMER = 2  # former first values that stay accepted
VALUE_BYTES = 32
SecretChange = Literal["made", "rotated", "kept"]


def ensure_secret(
    api: Api, scope: names.Scope, release: str = "", *, rotate: bool = False
) -> SecretChange:
    """Make the secret where it is absent; with `rotate`, change it.

    Args:
        api: the cluster.
        scope: of the functions.
        release: that is being deployed, where one is.
        rotate: change it, unless its last change is younger than `SETTLED_S`.
    """
    live = api.get(SECRET, scope.namespace, scope.secret)
    values = _values(live)
    if values and not (rotate and _age_s(live) > SETTLED_S):
        return "kept"
    api.apply(_document(scope, release, rotated(values)))
    return "rotated" if values else "made"


def fresh_secret(scope: names.Scope) -> dict[str, Any]:
    """A Secret with values of its own, for whoever brings it to the cluster sealed."""
    return _document(scope, "", rotated([]))


def _document(scope: names.Scope, release: str, values: list[str]) -> dict[str, Any]:
    text = "".join(f"{value}\n" for value in values)
    metadata = names.metadata(
        scope.secret,
        release,
        namespace=scope.namespace,
        labels=scope.labels,
        annotations={ROTATED_AT: datetime.now(UTC).isoformat(timespec="seconds")},
    )
    return {
        "apiVersion": SECRET.api,
        "kind": SECRET.kind,
        "metadata": metadata,
        "type": "Opaque",
        "data": {SECRET_KEY: base64.b64encode(text.encode()).decode()},
    }


def rotated(values: list[str]) -> list[str]:
    """The values after one rotation: the next becomes the first, and a fresh one the next.

    >>> [value if len(value) < 9 else "fresh" for value in rotated(["now", "next", "old", "older"])]
    ['next', 'fresh', 'now', 'old']
    """
    if not values:
        return [secrets.token_urlsafe(VALUE_BYTES) for _ in range(2)]
    first, *others = values
    following = others[:1] or [secrets.token_urlsafe(VALUE_BYTES)]
    return [*following, secrets.token_urlsafe(VALUE_BYTES), *[first, *others[1:]][:FORMER]]


def _values(live: dict[str, Any] | None) -> list[str]:
    """The values of a Secret; none where it is absent or holds something else."""
    text = (live or {}).get("data", {}).get(SECRET_KEY, "")
    try:
        return base64.b64decode(text).decode("ascii").split()
    except ValueError:
        return []


def _age_s(live: dict[str, Any] | None) -> float:
    """Seconds since the last rotation; a time that cannot be read counts as long ago."""
    notes = (live or {}).get("metadata", {}).get("annotations", {})
    try:
        since = datetime.fromisoformat(notes[ROTATED_AT])
        age_s = (datetime.now(UTC) - since).total_seconds()
    except (KeyError, ValueError, TypeError):
        return float("inf")
    return age_s if age_s >= 0 else float("inf")
