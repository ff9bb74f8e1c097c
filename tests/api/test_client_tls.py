"""`erless.Client` at an https URL: whom it trusts, and the certificate that an ingress asks for."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from urllib3.exceptions import InsecureRequestWarning

import erless
from erless.errors import ConfigError, ServeError, UntrustedError
from tests.authority import Authority, private_authority

METADATA = {"name": "m", "inputs": [], "outputs": []}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        described: dict[str, object] = {"paths": {"/v2/models/m/infer": {}}}
        data = json.dumps(described if self.path == "/openapi.json" else METADATA).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return private_authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Iterator[ThreadingHTTPServer]:
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = authority.context()
    context.load_verify_locations(authority.certificate)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    listening.context = context  # type: ignore[attr-defined]
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield listening
    listening.shutdown()
    listening.server_close()


def test_a_client_trusts_whom_it_is_told_to(
    server: ThreadingHTTPServer, authority: Authority, tmp_path: Path
) -> None:
    url = f"https://127.0.0.1:{server.server_port}"
    with erless.Client(url, ca=authority.certificate) as client:
        assert client.metadata == METADATA
    with erless.Client(url, verify=False) as client, pytest.warns(InsecureRequestWarning):
        assert client.metadata == METADATA
    with erless.Client(url) as client, pytest.raises(UntrustedError, match="is not trusted"):
        _ = client.metadata
    with pytest.raises(ConfigError, match="nowhere.pem: cannot be used for TLS"):
        erless.Client(url, ca=tmp_path / "nowhere.pem")


def test_a_client_shows_its_certificate_where_one_is_asked_for(
    server: ThreadingHTTPServer, authority: Authority
) -> None:
    server.context.verify_mode = ssl.CERT_REQUIRED  # type: ignore[attr-defined]
    url, own = f"https://127.0.0.1:{server.server_port}", authority.server
    for certificate in (own, (own, own)):
        with erless.Client(url, ca=authority.certificate, certificate=certificate) as client:
            assert client.metadata == METADATA
    with erless.Client(url, ca=authority.certificate) as client, pytest.raises(ServeError):
        _ = client.metadata
