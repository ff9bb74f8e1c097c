"""Ask the API server, and the webhooks behind it, what they would make of our objects.

A server-side dry run is real admission without the write. It wants what an object refers to: the
namespace, and the service account (Knative tries a pod). Where a first deploy would only be about
to make those, the object is tried in a namespace and with an account that every cluster has.
"""

from __future__ import annotations

import copy

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import ACCOUNT, KSERVICE, NAMESPACE
from erless.deploy.kubernetes.render.rendered import Object

__all__ = ["DryRun"]

EVERYWHERE = "default"  # namespace and, in every namespace, service account


class DryRun:
    """Dry runs in `namespace` with service account `account`."""

    def __init__(self, api: Api, namespace: str, account: str) -> None:
        self._api = api
        self.namespace_there = api.get(NAMESPACE, None, namespace) is not None
        self._account_there = (
            self.namespace_there and api.get(ACCOUNT, namespace, account) is not None
        )

    def apply(self, document: Object) -> Object:
        """The object as the server would store it.

        Raises:
            DeployError: refused.
            ConflictError: somebody else owns a field.
        """
        tried = copy.deepcopy(document)
        if tried["kind"] != NAMESPACE.kind and not self.namespace_there:
            tried["metadata"]["namespace"] = EVERYWHERE
        if tried["apiVersion"] == KSERVICE.api and not self._account_there:
            tried["spec"]["template"]["spec"]["serviceAccountName"] = EVERYWHERE
        return self._api.apply(tried, dry_run=True)
