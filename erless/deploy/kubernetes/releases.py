"""The gateway's Service as the record of what is deployed, whatever kind of Service it is.

It says where queries go, and an annotation beside that lists the kept releases. One object, one
write: the pointer and the record cannot disagree, whenever a deploy is stopped. Each kept release's
gateway still names, in its environment, the functions that it calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.render.rendered import Rendered
from erless.deploy.target import Desired, place_to_restore

__all__ = [
    "GatewayRecord",
    "KeptRelease",
    "Rollout",
    "TrafficTarget",
    "called_services",
    "history_after",
    "history_note",
    "read_history",
    "release_to_restore",
]

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrafficTarget:
    """The share of the queries that one revision of the gateway gets.

    tag: under which it is reachable at 0 % already, where the target has such.
    """

    revision: str
    percent: int
    tag: str = ""


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

    def keeps(self, name: str) -> bool:
        """Whether the Service with this name is the one that has the record."""
        return self.service is not None and bool(self.service["metadata"]["name"] == name)

    def serving(self) -> list[TrafficTarget]:
        """The lines that get traffic, without tags."""
        return [TrafficTarget(line.revision, line.percent) for line in self.traffic if line.percent]


class Rollout(Protocol):
    """One change of the release that is deployed in a scope."""

    def deploy(self, desired: Desired, rendered: Rendered) -> None:
        """All steps to `rendered`, the objects of `desired`."""

    def rollback(self, release: str | None) -> None:
        """Move the queries to a kept release. Raises NotDeployedError."""


def read_history(service: Object) -> tuple[KeptRelease, ...]:
    """The kept releases that a gateway's Service lists; none where that cannot be read."""
    text = service["metadata"].get("annotations", {}).get(names.HISTORY, "[]")
    try:
        return tuple(KeptRelease(**entry) for entry in json.loads(text))
    except (ValueError, TypeError):
        return ()


def history_note(history: Sequence[KeptRelease]) -> dict[str, str]:
    """The annotation that lists the kept releases."""
    text = json.dumps([asdict(kept) for kept in history], separators=(",", ":"))
    return {names.HISTORY: text}


def history_after(
    before: GatewayRecord, release: str, revision: str, model: str, keep: int
) -> list[KeptRelease]:
    """The kept releases once all queries go to `revision`; those beyond `keep` are left out."""
    if before.current is not None and before.current.revision == revision:
        return list(before.history)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    others = [kept for kept in before.history if kept.release != release]
    return [KeptRelease(release, revision, now, model), *others][:keep]


def release_to_restore(record: GatewayRecord, prefix: str | None) -> KeptRelease:
    """The release to go back to. Errors as `place_to_restore`."""
    history, current = record.history, record.current
    place = None if current is None else history.index(current)
    return history[place_to_restore([kept.release for kept in history], place, prefix)]


def called_services(pod: Object) -> set[str]:
    """Names of the Services that a gateway calls, by the spec of its pods."""
    environment = {
        variable["name"]: variable.get("value", "")
        for container in pod.get("containers", [])
        for variable in container.get("env", [])
    }
    urls = list(json.loads(environment.get("ERLESS_SHARD_URLS") or "{}").values())
    urls.append(environment.get("ERLESS_DENSE_URL", ""))
    return {url.partition("://")[2].partition(".")[0] for url in urls if url}
