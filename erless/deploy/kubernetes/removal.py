"""The end of a deployment: remove what is erless's, wait until it is gone, spare what is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import CLAIM, CONFIG_MAP, NAMESPACE, POD, SECRET, SERVICE, Kind
from erless.deploy.kubernetes.mirror import Deadline
from erless.deploy.kubernetes.render.rendered import Object
from erless.errors import DeployError, ForbiddenError

__all__ = ["Removal"]

POLL_S = 1.0
# what a control plane puts into every namespace by itself
PUBLISHED = {"kube-root-ca.crt", "openshift-service-ca.crt", "istio-ca-root-cert"}
PUBLISHED_TYPES = {"kubernetes.io/service-account-token", "kubernetes.io/dockercfg"}


class Removal:
    """Removes objects of a namespace.

    Args:
        api: the cluster.
        namespace: where.
        owned: our objects of a kind.
        deadline: for all of it.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        owned: Callable[[Kind], Sequence[Object]],
        deadline: Deadline,
    ) -> None:
        self._api, self._namespace, self._owned = api, namespace, owned
        self._deadline = deadline

    def remove(self, kind: Kind) -> int:
        """Remove all of a kind that is ours; how many there were."""
        objects = self._owned(kind)
        for document in objects:
            self._api.delete(kind, self._namespace, document["metadata"]["name"])
        return len(objects)

    def wait_gone(self, kinds: Iterable[Kind]) -> None:
        """Wait until none of the kinds is left. Raises DeployError where the time is over."""
        for kind in kinds:
            while remaining := self._owned(kind):
                self._pause(f"{kind.kind} {remaining[0]['metadata']['name']}")

    def remove_namespace(self) -> None:
        """Remove the namespace, unless somebody else put something into it."""
        if any(self._is_foreign(kind) for kind in (POD, SERVICE, SECRET, CONFIG_MAP, CLAIM)):
            return  # it would go away with it
        try:
            self._api.delete(NAMESPACE, None, self._namespace)
        except ForbiddenError:
            return  # an administrator deployed first: it stays, and is empty
        while self._api.get(NAMESPACE, None, self._namespace) is not None:
            self._pause(f"namespace {self._namespace}")

    def _is_foreign(self, kind: Kind) -> bool:
        """Whether an object of the kind is neither the control plane's nor made for another."""
        return any(
            document["metadata"]["name"] not in PUBLISHED
            and document.get("type") not in PUBLISHED_TYPES
            and not document["metadata"].get("ownerReferences")
            for document in self._api.list(kind, self._namespace)[0]
        )

    def _pause(self, subject: str) -> None:
        deadline = self._deadline
        if deadline.left_s <= 0:
            raise DeployError(f"{subject} is still there after {deadline.seconds:g} s")
        time.sleep(min(POLL_S, deadline.left_s))
