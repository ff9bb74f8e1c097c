"""Which model of a namespace a verb is about, and where a release goes in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from erless.deploy.deployed_models import (
    DeployedModel,
    deployment_to_change,
    deployment_to_compare,
    deployment_to_destroy,
    find_deployment,
)
from erless.deploy.kubernetes.names import Scope
from erless.deploy.target import Desired

__all__ = ["ModelScopes"]


class ModelScopes:
    """The models of a namespace.

    Args:
        namespace: where.
        asked: the name of the model that verbs are about; empty: the only one.
        bound: its scope, where that is known.
        deployed: tells what is deployed in the namespace.
    """

    def __init__(
        self,
        namespace: str,
        asked: str,
        bound: Scope | None,
        deployed: Callable[[], Sequence[DeployedModel]],
    ) -> None:
        self._namespace, self._asked, self._bound = namespace, asked, bound
        self.deployed = deployed

    def current(self) -> Scope:
        """The deployment that verbs are about. Errors as `find_deployment`."""
        return self._bound or self._scope(find_deployment(self._asked, self.deployed()))

    def each(self) -> list[Scope]:
        """Every deployment; where a model is named, its own."""
        if self._bound is not None or self._asked:
            return [self.current()]
        return [self._scope(key) for key in sorted(each.key for each in self.deployed())]

    def receiving(self, desired: Desired, *, compare: bool = False) -> Scope:
        """The deployment that `desired` goes to, or where that is refused is compared with.

        Errors as `deployment_to_change`.
        """
        if self._bound is not None:
            return self._bound
        choose = deployment_to_compare if compare else deployment_to_change
        model, replaces = desired.release.model.name, desired.replace_model
        return self._scope(choose(self._asked, model, self.deployed(), replace=replaces))

    def doomed(self) -> Scope:
        """The deployment that is to be destroyed. Errors as `deployment_to_destroy`."""
        return self._bound or self._scope(deployment_to_destroy(self._asked, self.deployed()))

    def _scope(self, key: str) -> Scope:
        return Scope(self._namespace, key)
