"""All objects of one release, as a target on Kubernetes renders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Object", "Rendered"]

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """All objects of one release.

    base: namespace, account, network policies. functions: shards and tower. gateway: the Service
    that queries go to. extras: budgets and the monitor. revision: the gateway's. candidate: what
    the revision is besides, where the Service does not make it. decoys: names of functions that
    nothing may wake.
    """

    base: tuple[Object, ...]
    functions: tuple[Object, ...]
    gateway: Object
    extras: tuple[Object, ...]
    revision: str
    candidate: tuple[Object, ...] = ()
    decoys: frozenset[str] = frozenset()

    @property
    def objects(self) -> tuple[Object, ...]:
        """In the order of applying."""
        return (*self.base, *self.functions, *self.candidate, self.gateway, *self.extras)

    def with_functions_of(self, others: Sequence[Rendered]) -> tuple[Object, ...]:
        """In the order of applying, with the functions that other releases have besides.

        A reconciler that removes what is no longer rendered, before the gateway has moved, would
        take them from the gateway that still serves.
        """
        known = {_identity(function) for function in self.functions}
        more = {
            _identity(function): function
            for other in others
            for function in (*other.functions, *other.candidate)
            if _identity(function) not in known
        }
        functions = (*self.functions, *(more[name] for name in sorted(more)))
        return (*self.base, *functions, *self.candidate, self.gateway, *self.extras)


def _identity(document: Object) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]
