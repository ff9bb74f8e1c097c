"""Several workers behind one port: exact, counted together, replaced when they crash."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.reference import Monolith
from erless.serve.process.workers import Board
from tests.releases import Made, random_query
from tests.serve.functions import Fleet, Function, body_of, predict

QUERIES = 40


def workers_of(function: Function) -> set[int]:
    """Process ids of the workers that run now."""
    task = Path(f"/proc/{function.process.pid}/task/{function.process.pid}/children")
    return {int(each) for each in task.read_text().split()}


def wait_until(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def sparse(made: Made, folder: Path, workers: int) -> Function:
    """A shard's function with so many workers, just started."""
    return Function(
        "sparse",
        folder,
        ERLESS_STORE=made.store,
        ERLESS_SHARD=made.release.remote[0].digest,
        ERLESS_WORKERS=str(workers),
    )


def asked_until_ready(function: Function) -> list[int]:
    """What probes are answered from now on, until a hundred behind the first that said "ready"."""
    said: list[int] = []
    until = time.monotonic() + 60
    while said.count(200) < 100 and time.monotonic() < until:
        said.append(function.get("/v2/health/ready")[0])
    return said


@pytest.fixture(scope="module")
def fleet(packed_release: Made, tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("workers")
    with Fleet(packed_release, folder, ERLESS_WORKERS="3") as running:
        ready = lambda: sum(e["message"] == "ready" for e in running.gateway.events) >= 3  # noqa: E731
        wait_until(ready, "three workers get ready")
        yield running


def test_exact_and_counted_together(fleet: Fleet, packed_release: Made) -> None:
    before = fleet.gateway.metric("erless_requests_total")
    monolith = Monolith.load(packed_release.bundle)
    queries = [random_query(packed_release.model, seed, 1 + seed % 8) for seed in range(QUERIES)]
    answers: dict[int, np.ndarray] = {}

    def ask(begin: int) -> None:
        for number in range(begin, QUERIES, 4):
            answers[number] = predict(fleet.gateway, packed_release, queries[number])

    threads = [threading.Thread(target=ask, args=(begin,)) for begin in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for number, query in enumerate(queries):
        np.testing.assert_allclose(answers[number], monolith.predict(query), rtol=1e-5, atol=1e-7)
    counted = lambda: fleet.gateway.metric("erless_requests_total") - before == QUERIES  # noqa: E731
    wait_until(counted, "whichever worker is asked counts all queries")
    timed = lambda: fleet.gateway.metric("erless_request_seconds_count") >= QUERIES  # noqa: E731
    wait_until(timed, "and times them")  # another worker may be asked, which has to be told first


def test_a_crashed_worker_is_replaced(fleet: Fleet, packed_release: Made) -> None:
    workers = workers_of(fleet.gateway)
    assert len(workers) == 3
    counted = fleet.gateway.metric("erless_requests_total")
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: workers_of(fleet.gateway) - workers, "a worker replaces it")
    path = f"/v2/models/{packed_release.model.name}/infer"
    body = body_of(random_query(packed_release.model, 1, 4))
    for _ in range(100):  # while the new one loads, and after
        status, _ = fleet.gateway.post(path, body)
        assert status == 200
    wait_until(
        lambda: fleet.gateway.metric("erless_requests_total") >= counted + 10,
        "nothing that the crashed worker counted is lost",
    )


def test_ready_means_that_all_are(packed_release: Made, tmp_path: Path) -> None:
    """Once one connection is told so, no other meets a worker that still loads."""
    function = sparse(packed_release, tmp_path, 4)
    said = asked_until_ready(function)
    assert said[said.index(200) :] == [200] * 100
    assert set(said) <= {200, 503}
    assert function.stop() == 0


def test_a_worker_that_waits_for_another_answers(packed_release: Made, tmp_path: Path) -> None:
    """All that has loaded but one: until that has, who asks is told so."""
    function = sparse(packed_release, tmp_path, 2)
    wait_until(lambda: len(workers_of(function)) == 2, "both have begun")
    slow = max(workers_of(function))
    os.kill(slow, signal.SIGSTOP)
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert function.get("/v2/health/ready")[0] == 503
    finally:
        os.kill(slow, signal.SIGCONT)
    said = asked_until_ready(function)
    assert said[said.index(200) :] == [200] * 100
    assert function.stop() == 0


def test_sigterm_ends_all(packed_release: Made, tmp_path: Path) -> None:
    function = sparse(packed_release, tmp_path, 2).ready()
    workers = workers_of(function)
    assert function.stop() == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_sigterm_leaves_no_socket_that_nobody_serves(packed_release: Made, tmp_path: Path) -> None:
    """Who connects while the workers drain is refused at once, not reset at the end."""
    function = sparse(packed_release, tmp_path, 2).ready()
    address = ("127.0.0.1", function.port)
    with socket.create_connection(address, timeout=60) as client:
        client.sendall(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhe")
        function.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            with socket.socket() as late:
                return late.connect_ex(address) == errno.ECONNREFUSED

        wait_until(refused, "the port is closed")
        assert function.process.poll() is None  # it waits for us
        client.sendall(b"llo")
        assert b"connection: close" in client.recv(65536)
    assert function.process.wait(60) == 0


def test_a_worker_that_cannot_load_ends_all(packed_release: Made, tmp_path: Path) -> None:
    function = Function(
        "sparse",
        tmp_path,
        ERLESS_STORE=packed_release.store,
        ERLESS_SHARD="0" * 64,
        ERLESS_WORKERS="2",
    )
    assert function.process.wait(60) == 65


def test_no_workers_on_an_inherited_socket(tmp_path: Path) -> None:
    function = Function(
        "sparse",
        tmp_path,
        ERLESS_STORE="s",
        ERLESS_SHARD="0" * 64,
        ERLESS_WORKERS="2",
        ERLESS_LISTEN_FD="0",
    )
    assert function.process.wait(60) == 78
    assert "ERLESS_WORKERS is 2" in function.events[-1]["message"]


def test_the_board_keeps_slots_apart() -> None:
    board = Board(2)
    assert board.others(0) == []
    board.publish(0, {"n": 1})
    board.publish(1, {"n": 22})
    board.publish(1, {"n": 3})
    assert (board.read(0), board.others(0)) == ({"n": 1}, [{"n": 3}])
