"""Decoys and canary tokens on this machine: what touches them, and what does not."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.api.decoys import follow_with_decoys, with_decoys
from erless.deploy.desired_release import load_desired, standing_decoys
from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import FunctionState
from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.progress import Silent
from erless.serve.gateway.ids_in_order import LEAST_IDS
from erless.serve.protocol.client import QueryClient
from erless.specs.alerts import Alert
from erless.specs.config import (
    AlertConfig,
    Config,
    DecoysConfig,
    GatewayConfig,
    LocalConfig,
    TargetsConfig,
)
from erless.specs.decoys import load_decoys
from erless.storage.stores import open_store
from tests.conformance.harness import LocalHarness
from tests.releases import Made, default_model, make_release, random_query

WAIT_S = 60.0
ROWS = 3 * LEAST_IDS
ALERT_S = 1.0  # from a touch to its alert
VARIABLES = ("TOKEN_OF_CLIENTS", "TOKEN_OF_NOBODY")
TOKEN, CANARY = "the-token-of-clients", "a-token-that-lies-about"


class Site:
    """A deployment with two decoys, whose gateway wants a token."""

    def __init__(self, folder: Path, made: Made) -> None:
        self.made, self.folder = made, folder
        self.config = Config(
            gateway=GatewayConfig(token_env=VARIABLES[0], canary_token_env=VARIABLES[1]),
            decoys=DecoysConfig(count=2, alert=AlertConfig(ids_in_order=True)),
            targets=TargetsConfig(
                local=LocalConfig(state=folder / "state", window_s=2.0, grace_s=0.2)
            ),
        )
        self.target = LocalTarget(self.config, Timing(poll_s=0.2))
        self.desired = with_decoys(
            LocalHarness(folder).desired(made), self.config, self.target.name, None
        )
        self.url = self.target.deploy(self.desired, Silent(), WAIT_S).url

    @property
    def decoys(self) -> tuple[str, ...]:
        return tuple(decoy.shard.name for decoy in self.desired.decoys)

    def port(self, name: str) -> int:
        state = json.loads((self.folder / "state" / "state.json").read_text())
        specs = [spec for release in state["releases"] for spec in release["functions"]]
        key = next(spec["key"] for spec in specs if spec["name"] == name)
        return int(state["ports"][key])

    def alerts(self) -> list[Alert]:
        return list(self.target.alerts(1000, follow=False))

    def await_alert(self, wanted: Callable[[Alert], bool], seconds: float = WAIT_S) -> float:
        """Seconds until there is one."""
        began = time.monotonic()
        while not any(map(wanted, self.alerts())):
            assert time.monotonic() - began < seconds, self.alerts()
            time.sleep(0.01)
        return time.monotonic() - began

    def ask(
        self, port: int, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def state(self, name: str) -> FunctionState:
        functions = self.target.status().functions
        return next(function.state for function in functions if function.name == name)

    def until_asleep(self, name: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while self.state(name) is not FunctionState.AT_ZERO:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture(scope="module")
def site(packed_release: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    os.environ |= dict(zip(VARIABLES, (TOKEN, CANARY), strict=True))
    folder = tmp_path_factory.mktemp("decoys")
    try:
        yield Site(folder, make_release(folder / "made", model=default_model(ROWS)))
    finally:
        LocalHarness(folder).end()
        for variable in VARIABLES:
            del os.environ[variable]


def test_ordinary_work_touches_no_decoy(site: Site) -> None:
    expected = Monolith.load(site.made.bundle)
    with QueryClient(site.url, TOKEN) as client:
        for seed in range(20):
            query = random_query(site.made.model, seed, 8)
            np.testing.assert_allclose(
                client.predict(query).predictions, expected.predict(query), rtol=1e-5, atol=1e-7
            )
    again = with_decoys(site.desired, site.config, "local", None)
    assert again.decoys == site.desired.decoys  # drawn once
    assert site.target.deploy(again, Silent(), WAIT_S).current
    assert all(change.action == "keep" for change in site.target.diff(again))
    for name in site.decoys:
        assert site.state(name) is FunctionState.AT_ZERO
        assert site.target.processes()[name] == []
    assert site.alerts() == []


def test_a_connection_is_an_alert_before_the_decoy_is_awake(site: Site) -> None:
    name = site.decoys[0]
    with socket.create_connection(("127.0.0.1", site.port(name))):
        took = site.await_alert(lambda alert: alert.function == name)
        assert took < ALERT_S
    (alert,) = [alert for alert in site.alerts() if alert.function == name and not alert.asked]
    assert alert.kind == "decoy"
    assert alert.source == "127.0.0.1"
    assert str(os.getpid()) in alert.process


def test_a_decoy_answers_as_a_cold_shard_does_and_tells_what_it_was_asked(site: Site) -> None:
    decoy = site.desired.decoys[1]
    like = next(s for s in site.desired.release.shards if s.digest == decoy.like)
    body = json.dumps(
        {
            "inputs": [
                {"name": "values", "datatype": "INT64", "shape": [3], "data": [1, 2, 9_999_999]},
                {"name": "lengths", "datatype": "INT32", "shape": [3, 1], "data": [1, 1, 1]},
            ]
        }
    ).encode()
    requests: list[tuple[str, str, bytes]] = [
        ("GET", "/", b""),
        ("GET", "/v2", b""),
        ("GET", "/v2/health/ready", b""),
        ("GET", "/v2/models/shard", b""),
        ("GET", "/v2/models/other", b""),
        ("POST", "/v2/models/shard/infer", body),
        ("POST", "/v2/models/shard/infer", b"{"),
        ("GET", "/openapi.json", b""),
    ]

    def answers(name: str, digest: str) -> list[tuple[Any, ...]]:
        found = []
        for method, path, sent in requests:
            status, headers, text = site.ask(site.port(name), method, path, sent)
            for varying in ("date", "erless-up-ms"):
                headers.pop(varying, None)
            plain = text.replace(digest.encode(), b"DIGEST").replace(digest[:12].encode(), b"D")
            found.append((path, status, sorted(headers.items()), plain))
        return found

    assert answers(decoy.shard.name, decoy.shard.digest) == answers(like.name, like.digest)
    site.await_alert(lambda alert: alert.function == decoy.shard.name and alert.asked != "")
    asked = [a for a in site.alerts() if a.function == decoy.shard.name and a.asked]
    assert [alert.asked for alert in asked] == ["GET /"]  # at most one a minute, with a count


def test_a_canary_token_gets_the_answer_of_any_wrong_one_and_an_alert(site: Site) -> None:
    port = int(site.url.rpartition(":")[2])
    path = f"/v2/models/{site.made.model.name}?key={CANARY}"
    answers: list[tuple[int, dict[str, str], bytes]] = []
    for token in ("wrong", CANARY):
        bearer = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "192.0.2.7"}
        status, headers, text = site.ask(port, "GET", path, b"", **bearer)
        headers.pop("date")
        answers.append((status, headers, text))
    assert answers[0] == answers[1]
    assert answers[0][0] == 401
    site.await_alert(lambda alert: alert.kind == "canary", ALERT_S)
    (alert,) = [alert for alert in site.alerts() if alert.kind == "canary"]
    assert alert.function == "gateway"
    assert alert.forwarded == {"x-forwarded-for": "192.0.2.7"}
    written = b"".join(file.read_bytes() for file in (site.folder / "state").rglob("*.log"))
    assert CANARY.encode() not in written
    assert CANARY not in (site.folder / "state" / "state.json").read_text()
    metrics = site.ask(port, "GET", "/metrics", Authorization=f"Bearer {TOKEN}")[2].decode()
    assert 'erless_alerts_total{kind="canary"} 1' in metrics


def test_alerts_are_followed_as_they_come(site: Site) -> None:
    name = site.decoys[0]
    site.until_asleep(name)
    seen: list[Alert] = []

    def follow() -> None:
        for alert in site.target.alerts(0, follow=True):
            seen.append(alert)
            return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    time.sleep(0.3)
    site.ask(site.port(name), "GET", "/v2/models/shard", b"", **{"User-Agent": "probe/1"})
    thread.join(WAIT_S)
    assert [alert.asked for alert in seen] == ["GET /v2/models/shard"]
    assert seen[0].forwarded == {"user-agent": "probe/1"}


def test_a_client_that_takes_ids_in_order_is_told(site: Site) -> None:
    batch, tables = 64, len(site.made.model.tables)
    lengths = np.array([[1] * batch, *[[0] * batch] * (tables - 1)], np.int32)
    dense = np.zeros((batch, site.made.model.dense_features), np.float32)
    with QueryClient(site.url, TOKEN) as client:
        for begin in range(0, ROWS - batch, batch):
            client.predict(Query(dense, np.arange(begin, begin + batch), lengths))
    site.await_alert(lambda alert: alert.kind == "sequence")
    (alert,) = [alert for alert in site.alerts() if alert.kind == "sequence"]
    assert (alert.function, alert.source) == ("gateway", "127.0.0.1")
    assert "ids of table user in order" in alert.detail
    assert TOKEN not in alert.model_dump_json()


def test_another_release_gets_as_many_decoys_as_stand(site: Site) -> None:
    made = site.made
    other = make_release(site.folder / "other", model=made.model, seed=2, store=made.store)
    desired, config = load_desired(made.store, other.release.digest), Config()
    assert standing_decoys(desired, site.target) == len(site.decoys) == 2
    followed = follow_with_decoys(desired, config, site.target, pytest.fail)
    assert followed.decoys == load_decoys(open_store(made.store), other.release.digest)
    assert len(followed.decoys) == 2


def test_a_release_that_takes_over_by_itself_does_without_decoys_where_none_fit(
    site: Site,
) -> None:
    told: list[str] = []
    tight = Config(decoys=DecoysConfig(count=3, budget_mb=1))
    plan = site.desired.plan
    vast = [shard.model_copy(update={"memory_bytes": 10**9}) for shard in plan.shards]
    desired = replace(site.desired, plan=plan.model_copy(update={"shards": tuple(vast)}))
    assert follow_with_decoys(desired, tight, site.target, told.append) is desired
    assert "no decoy fits its budget" in told[0]


def test_taking_decoys_away_is_a_change(site: Site) -> None:
    without = with_decoys(site.desired, site.config, "local", 0)
    assert without.decoys == ()
    assert {change.what for change in site.target.diff(without) if change.action == "remove"} == {
        *site.decoys
    }
