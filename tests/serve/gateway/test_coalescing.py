"""Queries that reach a gateway or a monolith in the same moment, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.serve.files import Source, open_gateway
from erless.specs.model import Pooling
from tests.releases import Made, random_query
from tests.serve.fake_shard import FakeShard
from tests.serve.functions import Fleet, Function, body_of
from tests.serve.gateway.test_shared_tables import DOT, model, pack, query

QUERIES = 6


@pytest.fixture(scope="module")
def reference(packed_release: Made) -> Monolith:
    return Monolith.load(packed_release.bundle)


@contextlib.contextmanager
def stopped(function: Function) -> Iterator[None]:
    """While all that is sent to it waits in its sockets."""
    function.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        function.process.send_signal(signal.SIGCONT)


def asked_at_once(
    function: Function, path: str, bodies: Sequence[bytes], **headers: str
) -> list[http.client.HTTPConnection]:
    """Clients that wait for the answers to `bodies`, which it finds in its sockets all at once."""
    clients = [http.client.HTTPConnection("127.0.0.1", function.port, timeout=60) for _ in bodies]
    for client in clients:  # connected, and answered once
        client.request("GET", "/v2/health/live")
        client.getresponse().read()
    with stopped(function):
        for client, body in zip(clients, bodies, strict=True):
            client.request("POST", path, body, headers)
        time.sleep(0.05)
    return clients


def answer_of(client: http.client.HTTPConnection) -> tuple[int, Any]:
    """The status and the document that it gets."""
    response = client.getresponse()
    return response.status, json.loads(response.read())


def at_once(function: Function, name: str, bodies: Sequence[bytes]) -> list[tuple[int, Any]]:
    """The answers to `bodies`, which it finds in its sockets all at once; its shards are awake."""
    path = f"/v2/models/{name}/infer"
    assert function.post(path, bodies[0])[0] == 200
    answers = []
    for client in asked_at_once(function, path, bodies):
        answers.append(answer_of(client))
        client.close()
    return answers


def expect(answers: Sequence[tuple[int, Any]], monolith: Monolith, queries: list[Query]) -> None:
    for (status, answer), asked in zip(answers, queries, strict=True):
        assert status == 200, answer
        found = np.array(answer["outputs"][0]["data"], np.float32)
        np.testing.assert_allclose(found, monolith.predict(asked), rtol=1e-5, atol=1e-7)


def test_one_fan_out_and_every_client_its_own_samples(fleet: Fleet, reference: Monolith) -> None:
    gateway, made = fleet.gateway, fleet.made
    queries = [random_query(made.model, 40 + n, 1 + 3 * n) for n in range(QUERIES)]
    before = [gateway.metric(f"erless_{name}_total") for name in ("coalesced", "fan_out")]
    answers = at_once(gateway, made.model.name, [body_of(each) for each in queries])
    expect(answers, reference, queries)
    coalesced, calls = (
        gateway.metric(f"erless_{name}_total") - old
        for name, old in zip(("coalesced", "fan_out"), before, strict=True)
    )
    assert coalesced >= 2
    assert calls < QUERIES * len(made.release.remote)


def test_a_query_that_does_not_fit_is_told_so_and_no_other(
    fleet: Fleet, reference: Monolith
) -> None:
    made = fleet.made
    queries = [random_query(made.model, 50 + n, 4) for n in range(QUERIES)]
    bodies = [body_of(each) for each in queries]
    wrong = queries[1]
    wrong.values[-1] = made.model.tables[-1].rows
    large = queries[3]
    large.dense[:] = np.finfo(np.float32).max
    short = Query(queries[5].dense, queries[5].values[:-1], queries[5].lengths)
    bodies[1], bodies[3], bodies[5] = body_of(wrong), body_of(large), body_of(short)
    answers = at_once(fleet.gateway, made.model.name, bodies)
    good = [0, 2, 4]
    expect([answers[n] for n in good], reference, [queries[n] for n in good])
    told = {n: answers[n] for n in (1, 3, 5)}
    assert {status for status, _ in told.values()} == {400}, told
    assert "table shop, sample 3" in told[1][1]["error"]
    assert "not finite" in told[3][1]["error"]
    assert "lengths sum to" in told[5][1]["error"]


def test_one_by_one_where_the_variable_says_so(fleet: Fleet, reference: Monolith) -> None:
    made = fleet.made
    gateway = fleet.start_gateway(ERLESS_COALESCED_QUERIES="1").ready()
    queries = [random_query(made.model, 60 + n, 4) for n in range(QUERIES)]
    expect(at_once(gateway, made.model.name, [body_of(e) for e in queries]), reference, queries)
    assert gateway.metric("erless_coalesced_total") == 0
    gateway.stop()


def test_the_tower_function_gets_them_joined(fleet_with_dense: Fleet, reference: Monolith) -> None:
    made = fleet_with_dense.made
    queries = [random_query(made.model, 70 + n, 2 + n) for n in range(QUERIES)]
    bodies = [body_of(each) for each in queries]
    expect(at_once(fleet_with_dense.gateway, made.model.name, bodies), reference, queries)


def without(made: Made, shard: str) -> Query:
    """A query that does not need `shard`."""
    number = [each.name for each in made.release.shards].index(shard)
    with open_gateway(Source(made.store), made.release.digest) as opened:
        for seed in range(1000):
            query = random_query(made.model, seed, 1, longest=2)
            if number not in opened.routing.bucketize(query.values, query.lengths).touched():
                return query
    raise AssertionError("every query needs it")


def test_nobody_waits_for_a_shard_that_another_wakes(fleet: Fleet, reference: Monolith) -> None:
    made = fleet.made
    queries = [without(made, "cold"), random_query(made.model, 90, 16), without(made, "cold")]
    path = f"/v2/models/{made.model.name}/infer"
    with FakeShard(fleet.shards["cold"].port) as asleep:
        asleep.behaviour = "hang"
        urls = {**fleet.urls, made.release.shard("cold").digest: asleep.url}
        gateway = fleet.start_gateway(urls).ready()
        deadline = {"erless-deadline-ms": "4000"}
        for _ in range(2):  # asleep, then awake, and hanging
            hangs = threading.Thread(target=gateway.post, args=(path, body_of(queries[1])))
            hangs.start()
            time.sleep(0.3)
            bodies = [body_of(each) for each in queries]
            clients = asked_at_once(gateway, path, bodies, **deadline)
            begin = time.monotonic()
            answers = [answer_of(client) for client in clients[::2]]
            assert time.monotonic() - begin < 3
            expect(answers, reference, queries[::2])
            assert answer_of(clients[1])[0] == 504
            for client in clients:
                client.close()
            asleep.behaviour = "good"
            hangs.join(60)
            asleep.behaviour = "hang"
        gateway.stop()


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.WEIGHTED_SUM])
def test_features_that_share_tables(tmp_path: Path, pooling: Pooling) -> None:
    spec = model(pooling, DOT)
    made, rng = pack(tmp_path, spec), np.random.default_rng(8)
    monolith = Monolith.load(made.bundle)
    queries = [query(spec, 1 + n, rng) for n in range(QUERIES)]
    bodies = [body_of(each) for each in queries]
    with Fleet(made, tmp_path) as fleet:
        expect(at_once(fleet.gateway, spec.name, bodies), monolith, queries)
        assert fleet.gateway.metric("erless_coalesced_total") >= 2


def test_the_monoliths_server_joins_them_too(
    packed_release: Made, reference: Monolith, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "erless.serve.process.monolith", "--port", "0"]
    bundle = ["--model", str(packed_release.bundle)]
    server = Function("monolith", tmp_path, [*command, *bundle]).ready()
    queries = [random_query(packed_release.model, 80 + n, 1 + n) for n in range(QUERIES)]
    queries[2].dense[:] = np.finfo(np.float32).max
    answers = at_once(server, packed_release.model.name, [body_of(each) for each in queries])
    status, told = answers.pop(2)
    assert status == 400
    assert "not finite" in told["error"]
    del queries[2]
    expect(answers, reference, queries)
    assert server.stop() == 0
