"""Alerts, sent to an HTTPS webhook: retried a little, bounded, never in anybody's way."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from erless.errors import ConfigError
from erless.outbound import open_pool
from erless.specs.alerts import Alert

__all__ = ["Webhook", "webhook_url"]

WAITING = 64  # alerts that wait to be sent; what comes beyond them is dropped, and said
TIMEOUT_S = 5.0
PAUSES_S = (1.0, 4.0, 16.0)  # before the second, third and fourth attempt
OK = range(200, 300)
HOPELESS = range(400, 500)  # but for those below: another attempt would get the same answer
AGAIN = {408, 425, 429}


def webhook_url(variable: str | None) -> str | None:
    """The URL that an environment variable holds; None where none is named.

    Raises:
        ConfigError: the variable is not set, or holds no https:// URL.
    """
    if variable is None:
        return None
    url = os.environ.get(variable, "")
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        found = "no https:// URL" if url else "nothing"
        raise ConfigError(f"decoys.alert.webhook_env: the variable {variable} holds {found}")
    return url


class Webhook:
    """Posts each alert as JSON, in a thread of its own.

    Args:
        url: HTTPS; it may hold a secret, and is never logged.
        report: called, in that thread, with what became of an alert that was not taken.

    Raises:
        ConfigError: the environment's proxy or authorities cannot be used.
    """

    def __init__(self, url: str, report: Callable[[str], None]) -> None:
        self._url, self._host, self._report = url, urlsplit(url).hostname, report
        self._pool = open_pool(url, TIMEOUT_S)
        self._waiting: queue.Queue[Alert] = queue.Queue(WAITING)
        threading.Thread(target=self._run, name="webhook", daemon=True).start()

    def send(self, alert: Alert) -> None:
        """Send `alert` soon; returns at once."""
        try:
            self._waiting.put_nowait(alert)
        except queue.Full:
            self._report(f"{WAITING} alerts wait for {self._host}: one is not sent")

    def _run(self) -> None:
        while True:
            alert = self._waiting.get()
            reason = self._deliver(alert)
            if reason:
                self._report(f"the webhook at {self._host} did not take an alert: {reason}")

    def _deliver(self, alert: Alert) -> str:
        """Why it was not taken; empty where it was."""
        from urllib3.exceptions import HTTPError

        body, reason = alert.model_dump_json().encode(), ""
        for pause_s in (0.0, *PAUSES_S):
            time.sleep(pause_s)
            try:
                answer = self._pool.request(
                    "POST",
                    self._url,
                    body=body,
                    headers={"content-type": "application/json"},
                    retries=False,
                    redirect=False,
                )
            except HTTPError as error:
                reason = type(error).__name__  # its text has the URL
                continue
            if answer.status in OK:
                return ""
            reason = f"status {answer.status}"
            if answer.status in HOPELESS and answer.status not in AGAIN:
                break
        return reason
