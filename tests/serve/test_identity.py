"""A function with an identity on a cluster: whom it answers, and what it tells a kubelet."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from pathlib import Path

import numpy as np

from erless.deploy.local.supervisor.folder.identities import Identities
from erless.serve.identity import GATEWAY, function_name
from tests.releases import Made, random_query
from tests.serve.functions import Fleet, predict

PREFIX = "spiffe://erless/recs/"
WANTED = "the certificate of this deployment's gateway is needed"


def context(folder: Path, name: str = "") -> ssl.SSLContext:
    """Of a client that shows the certificate of `name`, or none."""
    made = ssl.create_default_context(cafile=str(folder / GATEWAY / "ca.crt"))
    made.check_hostname = False
    if name:
        made.load_cert_chain(folder / name / "tls.crt", folder / name / "tls.key")
    return made


def ask(port: int, tls: ssl.SSLContext, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=tls)
    with contextlib.closing(connection):
        connection.request(method, path, b"{}" if method == "POST" else None)
        response = connection.getresponse()
        return response.status, response.read()


def test_strangers_see_health_and_no_rows(packed_release: Made, tmp_path: Path) -> None:
    made, folder = packed_release, tmp_path / "identities"
    shards = {shard.name: function_name("sparse", shard.digest) for shard in made.release.remote}
    Identities(folder).keep({name: PREFIX + name for name in (GATEWAY, *shards.values())}, 3600.0)

    def identity(name: str, **env: str) -> dict[str, str]:
        return {"ERLESS_IDENTITY": str(folder / name), "ERLESS_IDENTITY_PREFIX": PREFIX, **env}

    with Fleet(made, tmp_path) as plain:
        secured = {
            name: plain.start_shard(name, **identity(own, ERLESS_OPEN_READS="1"))
            for name, own in shards.items()
        }
        urls = {
            shard.digest: f"https://127.0.0.1:{secured[shard.name].port}"
            for shard in made.release.remote
        }
        gateway = plain.start_gateway(urls, **identity(GATEWAY)).ready()
        first, other, *_ = shards
        port = secured[first].ready().port
        for stranger in (context(folder), context(folder, shards[other])):
            assert ask(port, stranger, "GET", "/v2/health/ready")[0] == 200
            assert ask(port, stranger, "GET", "/v2/health/live")[0] == 200
            assert b"erless_requests_total" in ask(port, stranger, "GET", "/metrics")[1]
            status, body = ask(port, stranger, "POST", "/v2/models/shard/infer")
            assert (status, json.loads(body)["error"]) == (401, WANTED)
        known = context(folder, GATEWAY)
        assert ask(port, known, "POST", "/v2/models/shard/infer")[0] == 400  # heard, and not JSON
        query = random_query(made.model, 8, 16)
        ours, theirs = (predict(each, made, query) for each in (gateway, plain.gateway))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
