"""The record in the gateway's Knative Service, whose traffic is the pointer to a release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erless.deploy.knative.render.services import traffic_line
from erless.deploy.kubernetes.releases import (
    GatewayRecord,
    KeptRelease,
    TrafficTarget,
    history_note,
    read_history,
)

__all__ = ["NEXT", "read_record", "traffic_after", "with_traffic"]

Object = dict[str, Any]
NEXT = "next"  # the tag of a revision that gets ready before it gets traffic


def read_record(service: Object | None) -> GatewayRecord:
    """The record in a gateway's Service; fields that cannot be read count as absent."""
    if service is None:
        return GatewayRecord(None, (), ())
    lines = tuple(
        TrafficTarget(
            line.get("revisionName", ""), int(line.get("percent") or 0), line.get("tag", "")
        )
        for line in service.get("spec", {}).get("traffic", [])
    )
    return GatewayRecord(service, read_history(service), lines)


def traffic_after(
    before: GatewayRecord, revision: str, canary_percent: int
) -> tuple[TrafficTarget, ...]:
    """The share of the queries of each revision once `revision` is cut over to.

    A canary gets its share beside the revision that serves; where none serves it gets all.
    """
    others = [line for line in before.serving() if line.revision != revision]
    if not canary_percent or not others:
        return (TrafficTarget(revision, 100),)
    return (
        TrafficTarget(others[0].revision, 100 - canary_percent),
        TrafficTarget(revision, canary_percent, NEXT),
    )


def with_traffic(
    service: Object,
    traffic: Sequence[TrafficTarget],
    history: Sequence[KeptRelease],
    template: Object | None,
) -> Object:
    """The gateway's Service as applied, with this traffic and this record.

    Args:
        service: as rendered, or as it lives.
        traffic: the share of each revision.
        history: newest first.
        template: another template than the service's own, where it must not change.
    """
    meta = service["metadata"]
    notes = {
        key: value
        for key, value in meta.get("annotations", {}).items()
        if key.startswith("erless.dev/")
    }
    prefixes = ("app.kubernetes.io/", "erless.dev/", "networking.knative.dev/")
    return {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": {
                key: value for key, value in meta["labels"].items() if key.startswith(prefixes)
            },
            "annotations": notes | history_note(history),
        },
        "spec": {
            "template": template or service["spec"]["template"],
            "traffic": [traffic_line(line) for line in traffic],
        },
    }
