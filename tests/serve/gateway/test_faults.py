"""A shard that dies, hangs, lies or sleeps: an error with the reason, never a wrong prediction."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.dlrm.reference import Monolith
from tests.releases import Made, random_query
from tests.serve.fake_shard import BROKEN, FakeShard
from tests.serve.functions import Fleet, Function, body_of, predict

INFER = "/v2/models/small/infer"
RESENDS = ("erless_resends_total", "erless_silent_connections_total")


@pytest.fixture(scope="module")
def reference(packed_release: Made) -> Monolith:
    return Monolith.load(packed_release.bundle)


@pytest.fixture(scope="module")
def faulty(fleet: Fleet) -> Iterator[FakeShard]:
    """A misbehaving stand-in for shard `hot`."""
    with FakeShard(fleet.shards["hot"].port) as fake:
        yield fake


def urls_with(fleet: Fleet, fake: FakeShard) -> dict[str, str]:
    return {**fleet.urls, fleet.made.release.shard("hot").digest: fake.url}


@pytest.fixture(scope="module")
def gateway(fleet: Fleet, faulty: FakeShard) -> Function:
    """A gateway that calls the stand-in."""
    return fleet.start_gateway(urls_with(fleet, faulty), ERLESS_MAX_IN_FLIGHT="2").ready()


@pytest.mark.parametrize("behaviour", BROKEN)
def test_a_broken_shard_is_an_error_and_the_next_query_is_right(
    gateway: Function, faulty: FakeShard, fleet: Fleet, reference: Monolith, behaviour: str
) -> None:
    query = random_query(fleet.made.model, 11, 16)
    faulty.behaviour = behaviour
    deadline = {"erless_deadline_ms": "700"} if behaviour == "hang" else {}
    begin = time.monotonic()
    status, answer = gateway.post(INFER, body_of(query), **deadline)
    assert status == BROKEN[behaviour], answer
    assert "hot" in answer["error"], answer
    assert time.monotonic() - begin < 20
    faulty.behaviour = "good"
    found = predict(gateway, fleet.made, query)
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)


def test_errors_are_counted_by_kind(gateway: Function, faulty: FakeShard, fleet: Fleet) -> None:
    body = body_of(random_query(fleet.made.model, 12, 4))
    for behaviour in ("another digest", "error 500"):
        faulty.behaviour = behaviour
        gateway.post(INFER, body)
    faulty.behaviour = "good"
    text = gateway.get("/metrics")[1].decode()
    assert 'erless_errors_total{kind="digest"}' in text
    assert 'erless_errors_total{kind="shard"}' in text


def test_a_connection_that_dies_before_an_answer_is_tried_once_more(
    gateway: Function, faulty: FakeShard, fleet: Fleet, reference: Monolith
) -> None:
    query = random_query(fleet.made.model, 13, 8)
    before = gateway.metric("erless_retries_total")
    faulty.close_once.set()
    found = predict(gateway, fleet.made, query)
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    assert gateway.metric("erless_retries_total") == before + 1


def test_a_proxy_that_reaches_no_container_is_asked_again(
    gateway: Function, faulty: FakeShard, fleet: Fleet, reference: Monolith
) -> None:
    """Knative's queue-proxy while the container behind it hangs (504), or starts again."""
    query = random_query(fleet.made.model, 16, 8)
    faulty.unreached = [502, 503, 504, 502]
    found = predict(gateway, fleet.made, query)
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    assert not faulty.unreached
    faulty.unreached = [502] * 1000
    status, told = gateway.post(INFER, body_of(query), erless_deadline_ms="500")
    assert status == 504
    assert "deadline" in told["error"]
    faulty.unreached = []


def test_too_many_in_flight(gateway: Function, faulty: FakeShard, fleet: Fleet) -> None:
    body = body_of(random_query(fleet.made.model, 14, 4))
    faulty.behaviour, faulty.hanging = "hang", 0
    answers: list[int] = []

    def ask() -> None:
        answers.append(gateway.post(INFER, body, erless_deadline_ms="6000")[0])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for each in threads:
        each.start()
    until = time.monotonic() + 30
    while faulty.hanging < 2 and time.monotonic() < until:
        time.sleep(0.01)
    status, answer = gateway.post(INFER, body)
    for each in threads:
        each.join(60)
    faulty.behaviour = "good"
    assert (status, answers) == (503, [504, 504])
    assert "2 queries are in flight" in answer["error"]


def test_hedging(fleet: Fleet, faulty: FakeShard, reference: Monolith) -> None:
    gateway = fleet.start_gateway(urls_with(fleet, faulty), ERLESS_HEDGE="1").ready()
    query = random_query(fleet.made.model, 15, 8)
    for _ in range(40):  # enough for a p95
        predict(gateway, fleet.made, query)
    faulty.slow_once.set()
    begin = time.monotonic()
    found = predict(gateway, fleet.made, query)
    took = time.monotonic() - begin
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    assert took < 4.5  # the slow call takes 5 s
    assert gateway.metric("erless_hedges_total") >= 1
    gateway.stop()


class Sleeper:
    """A shard at zero: its socket listens, nobody accepts."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = self.socket.getsockname()[1]
        digest = fleet.made.release.shard(name).digest
        self.urls = {**fleet.urls, digest: f"http://127.0.0.1:{port}"}

    def start(self) -> Function:
        return self.fleet.start_shard(self.name, ERLESS_LISTEN_FD=str(self.socket.fileno()))


@pytest.mark.parametrize("name", ["hot", "frozen"])
def test_a_cold_shard_is_waited_for(fleet: Fleet, reference: Monolith, name: str) -> None:
    sleeper = Sleeper(fleet, name)
    gateway = fleet.start_gateway(sleeper.urls).ready()
    query = random_query(fleet.made.model, 16, 16)
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(gateway.post(INFER, body_of(query))[1]))
    thread.start()
    time.sleep(0.3)
    shard = sleeper.start()
    thread.join(60)
    assert answers[0]["parameters"]["cold_start"] is True, answers
    found = np.array(answers[0]["outputs"][0]["data"])
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    assert gateway.metric("erless_cold_starts_total") == 1
    status, answer = gateway.post(INFER, body_of(query))
    assert (status, answer["parameters"]["cold_start"]) == (200, False)
    gateway.stop()
    shard.stop()
    sleeper.socket.close()


def test_default_vectors_stand_in_for_a_cold_shard(fleet: Fleet, reference: Monolith) -> None:
    sleeper = Sleeper(fleet, "cold")
    gateway = fleet.start_gateway(sleeper.urls, ERLESS_COLD_MISS="default").ready()
    query = random_query(fleet.made.model, 17, 16)
    right = reference.predict(query)
    for _ in range(2):  # the one that wakes it, and one that finds it being woken
        status, answer = gateway.post(INFER, body_of(query))
        assert status == 200
        assert answer["parameters"]["degraded"] is True
        assert np.isfinite(answer["outputs"][0]["data"]).all()
    shard = sleeper.start().ready()
    until = time.monotonic() + 60
    while answer["parameters"]["degraded"] and time.monotonic() < until:
        answer = gateway.post(INFER, body_of(query))[1]
    assert answer["parameters"]["degraded"] is False
    np.testing.assert_allclose(answer["outputs"][0]["data"], right, rtol=1e-5, atol=1e-7)
    assert gateway.metric("erless_degraded_total") >= 2
    gateway.stop()
    shard.stop()
    sleeper.socket.close()


def test_default_vectors_stop_where_their_budget_is_spent(fleet: Fleet) -> None:
    """A shard that never wakes: a few queries are answered without it, the others wait for it."""
    sleeper = Sleeper(fleet, "cold")
    gateway = fleet.start_gateway(
        sleeper.urls,
        ERLESS_COLD_MISS="default",
        ERLESS_DEGRADED_SHARE="0.01",
        ERLESS_DEADLINE_MS="300",
    ).ready()
    body = body_of(random_query(fleet.made.model, 17, 16))
    told = [gateway.post(INFER, body) for _ in range(24)]
    degraded = [answer for status, answer in told if status == 200]
    assert all(answer["parameters"]["degraded"] for answer in degraded)
    assert len(degraded) == 20
    assert [status for status, _ in told[-4:]] == [504] * 4
    assert gateway.metric("erless_degraded_total") == 20
    gateway.stop()
    sleeper.socket.close()


def test_killing_each_function_in_turn_under_load(
    packed_release: Made, reference: Monolith, tmp_path: Path
) -> None:
    """With a supervisor's sockets: whoever is killed is started again, and no answer is wrong."""
    with Fleet(packed_release, tmp_path) as fleet:
        sockets = {
            name: socket.create_server(("127.0.0.1", 0), backlog=128) for name in fleet.shards
        }
        front = socket.create_server(("127.0.0.1", 0), backlog=128)
        release = packed_release.release
        urls = {
            release.shard(name).digest: f"http://127.0.0.1:{each.getsockname()[1]}"
            for name, each in sockets.items()
        }
        shards = {
            name: fleet.start_shard(name, ERLESS_LISTEN_FD=str(each.fileno()))
            for name, each in sockets.items()
        }
        gateway = fleet.start_gateway(urls, ERLESS_LISTEN_FD=str(front.fileno()))
        load = Load(front.getsockname()[1], packed_release, reference)
        with load:
            for name, each in sockets.items():
                load.wait(20)
                shards[name].stop(signal.SIGKILL)
                shards[name] = fleet.start_shard(name, ERLESS_LISTEN_FD=str(each.fileno()))
            load.wait(20)
            gateway.stop(signal.SIGKILL)
            gateway = fleet.start_gateway(urls, ERLESS_LISTEN_FD=str(front.fileno()))
            load.wait(20)
        assert load.wrong == 0
        assert load.right >= 80
        assert set(load.errors) <= {502, 503, 504}, load.errors
        for each in (*sockets.values(), front):
            each.close()


def test_stopping_replicas_under_load_loses_nothing(
    packed_release: Made, reference: Monolith, tmp_path: Path
) -> None:
    with Fleet(packed_release, tmp_path) as fleet:
        back = socket.create_server(("127.0.0.1", 0), backlog=128)
        front = socket.create_server(("127.0.0.1", 0), backlog=128)
        digest = packed_release.release.shard("hot").digest
        urls = {**fleet.urls, digest: f"http://127.0.0.1:{back.getsockname()[1]}"}
        shared = {"ERLESS_LISTEN_FD": str(back.fileno())}
        shards = [fleet.start_shard("hot", **shared).ready() for _ in range(2)]
        gateways = [
            fleet.start_gateway(urls, ERLESS_LISTEN_FD=str(front.fileno())).ready()
            for _ in range(2)
        ]
        with Load(front.getsockname()[1], packed_release, reference) as load:
            load.wait(40)
            assert shards[0].stop() == 0
            load.wait(40)
            assert gateways[0].stop() == 0
            load.wait(40)
        assert (load.wrong, load.errors, load.broken) == (0, {}, 0)
        back.close()
        front.close()


class Load:
    """Clients that ask and compare until they are stopped."""

    def __init__(self, port: int, made: Made, reference: Monolith, clients: int = 4) -> None:
        self.port, self.right, self.wrong, self.broken = port, 0, 0, 0
        self.errors: dict[int, int] = {}
        self._queries = [random_query(made.model, seed, 8) for seed in range(8)]
        self._wanted = [reference.predict(query) for query in self._queries]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def _run(self, number: int) -> None:
        import http.client
        import json

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self._stop.is_set():
            number = (number + 1) % len(self._queries)
            try:
                connection.request("POST", INFER, body_of(self._queries[number]))
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (http.client.HTTPException, OSError):
                self.broken += 1
                connection.close()
                continue
            if response.status != 200:
                self.errors[response.status] = self.errors.get(response.status, 0) + 1
                continue
            found = np.array(answer["outputs"][0]["data"], np.float32)
            if np.allclose(found, self._wanted[number], rtol=1e-5, atol=1e-7):
                self.right += 1
            else:
                self.wrong += 1
        connection.close()

    def wait(self, more: int) -> None:
        """Until so many more answers were right."""
        until, wanted = time.monotonic() + 60, self.right + more
        while self.right < wanted:
            assert time.monotonic() < until, (self.right, self.errors, self.broken)
            time.sleep(0.01)

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(90)


def test_a_replica_that_hangs_costs_less_than_a_second(
    gateway: Function, faulty: FakeShard, fleet: Fleet, reference: Monolith
) -> None:
    """Another connection leads to another replica: here, to the same shard once it is well."""
    query = random_query(fleet.made.model, 17, 8)
    for _ in range(3):
        predict(gateway, fleet.made, query)
    before = [gateway.metric(name) for name in RESENDS]
    faulty.hang_once.set()
    found = predict(gateway, fleet.made, query)  # the deadline is 30 s, and so long it hangs
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    assert [gateway.metric(name) for name in RESENDS] == [before[0] + 1, before[1] + 1]


def test_half_an_answer_of_a_replica_that_hangs_is_not_added(
    gateway: Function, faulty: FakeShard, fleet: Fleet, reference: Monolith
) -> None:
    query = random_query(fleet.made.model, 21, 32)
    predict(gateway, fleet.made, query)
    before = gateway.metric("erless_resends_total")
    faulty.half_once.set()
    found = predict(gateway, fleet.made, query)
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    assert gateway.metric("erless_resends_total") == before + 1


def test_calls_to_a_shard_that_hangs_altogether_are_not_multiplied(
    gateway: Function, faulty: FakeShard, fleet: Fleet
) -> None:
    body = body_of(random_query(fleet.made.model, 18, 4))
    assert gateway.post(INFER, body)[0] == 200
    faulty.behaviour, faulty.hanging = "hang", 0
    status, answer = gateway.post(INFER, body, erless_deadline_ms="3000")
    faulty.behaviour = "good"
    assert status == 504
    assert f"shard hot (silent, asked {faulty.hanging} times)" in answer["error"]
    assert 4 <= faulty.hanging <= 5  # three times soon, and once after 2 s


def test_a_shard_that_cannot_start_is_told_at_once(
    gateway: Function, faulty: FakeShard, fleet: Fleet
) -> None:
    faulty.behaviour = "cannot start"
    status, answer = gateway.post(INFER, body_of(random_query(fleet.made.model, 19, 4)))
    faulty.behaviour = "good"
    assert (status, answer["error"]) == (503, "shard hot has failed: its file is damaged")


@pytest.mark.parametrize("how", ["it breaks", "it closes"])
def test_a_client_that_leaves_frees_its_place(
    gateway: Function, faulty: FakeShard, fleet: Fleet, how: str
) -> None:
    body = body_of(random_query(fleet.made.model, 20, 4))
    faulty.behaviour, faulty.hanging = "hang", 0
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(head % (INFER.encode(), len(body)) + body)
        until = time.monotonic() + 30
        while not faulty.hanging and time.monotonic() < until:
            time.sleep(0.01)
        if how == "it breaks":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until = time.monotonic() + 20  # the query's deadline is 30 s
    while gateway.metric("erless_in_flight") and time.monotonic() < until:
        time.sleep(0.05)
    faulty.behaviour = "good"
    assert gateway.metric("erless_in_flight") == 0
    assert 'erless_requests_total{code="499"}' in gateway.get("/metrics")[1].decode()
