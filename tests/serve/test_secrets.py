"""Functions that answer only those who show the deployment's secret."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.reference import Monolith
from erless.errors import ConfigError
from erless.serve.known_values import AGAIN_S
from erless.serve.protocol.client import QueryClient
from erless.serve.secrets import DeploymentSecret, open_secret
from erless.serve.settings import Settings
from tests.releases import Made, random_query
from tests.serve.functions import Fleet, Function, predict

SECRET = "s3cret-" + "x" * 121
OTHER = "another-secret-of-ours"
SHARD = "/v2/models/shard"


@pytest.fixture(scope="module")
def guarded(packed_release: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All functions with a secret, as a file."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "secret"
    file.write_text(f"{SECRET}\n")
    every = {"ERLESS_SECRET_FILE": str(file)}
    with Fleet(packed_release, folder, dense=True, every=every) as fleet:
        yield fleet


def empty_call(fleet: Fleet, name: str) -> bytes:
    tables = len(fleet.made.release.shard(name).tables)
    return json.dumps(
        {
            "inputs": [
                {"name": "values", "datatype": "INT64", "shape": [0], "data": []},
                {
                    "name": "lengths",
                    "datatype": "INT32",
                    "shape": [tables, 1],
                    "data": [0] * tables,
                },
            ]
        }
    ).encode()


def test_the_gateway_shows_it_and_every_function_answers(guarded: Fleet) -> None:
    query = random_query(guarded.made.model, 3, 5)
    expected = Monolith.load(guarded.made.bundle).predict(query)
    np.testing.assert_allclose(predict(guarded.gateway, guarded.made, query), expected, rtol=1e-4)


def test_who_does_not_show_it_gets_no_rows(guarded: Fleet) -> None:
    shard, body = guarded.shards["hot"], empty_call(guarded, "hot")
    for shown in ({}, {"erless_secret": OTHER}, {"erless_secret": SECRET[:-1]}):
        assert shard.post(f"{SHARD}/infer", body, **shown)[0] == 401
    assert shard.post(f"{SHARD}/infer", body, erless_secret=SECRET)[0] == 200
    assert shard.get(SHARD)[0] == 401
    assert shard.get(SHARD, **{"erless-secret": SECRET})[0] == 200
    assert guarded.dense is not None
    assert guarded.dense.post("/v2/models/tower/infer", b"{}")[0] == 401
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert shard.get(path)[0] == 200


def test_a_request_of_the_known_form_needs_it_too(guarded: Fleet) -> None:
    """What the gateway writes, with the secret altered: no kernel answers it."""
    head = (
        b"POST /v2/models/shard/infer HTTP/1.1\r\nerless-secret: %b\r\nhost: x\r\n"
        b"content-type: application/octet-stream\r\ninference-header-content-length: 2\r\n"
        b"content-length: 2\r\nerless-deadline-ms: 1000\r\n\r\n{}"
    )
    port = guarded.shards["hot"].port
    for secret, status in ((SECRET, 400), (OTHER, 401), (SECRET[:-1] + "y", 401)):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(head % secret.encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 %d " % status)


def test_it_rotates_under_a_running_function(guarded: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    now = [0.0]
    secret = DeploymentSecret((SECRET,), file, lambda: now[0])
    assert secret.accepts(SECRET.encode())
    for stamp, texts, accepted in (
        (1, (OTHER, SECRET), {OTHER, SECRET}),
        (2, (OTHER,), {OTHER}),
        (3, ("short",), {OTHER}),  # damaged: what was known stays
    ):
        file.write_text("\n".join(texts))
        os.utime(file, ns=(stamp, stamp))
        now[0] += AGAIN_S
        assert {text for text in (SECRET, OTHER) if secret.accepts(text.encode())} == accepted
        assert secret.shown == OTHER.encode()


def test_a_secret_that_came_since_the_last_look_is_accepted_at_once(tmp_path: Path) -> None:
    """Two deploys within a second: the gateway of the second shows what was not there before."""
    file = tmp_path / "secret"
    file.write_text(f"{'a' * 32}\n")
    settings = Settings(kind="sparse", store="s", digest="d" * 64, secret_file=str(file))
    secret = open_secret(settings, lambda: 0.0)  # no time passes
    assert secret is not None
    for text in ("b" * 32, "c" * 32):
        staged = tmp_path / "staged"
        staged.write_text(f"{text}\n")
        os.utime(staged, ns=(ord(text[0]), ord(text[0])))  # however coarse this disk's times are
        staged.replace(file)
        assert secret.accepts(text.encode())
        assert not secret.accepts(b"a" * 32)


@pytest.mark.parametrize("text", ["", "short", "with a space in it, and long", "ü" * 20])
def test_a_secret_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    with pytest.raises(ConfigError, match="ERLESS_SECRET_FILE"):
        open_secret(Settings("sparse", "x", "x", secret_file=str(file)), lambda: 0.0)
    if text:
        with pytest.raises(ConfigError, match="ERLESS_SECRET: expected secrets"):
            open_secret(Settings("sparse", "x", "x", secret=text), lambda: 0.0)


def test_a_token_closes_the_gateways_metrics_and_description_too(
    packed_release: Made, fleet: Fleet, tmp_path: Path
) -> None:
    environment = {
        "ERLESS_STORE": packed_release.store,
        "ERLESS_RELEASE": packed_release.release.digest,
        "ERLESS_SHARD_URLS": json.dumps(fleet.urls),
        "ERLESS_TOKEN": "open sesame",
    }
    closed = Function("gateway", tmp_path, **environment).ready()
    opened = Function("gateway", tmp_path, **environment, ERLESS_OPEN_READS="1").ready()
    for path in ("/metrics", "/openapi.json"):
        assert closed.get(path)[0] == 401
        assert closed.get(path, authorization="Bearer open sesame")[0] == 200
        assert opened.get(path)[0] == 200
    assert closed.get("/v2/health/ready")[0] == 200
    with QueryClient(closed.url, "open sesame") as client:
        assert client.predict(random_query(fleet.made.model, 3, 5)).release
    assert (closed.stop(), opened.stop()) == (0, 0)
