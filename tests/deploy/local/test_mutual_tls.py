"""HTTPS, mutual TLS and tokens of a deployment on this machine, while all of them are replaced."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.dlrm.reference import Monolith
from erless.errors import ConfigError, ServeError, UntrustedError
from erless.http.tls import server_contexts
from erless.progress import Silent
from erless.serve.protocol.client import ClientTls, QueryClient
from erless.specs.config import (
    Config,
    GatewayConfig,
    LocalConfig,
    SecurityConfig,
    TargetsConfig,
    TlsConfig,
)
from tests.authority import Authority, private_authority
from tests.conformance.harness import LocalHarness
from tests.releases import Made, random_query

WAIT_S = 60.0
LIVES_S = 10.0  # a certificate: one that is not replaced in use fails every handshake after that
ROTATIONS = 5
PAUSE_S = 0.015  # three clients: 200 queries/s


class Site:
    """A deployment whose gateway has a certificate and tokens that the test replaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = folder / "tokens"
        self.accept("first")
        self.authorities = folder / "authorities.pem"
        self._following = self._trusted()
        self.renew()
        self.target = LocalTarget(
            Config(
                gateway=GatewayConfig(
                    tokens_file=self.tokens,
                    tls=TlsConfig(certificate=folder / "server.pem", key=folder / "server.pem"),
                ),
                security=SecurityConfig(mutual_tls=True),
                targets=TargetsConfig(local=LocalConfig(state=folder / "state")),
            ),
            Timing(poll_s=0.2, identity_s=LIVES_S),
        )

    def accept(self, *tokens: str) -> None:
        lines = [f"{hashlib.sha256(token.encode()).hexdigest()}  {token}\n" for token in tokens]
        (self.folder / "next").write_text("# of clients\n" + "".join(lines))
        (self.folder / "next").rename(self.tokens)

    def renew(self) -> None:
        """Another certificate of the gateway, by an authority that clients trust since before."""
        shutil.copy(self._following.server, self.folder / "next")
        (self.folder / "next").rename(self.folder / "server.pem")
        self._following = self._trusted()

    def _trusted(self) -> Authority:
        made = self.folder / f"made-{time.monotonic_ns()}"
        made.mkdir()
        authority = private_authority(made)
        with self.authorities.open("ab") as file:
            file.write(authority.certificate.read_bytes())
        return authority

    def client(self, url: str, token: str = "first") -> QueryClient:  # noqa: S107
        return QueryClient(url, token, tls=ClientTls(authorities=str(self.authorities)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    os.environ["ERLESS_CONNECTION_AGE_S"] = "0.5"  # of the supervisor, and so of its gateways
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    del os.environ["ERLESS_CONNECTION_AGE_S"]
    LocalHarness(made.folder).end()


def test_everything_rotates_under_load_and_no_query_fails(site: Site, packed_release: Made) -> None:
    desired = LocalHarness(site.folder).desired(packed_release)
    url = site.target.deploy(desired, Silent(), WAIT_S).url
    assert url.startswith("https://")
    query = random_query(packed_release.model, 1, 8)
    expected = Monolith.load(packed_release.bundle).predict(query)
    over, served = threading.Event(), [0, 0, 0]

    def load(number: int) -> None:
        while not over.is_set():
            with site.client(url) as client:  # a handshake for every few queries
                for _ in range(10):
                    found = client.predict(query).predictions
                    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
                    served[number] += 1
                    time.sleep(PAUSE_S)

    supervisor = site.target.processes()["supervisor"][0]
    keys = site.folder / "state" / "identities" / "gateway" / "tls.crt"
    seen, renewed = {keys.read_bytes()}, 0
    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(load, number) for number in range(3)]
        try:
            deadline = time.monotonic() + WAIT_S
            while len(seen) <= ROTATIONS and not any(client.done() for client in clients):
                assert time.monotonic() < deadline
                if keys.read_bytes() not in seen:
                    seen.add(keys.read_bytes())
                    site.renew()
                    renewed += 1
                    if renewed == 2:  # its successor has another authority
                        os.kill(supervisor, signal.SIGKILL)
                time.sleep(0.05)
        finally:
            over.set()
        for client in clients:
            client.result()
    assert renewed == ROTATIONS and min(served) > 50


def test_a_shard_answers_nobody_but_its_gateway(site: Site, packed_release: Made) -> None:
    """Not in plain HTTP, not without a certificate, and not to another function's."""
    state = site.target._folder.load()
    port = next(port for key, port in state.ports.items() if key.startswith("sparse"))
    identities = site.folder / "state" / "identities"

    def ask(context: ssl.SSLContext | None) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain:
            opened = context.wrap_socket(plain) if context else plain
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.sock = opened
            connection.request("GET", "/v2/health/live")
            status = connection.getresponse().status
            opened.close()
            return status

    def context(name: str | None) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.load_verify_locations(identities / "gateway" / "ca.crt")
        if name:
            made.load_cert_chain(identities / name / "tls.crt", identities / name / "tls.key")
        return made

    assert ask(context("gateway")) == 200
    other = next(folder.name for folder in identities.glob("sparse-*"))
    for intruder in (None, context(None), context(other)):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ask(intruder)


def test_tokens_come_and_go_without_a_restart(site: Site, packed_release: Made) -> None:
    url = site.target.deployments()[0].url
    query = random_query(packed_release.model, 2, 4)

    def status(token: str) -> int:
        try:
            with site.client(url, token) as client:
                client.predict(query)
        except ServeError as error:
            return error.status
        return 200

    assert (status("first"), status("second")) == (200, 401)
    site.accept("first", "second")
    assert (status("second"), status("first")) == (200, 200)
    site.accept("second")
    deadline = time.monotonic() + WAIT_S
    while status("first") == 200:
        assert time.monotonic() < deadline
    assert status("second") == 200
    site.accept("first")


def test_a_gateway_that_nobody_signed_for_is_not_trusted(site: Site, tmp_path: Path) -> None:
    url = site.target.deployments()[0].url
    stranger = private_authority(tmp_path)
    with QueryClient(url, "first", tls=ClientTls(authorities=str(stranger.certificate))) as client:
        with pytest.raises(UntrustedError, match="not trusted.*certificate verify failed"):
            _ = client.metadata
    host = urlsplit(url)
    elsewhere = f"https://localhost:{host.port}"
    with QueryClient(
        elsewhere, "first", tls=ClientTls(authorities=str(site.authorities))
    ) as client:
        with pytest.raises(UntrustedError, match="localhost"):
            _ = client.metadata


def test_files_that_do_not_fit_are_refused_or_left_alone(tmp_path: Path) -> None:
    authority = private_authority(tmp_path)
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    with pytest.raises(ConfigError, match="tls.crt"):
        server_contexts(certificate, key, print)
    for file in (certificate, key):
        shutil.copy(authority.server, file)
    faults: list[str] = []
    contexts = server_contexts(certificate, key, faults.append)
    first = contexts()
    assert contexts() is first
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(private_authority(other).server, certificate)  # and not yet the key
    assert contexts() is first and len(faults) == 1
    shutil.copy(other / "server.pem", key)
    assert contexts() is not first and len(faults) == 1
