"""A function's alerts: a log line, a counter, and a message to whoever supervises it.

Nothing here runs for a request that is as it should be. An alert is made after the answer has been
written, so that the time that it takes cannot be seen from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import socket
from collections.abc import Callable

from erless.http.messages import Request
from erless.serve.logs import Log
from erless.serve.metrics import Metrics
from erless.serve.settings import Settings
from erless.specs.alerts import ALERT_MESSAGE, PERIOD_S, Alert, AlertKind, AlertLimiter, utc_now

__all__ = ["Alarm", "CanaryToken"]

FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via", b"user-agent")
MOST_CHARACTERS = 120  # of a header or path in an alert
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class Alarm:
    """Raises the alerts of one process, at most one a minute for each source.

    Args:
        settings: of the function.
        log: where each alert is a line.
        metrics: that count alerts.
        clock: seconds, monotonic.
    """

    def __init__(
        self, settings: Settings, log: Log, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._function, self._digest = settings.kind, settings.digest
        self._channel = settings.alerts_socket
        self._log, self._metrics = log, metrics
        self._limiter = AlertLimiter(clock)
        self._flush: asyncio.TimerHandle | None = None

    def touched(self, kind: AlertKind, request: Request, detail: str = "") -> None:
        """Raise an alert of `request`, once it has been answered: no answer takes longer for it."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self._raise, kind, request, len(request.body), detail)

    def _raise(self, kind: AlertKind, request: Request, size_bytes: int, detail: str) -> None:
        path, _, _ = request.path.decode("latin-1").partition("?")
        alert = Alert(
            time=utc_now(),
            kind=kind,
            function=self._function,
            digest=self._digest,
            source=request.peer,
            forwarded=_forwarded(request),
            asked=_cut(f"{request.method.decode('latin-1')} {path}"),
            size_bytes=size_bytes,
            detail=detail,
        )
        if alert.kind != "decoy":  # whose /metrics the intruder reads too
            self._metrics.alerted(alert.kind)
        admitted = self._limiter.admit(alert)
        if admitted is not None:
            self._tell(admitted)
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(PERIOD_S, self._tell_due)

    def _tell_due(self) -> None:
        self._flush = None
        for alert in self._limiter.due():
            self._tell(alert)
        if self._limiter.holds:
            self._flush = asyncio.get_running_loop().call_later(PERIOD_S, self._tell_due)

    def _tell(self, alert: Alert) -> None:
        document = alert.model_dump(mode="json", exclude_defaults=True)
        self._log.warning(ALERT_MESSAGE, alert=document)
        if self._channel is None:
            return
        with (
            contextlib.suppress(OSError),  # nobody listens, or does not keep up: the log has it
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened,
        ):
            opened.setblocking(False)
            opened.sendto(alert.model_dump_json().encode(), self._channel)


class CanaryToken:
    """A token that lies where only a thief finds it: it opens nothing, and its use is an alert.

    Args:
        digest: its SHA-256, hexadecimal.
        alarm: what is raised.
    """

    def __init__(self, digest: str, alarm: Alarm) -> None:
        self._digest, self._alarm = digest.encode(), alarm

    def look(self, request: Request) -> None:
        """Raise an alert if `request` bears the token, which no client's is: it will be refused.

        Every token is hashed and compared, in constant time.
        """
        _, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        shown = hashlib.sha256(token.strip()).hexdigest().encode()
        if hmac.compare_digest(shown, self._digest):
            self._alarm.touched("canary", request)


def _forwarded(request: Request) -> dict[str, str]:
    """Headers by which a proxy, or a liar, names whom it speaks for."""
    found = {name: request.headers.get(name) for name in FORWARDED}
    return {name.decode(): _cut(value.decode("latin-1")) for name, value in found.items() if value}


def _cut(text: str) -> str:
    return _UNPRINTABLE.sub("?", text[:MOST_CHARACTERS])
