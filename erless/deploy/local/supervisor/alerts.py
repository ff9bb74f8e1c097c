"""Where alerts of a deployment on this machine come together: its functions', and the supervisor's.

Functions send them over the unix datagram socket `run/alerts`. Each becomes a line of the log
`alerts`, which `erless alerts` reads, and goes to the webhook where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from erless.deploy.local.supervisor.folder.events import log_event
from erless.deploy.local.supervisor.folder.logs import log_file, rotate
from erless.deploy.local.supervisor.folder.state_folder import ALERTS, StateFolder
from erless.deploy.local.supervisor.spec import FunctionSpec, StoredState
from erless.deploy.scraping import ScrapingWatch
from erless.deploy.webhook import Webhook
from erless.errors import ConfigError, StorageError
from erless.specs.alerts import ALERT_MESSAGE, Alert, AlertLimiter, utc_now
from erless.specs.odds import WATCHED_TIERS, ShardOdds

__all__ = ["AlertDesk"]

MOST_BYTES = 64 << 10  # of one message


class AlertDesk:
    """Takes alerts and passes them on. For the event loop's thread.

    Args:
        folder: of the deployment.
        state: what is deployed now, and where alerts are sent.
    """

    def __init__(self, folder: StateFolder, state: Callable[[], StoredState]) -> None:
        self._folder, self._state = folder, state
        self._loop = asyncio.get_running_loop()
        self._limiter = AlertLimiter(self._loop.time)
        self._opened: socket.socket | None = None
        self._webhook: Webhook | None = None
        self._webhook_url: str | None = None
        self._watched: str | None = None  # the release whose shards are watched
        self._specs: dict[str, FunctionSpec] = {}
        self._scraping = ScrapingWatch({}, self._loop.time)

    async def run(self, gathers: Callable[[], Mapping[tuple[str, int], float]]) -> None:
        """Take alerts, and watch for scrapers, until this task is cancelled.

        Args:
            gathers: what each process of each function has counted, by the function's key.
        """
        try:
            while True:
                with contextlib.suppress(StorageError):  # a full disk: the next turn tries again
                    self.open()
                self.tick()
                self._look_for_scrapers(gathers())
                await asyncio.sleep(self._state().timing.poll_s)
        finally:
            self.close()

    def open(self) -> None:
        """Listen for functions' alerts, where nothing does yet, or somebody removed the socket.

        Raises:
            StorageError: the disk refused.
        """
        if self._opened is not None and self._folder.has_socket(ALERTS):
            return
        self.close()
        self._opened = self._folder.bind_datagram(ALERTS)
        self._loop.add_reader(self._opened.fileno(), self._receive)

    def close(self) -> None:
        """Listen no more."""
        if self._opened is not None:
            self._loop.remove_reader(self._opened.fileno())
            self._opened.close()
            self._opened = None
            self._folder.forget(ALERTS)

    def _send_to(self, url: str | None) -> None:
        if url == self._webhook_url:
            return
        self._webhook, self._webhook_url = None, url
        if url:
            try:
                self._webhook = Webhook(url, lambda why: log_event("webhook failed", reason=why))
            except ConfigError as error:
                log_event("no webhook", reason=str(error))

    def raise_alert(self, alert: Alert) -> None:
        """An alert of the supervisor's own: at most one a minute for each source."""
        admitted = self._limiter.admit(alert)
        if admitted is not None:
            self._record(admitted)

    def tick(self) -> None:
        """Tell what was held back, and keep the log short."""
        for alert in self._limiter.due():
            self._record(alert)
        rotate(log_file(self._folder.logs, ALERTS, 0))

    def _look_for_scrapers(self, gathers: Mapping[tuple[str, int], float]) -> None:
        """Compare the current release's shards with what its plan expects of them."""
        state = self._state()
        if state.current != self._watched:
            release = state.release(state.current)
            specs = {spec.key: spec for spec in release.functions} if release else {}
            cold = {key: spec for key, spec in specs.items() if spec.tier in WATCHED_TIERS}
            odds = {
                key: ShardOdds(spec.share, spec.rows_per_call)
                for key, spec in cold.items()
                if not spec.decoy and any(other.share for other in specs.values())
            }
            self._watched, self._specs = state.current, specs
            self._scraping = ScrapingWatch(odds, self._loop.time)
        ours = {place: count for place, count in gathers.items() if place[0] in self._specs}
        for key, reason in self._scraping.observe(ours).items():
            spec = self._specs[key]
            self.raise_alert(
                Alert(
                    time=utc_now(),
                    kind="scraping",
                    function=spec.name,
                    digest=spec.digest,
                    detail=reason,
                )
            )

    def _receive(self) -> None:
        opened = self._opened
        while opened is not None:
            try:
                text = opened.recv(MOST_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            try:
                alert = Alert.model_validate_json(text)
            except ValidationError:
                log_event("not an alert", size_bytes=len(text))
                continue
            self._record(alert.model_copy(update={"function": self._function_name(alert)}))

    def _function_name(self, alert: Alert) -> str:
        specs = (spec for release in self._state().releases for spec in release.functions)
        return next((spec.name for spec in specs if spec.digest == alert.digest), alert.function)

    def _record(self, alert: Alert) -> None:
        document = alert.model_dump(mode="json", exclude_defaults=True)
        line = json.dumps({"time": alert.time, "message": ALERT_MESSAGE, "alert": document})
        try:
            with log_file(self._folder.logs, ALERTS, 0).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:  # the supervisor's own log has it
            log_event("alert not kept", reason=str(error))
        self._send_to(self._state().webhook)
        if self._webhook is not None:
            self._webhook.send(alert)
