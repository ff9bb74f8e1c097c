"""How functions start, say what is wrong, and stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.releases import Made, random_query
from tests.serve.functions import Fleet, Function, body_of

DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("kind", "env", "names"),
    [
        ("sparse", {}, "ERLESS_STORE is absent"),
        ("sparse", {"ERLESS_STORE": "s"}, "ERLESS_SHARD is absent"),
        ("gateway", {"ERLESS_STORE": "s", "ERLESS_RELEASE": "abc"}, "ERLESS_RELEASE is 'abc'"),
        ("gateway", {"ERLESS_STORE": "s", "ERLESS_RELEASE": DIGEST}, "ERLESS_SHARD_URLS is absent"),
        (
            "gateway",
            {
                "ERLESS_STORE": "s",
                "ERLESS_RELEASE": DIGEST,
                "ERLESS_SHARD_URLS": '{"x": "http://a:1"}',
            },
            "'x' is not a digest",
        ),
        (
            "gateway",
            {
                "ERLESS_STORE": "s",
                "ERLESS_RELEASE": DIGEST,
                "ERLESS_SHARD_URLS": "{}",
                "ERLESS_COLD_MISS": "no",
            },
            "wait or default",
        ),
        (
            "dense",
            {"ERLESS_STORE": "s", "ERLESS_RELEASE": DIGEST, "ERLESS_DEVICE": "tpu"},
            "cpu or cuda",
        ),
        (
            "dense",
            {"ERLESS_STORE": "s", "ERLESS_RELEASE": DIGEST, "ERLESS_DRAIN_S": "-1"},
            "ERLESS_DRAIN_S is '-1': expected a number from 0",
        ),
        (
            "sparse",
            {"ERLESS_STORE": "s", "ERLESS_SHARD": DIGEST, "ERLESS_LISTEN_FD": "77"},
            "ERLESS_LISTEN_FD is 77",
        ),
    ],
)
def test_a_wrong_variable_is_named(
    tmp_path: Path, kind: str, env: dict[str, str], names: str
) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ERLESS_")}
    done = subprocess.run(
        [sys.executable, "-m", "erless.serve", kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**inherited, "PORT": "0", **env},
    )
    lines = done.stderr.splitlines()
    event = json.loads(lines[-1])
    assert done.returncode == 78, done.stderr
    assert names in event["message"]
    assert (event["level"], event["exit_code"]) == ("error", 78)


def test_a_missing_or_damaged_artifact_is_named(packed_release: Made, tmp_path: Path) -> None:
    shard = Function("sparse", tmp_path, ERLESS_STORE=packed_release.store, ERLESS_SHARD=DIGEST)
    assert shard.process.wait(60) == 65
    assert "000000" in shard.events[-1]["message"]
    nowhere = Function("sparse", tmp_path, ERLESS_STORE=str(tmp_path), ERLESS_SHARD=DIGEST)
    assert nowhere.process.wait(60) == 65
    assert "not a release store" in nowhere.events[-1]["message"]
    gateway = Function(
        "gateway",
        tmp_path,
        ERLESS_STORE=packed_release.store,
        ERLESS_RELEASE=packed_release.release.digest,
        ERLESS_SHARD_URLS="{}",
    )
    assert gateway.process.wait(60) == 65
    assert "has no URL for shard hot" in gateway.events[-1]["message"]


def test_cuda_is_refused_where_there_is_none(packed_release: Made, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    dense = Function(
        "dense",
        tmp_path,
        ERLESS_STORE=packed_release.store,
        ERLESS_RELEASE=packed_release.release.digest,
        ERLESS_DEVICE="cuda",
    )
    assert dense.process.wait(120) == 78
    assert "torch finds no CUDA device" in dense.events[-1]["message"]


def test_admin_socket_answers_while_loading_and_traffic_waits(
    packed_release: Made, tmp_path: Path
) -> None:
    """The supervisor's way: a private socket at once, the shared one only when ready."""
    path = tmp_path / "admin.sock"
    admin = socket.socket(socket.AF_UNIX)
    admin.bind(str(path))
    admin.listen()
    front = socket.create_server(("127.0.0.1", 0))
    # a FIFO as the store's marker: the function stays loading until somebody writes to it
    store = tmp_path / "store"
    shutil.copytree(packed_release.store, store, ignore=shutil.ignore_patterns("store.json"))
    os.mkfifo(store / "store.json")
    shard = Function(
        "sparse",
        tmp_path,
        ERLESS_STORE=str(store),
        ERLESS_SHARD=packed_release.release.shard("hot").digest,
        ERLESS_ADMIN_FD=str(admin.fileno()),
        ERLESS_LISTEN_FD=str(front.fileno()),
    )
    assert "200 OK" in ask(path, "/v2/health/live")
    answer = ask(path, "/v2/health/ready")
    assert "503 " in answer
    assert '"state": "loading"' in answer
    waiting = socket.create_connection(front.getsockname(), timeout=60)
    waiting.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n")
    (store / "store.json").write_bytes((Path(packed_release.store) / "store.json").read_bytes())
    assert waiting.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert "200 OK" in ask(path, "/v2/health/ready")
    waiting.close()
    assert shard.stop() == 0
    admin.close()
    front.close()


def ask(path: Path, what: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        client.sendall(f"GET {what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        found = b""
        while data := client.recv(65536):
            found += data
        return found.decode()


def test_stopped_while_loading(packed_release: Made, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    os.mkfifo(store / "store.json")
    shard = Function("sparse", tmp_path, ERLESS_STORE=str(store), ERLESS_SHARD=DIGEST)
    shard.event("loading")
    shard.process.send_signal(signal.SIGSTOP)
    clients = [socket.create_connection(("127.0.0.1", shard.port), timeout=60) for _ in range(5)]
    for each in clients:
        each.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n")
    shard.process.send_signal(signal.SIGINT)
    assert shard.stop(signal.SIGCONT) == 0
    assert shard.events[-1]["message"] == "stopped while loading"
    for each in clients:
        assert each.recv(65536).startswith(b"HTTP/1.1 503 ")
        each.close()


def test_drain_answers_what_is_in_flight(packed_release: Made, tmp_path: Path) -> None:
    with Fleet(packed_release, tmp_path) as fleet:
        gateway = fleet.gateway
        body = body_of(random_query(packed_release.model, 1, 4))
        head = (
            "POST /v2/models/small/infer HTTP/1.1\r\nhost: x\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode()
        client = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
        client.sendall(head + body[:100])  # its query is half there
        until = time.monotonic() + 30
        gateway.process.send_signal(signal.SIGTERM)
        while not any(e["message"] == "draining" for e in gateway.events):
            assert time.monotonic() < until
            time.sleep(0.01)
        client.sendall(body[100:])
        answer = b""
        while data := client.recv(65536):
            answer += data
        client.close()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in answer
        assert gateway.process.wait(60) == 0


def test_an_orphan_answers_who_waits_on_its_socket(packed_release: Made, tmp_path: Path) -> None:
    """The supervisor that held the socket is dead: nobody else accepts from it."""
    front = socket.create_server(("127.0.0.1", 0))
    shard = Function(
        "sparse",
        tmp_path,
        ["sh", "-c", f"{sys.executable} -m erless.serve sparse & wait"],
        ERLESS_STORE=packed_release.store,
        ERLESS_SHARD=packed_release.release.shard("hot").digest,
        ERLESS_LISTEN_FD=str(front.fileno()),
    ).ready()
    address = front.getsockname()
    front.close()
    orphan = int(shard.event("loading")["pid"])
    try:
        shard.process.kill()
        shard.process.wait(60)
        os.kill(orphan, signal.SIGSTOP)
        clients = [socket.create_connection(address, timeout=60) for _ in range(20)]
        for each in clients:
            each.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        os.kill(orphan, signal.SIGTERM)
        os.kill(orphan, signal.SIGCONT)
        for each in clients:
            assert each.recv(65536).startswith(b"HTTP/1.1 200 OK")
            each.close()
        until = time.monotonic() + 60
        while not any(event["message"] == "stopped" for event in shard.events):
            assert time.monotonic() < until
            time.sleep(0.01)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
        raise
    assert shard.events[-1]["drained"]


def test_metrics(fleet: Fleet) -> None:
    body = body_of(random_query(fleet.made.model, 2, 4))
    before = fleet.gateway.metric("erless_requests_total")
    fleet.gateway.post("/v2/models/small/infer", body)
    fleet.gateway.post("/v2/models/small/infer", b"{")
    assert fleet.gateway.metric("erless_requests_total") == before + 2
    for function in fleet.functions:
        text = function.get("/metrics")[1].decode()
        found = {family.name: family for family in text_string_to_metric_families(text)}
        assert found["erless_info"].samples[0].labels["function"] in {"gateway", "sparse"}
        assert len(found["erless_info"].samples[0].labels["digest"]) == 64
        assert found["erless_in_flight"].samples[0].value == 0
        assert found["erless_load_seconds"].samples[0].value > 0
        assert found["erless_request_seconds"].type == "histogram"
        assert found["erless_gathers"].samples[0].value >= 0
        assert found["erless_concurrency_seconds"].type == "counter"


def test_a_sparse_function_is_light(packed_release: Made, fleet: Fleet) -> None:
    """It imports neither torch nor boto3, pyarrow, scipy or prometheus_client."""
    code = (
        "import sys; from erless.serve.functions import sparse; "
        "from erless.serve.process import process; "
        "print([m for m in ('torch', 'boto3', 'pyarrow', 'scipy', 'safetensors', "
        "'prometheus_client', 'typer', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
