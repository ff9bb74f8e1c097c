"""The names by which a target's pods say what they belong to, and where they listen."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KNATIVE", "PLAIN", "PodNames"]


@dataclass(frozen=True, slots=True)
class PodNames:
    """Names on pods.

    service: key of the label with a function's name in the cluster. revision: with the gateway's
    revision. port: of the container's port; empty where it is named by the protocol.
    """

    service: str
    revision: str
    port: str


KNATIVE = PodNames("serving.knative.dev/service", "serving.knative.dev/revision", "user-port")
PLAIN = PodNames("erless.dev/service", "erless.dev/revision", "")
