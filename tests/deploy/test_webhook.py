"""Alerts that are sent away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from erless.deploy import webhook
from erless.deploy.webhook import Webhook, webhook_url
from erless.errors import ConfigError
from erless.specs.alerts import Alert
from tests.authority import private_authority

ALERT = Alert(time="now", kind="decoy", function="cold-1", source="10.0.0.1")


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses it is told, in turn."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses, self.bodies = statuses, list[bytes]()
        self.taken = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805
                size = int(handler.headers["content-length"])
                self.bodies.append(handler.rfile.read(size))
                status = self.statuses.pop(0)
                handler.send_response(status)
                handler.send_header("content-length", "0")
                handler.end_headers()
                if not self.statuses:
                    self.taken.set()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    authority = private_authority(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(webhook, "PAUSES_S", (0.01, 0.01))
    server = Receiver([])
    server.socket = authority.context().wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_alert_is_tried_again_and_given_up_with_a_word(receiver: Receiver) -> None:
    reports: list[str] = []
    said = threading.Event()

    def report(why: str) -> None:
        reports.append(why)
        said.set()

    hook = Webhook(f"https://127.0.0.1:{receiver.server_port}/a-secret", report)
    receiver.statuses[:] = [503, 200]
    hook.send(ALERT)
    assert receiver.taken.wait(10)
    assert [json.loads(body)["function"] for body in receiver.bodies] == ["cold-1"] * 2
    assert reports == []
    receiver.statuses[:] = [404, 500]  # a second attempt would get the 500
    hook.send(ALERT)
    assert said.wait(10)
    assert len(receiver.bodies) == 3
    assert reports == ["the webhook at 127.0.0.1 did not take an alert: status 404"]


def test_only_https_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert webhook_url(None) is None
    monkeypatch.setenv("HOOK", "http://example.com/secret")
    with pytest.raises(ConfigError, match="the variable HOOK holds no https:// URL") as refused:
        webhook_url("HOOK")
    assert "secret" not in str(refused.value)
    monkeypatch.delenv("HOOK")
    with pytest.raises(ConfigError, match="holds nothing"):
        webhook_url("HOOK")
