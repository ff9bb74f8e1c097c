"""Alerts: what a decoy, a canary token or an alarm reports, and how often at most."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from erless.specs.artifact import FromElsewhere

__all__ = ["ALERT_MESSAGE", "PERIOD_S", "Alert", "AlertKind", "AlertLimiter", "utc_now"]

AlertKind = Literal["decoy", "canary", "scraping", "sequence"]
ALERT_MESSAGE = "alert"  # of the log line that carries one
PERIOD_S = 60.0  # of one kind, function and source, one alert in so long
MOST_SOURCES = 1024  # that are told apart
OTHERS = "others"


class Alert(FromElsewhere):
    """Somebody did what nobody should. It holds no token, secret, query string or body."""

    time: str = Field(description="ISO 8601, UTC, of the last touch that it counts")
    kind: AlertKind
    function: str = Field(description="what was touched, as `erless status` names it")
    digest: str = Field("", description="of what that function serves, or the release")
    source: str = Field("", description="the peer's address; empty where it is not known")
    process: str = Field("", description="the peer's process, where it is on this machine")
    forwarded: dict[str, str] = Field(
        default_factory=dict, description="headers by which the peer names somebody else: a claim"
    )
    asked: str = Field("", description="method and path, or that only a connection was made")
    size_bytes: int = Field(0, ge=0, description="of the request's body")
    count: int = Field(1, ge=1, description="touches since the last alert of this source")
    detail: str = ""


def utc_now() -> str:
    """The time of an alert.

    >>> len(utc_now())
    29
    """
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class AlertLimiter:
    """Lets one alert in `PERIOD_S` through for each kind, function and source; counts the others.

    Of a connection of which nothing was asked yet there is one, and one of the first request.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_s: dict[tuple[str, str, str, bool], float] = {}
        self._held: dict[tuple[str, str, str, bool], Alert] = {}

    def admit(self, alert: Alert) -> Alert | None:
        """The alert to raise now; None where its source had one less than `PERIOD_S` ago.

        An alert that was held back is counted in the next of its source, or in `due`.
        """
        now, key = self._clock(), (alert.kind, alert.function, alert.source, bool(alert.asked))
        if key not in self._last_s and len(self._last_s) >= MOST_SOURCES:
            self._forget(now)
            if len(self._last_s) >= MOST_SOURCES:
                key = (alert.kind, alert.function, OTHERS, bool(alert.asked))
                alert = alert.model_copy(update={"source": OTHERS})
        held = self._held.pop(key, None)
        if held is not None:
            alert = alert.model_copy(update={"count": held.count + alert.count})
        if now - self._last_s.get(key, -PERIOD_S) < PERIOD_S:
            self._held[key] = alert
            return None
        self._last_s[key] = now
        return alert

    def due(self) -> list[Alert]:
        """Alerts that were held back and whose source has been silent for the rest of the period.

        Ask at least once in `PERIOD_S`, so that no touch goes untold.
        """
        now = self._clock()
        ready = [key for key in self._held if now - self._last_s[key] >= PERIOD_S]
        for key in ready:
            self._last_s[key] = now
        return [self._held.pop(key) for key in ready]

    @property
    def holds(self) -> bool:
        """Whether `due` will have something to tell."""
        return bool(self._held)

    def _forget(self, now: float) -> None:
        """Forget sources that may be told of again and have nothing held back."""
        over = [key for key, last in self._last_s.items() if now - last >= PERIOD_S]
        for key in over:
            if key not in self._held:
                del self._last_s[key]
