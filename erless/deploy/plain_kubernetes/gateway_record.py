"""The record in the gateway's Service, whose selector is the pointer to a release's gateway."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.pod_names import PLAIN
from erless.deploy.kubernetes.releases import (
    GatewayRecord,
    KeptRelease,
    TrafficTarget,
    history_note,
    read_history,
)
from erless.deploy.kubernetes.render.rendered import Object

__all__ = ["pointed_to", "read_record", "with_history"]


def read_record(service: Object | None) -> GatewayRecord:
    """The record in a gateway's Service; fields that cannot be read count as absent."""
    if service is None:
        return GatewayRecord(None, (), ())
    revision = service.get("spec", {}).get("selector", {}).get(PLAIN.revision, "")
    traffic = (TrafficTarget(revision, 100),) if revision else ()
    return GatewayRecord(service, read_history(service), traffic)


def with_history(service: Object, history: Sequence[KeptRelease]) -> Object:
    """The gateway's Service as rendered, with the record of the kept releases."""
    document = copy.deepcopy(service)
    document["metadata"]["annotations"] |= history_note(history)
    return document


def pointed_to(service: Object, release: str, revision: str) -> Object:
    """The gateway's Service as it lives, as it is applied to point to a kept release."""
    meta, spec = service["metadata"], service["spec"]
    labels = {
        key: value
        for key, value in meta["labels"].items()
        if key.startswith(("app.kubernetes.io/", "erless.dev/"))
    }
    notes = {
        key: value for key, value in meta["annotations"].items() if key.startswith("erless.dev/")
    }
    short = names.short(release)
    ports = [
        {key: port[key] for key in ("name", "port", "targetPort", "protocol")}
        for port in spec["ports"]
    ]
    return {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": labels | {names.RELEASE: short, names.DIGEST: short},
            "annotations": notes | {names.RELEASE: release},
        },
        "spec": {
            "type": spec["type"],
            "selector": {PLAIN.revision: revision},
            "ports": ports,
        },
    }
