"""The gateway's Service as the record of what is deployed.

Its traffic is the pointer to the current release, and an annotation beside it lists the kept ones.
One object, one write: the pointer and the record cannot disagree, whenever a deploy is stopped.
Each kept release's gateway revision still names, in its environment, the shards that it calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from erless.deploy.knative.render.services import TrafficTarget
from erless.deploy.kubernetes import names

__all__ = [
    "GatewayRecord",
    "KeptRelease",
    "called_services",
    "read_record",
    "traffic_after",
    "with_traffic",
]

Object = dict[str, Any]
NEXT = "next"  # the tag of a revision that gets ready before it gets traffic


@dataclass(frozen=True, slots=True)
class KeptRelease:
    """One deployed release: its gateway's revision, and when it was cut over (ISO 8601, UTC).

    model: the model's name; empty in records of older versions.
    """

    release: str
    revision: str
    at: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """What the gateway's Service says.

    service: as it lives, None where there is none. history: newest first. traffic: as applied.
    """

    service: Object | None
    history: tuple[KeptRelease, ...]
    traffic: tuple[TrafficTarget, ...]

    @property
    def revision(self) -> str:
        """The revision that gets most of the traffic; empty where there is none."""
        most = max(self.traffic, key=lambda line: line.percent, default=None)
        return most.revision if most and most.percent else ""

    @property
    def current(self) -> KeptRelease | None:
        """The current release, once it was cut over."""
        return next((kept for kept in self.history if kept.revision == self.revision), None)

    def serving(self) -> list[TrafficTarget]:
        """The lines that get traffic, without tags."""
        return [TrafficTarget(line.revision, line.percent) for line in self.traffic if line.percent]


def read_record(service: Object | None) -> GatewayRecord:
    """The record in a gateway's Service; fields that cannot be read count as absent."""
    if service is None:
        return GatewayRecord(None, (), ())
    text = service["metadata"].get("annotations", {}).get(names.HISTORY, "[]")
    try:
        history = tuple(KeptRelease(**entry) for entry in json.loads(text))
    except (ValueError, TypeError):
        history = ()
    lines = tuple(
        TrafficTarget(
            line.get("revisionName", ""), int(line.get("percent") or 0), line.get("tag", "")
        )
        for line in service.get("spec", {}).get("traffic", [])
    )
    return GatewayRecord(service, history, lines)


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
    record = json.dumps([asdict(kept) for kept in history], separators=(",", ":"))
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
            "annotations": notes | {names.HISTORY: record},
        },
        "spec": {
            "template": template or service["spec"]["template"],
            "traffic": [line.document() for line in traffic],
        },
    }


def called_services(revision: Object) -> set[str]:
    """Names of the Services that a gateway's revision calls."""
    containers = revision.get("spec", {}).get("containers", [])
    environment = {
        variable["name"]: variable.get("value", "")
        for container in containers
        for variable in container.get("env", [])
    }
    urls = list(json.loads(environment.get("ERLESS_SHARD_URLS") or "{}").values())
    urls.append(environment.get("ERLESS_DENSE_URL", ""))
    return {url.removeprefix("http://").partition(".")[0] for url in urls if url}
