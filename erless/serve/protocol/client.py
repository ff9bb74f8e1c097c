"""Send queries to a gateway: what `erless predict`, the demo and tests use as a client.

Blocking, one connection; threads take one client each.
"""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

import numpy as np
import urllib3
from numpy.typing import NDArray

from erless.dlrm.infer_request import DTYPES, infer_request, query_tensors
from erless.dlrm.queries import Query
from erless.errors import ConfigError, ServeError, UntrustedError, first_line
from erless.outbound import ca_bundle

__all__ = ["Answered", "ClientTls", "QueryClient"]

INFER = "/infer"
DEADLINE = "erless-deadline-ms"
JSON_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer: predictions (B,), and what a gateway adds to them (a monolith adds nothing)."""

    predictions: NDArray[np.float32]
    release: str
    degraded: bool
    cold_start: bool
    fan_out: int
    took_s: float
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom a client trusts at https, and as whom it comes; all of them PEM files.

    authorities: that may have signed the gateway's certificate; None: the ones that the environment
    names, or the system's. certificate, key: of the client, where an ingress asks for one; without
    `key` it is in the same file. verify: False trusts anybody, which is for experiments.
    """

    authorities: str | None = None
    certificate: str | None = None
    key: str | None = None
    verify: bool = True


class QueryClient:
    """A client of the gateway at `url`.

    Args:
        url: `http://host:port`, or https.
        token: bearer token, where the gateway wants one.
        timeout_s: most that a query may take.
        address: `host:port` to connect to, where the URL's own host is not known here.
        tls: whom to trust, where the URL is of https.

    Raises:
        ServeError: the URL makes no sense.
        ConfigError: a file of `tls` cannot be used.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = 60.0,
        address: str = "",
        tls: ClientTls = ClientTls(),
    ) -> None:
        location = urlsplit(url)
        if location.scheme not in ("http", "https") or not location.hostname:
            raise ServeError(f"{url!r} is not http://host:port or https://host:port", 400, "query")
        self.url, self._token = url, token
        peer = urlsplit(f"//{address}") if address else location
        self._pool = _open_host(location, peer, timeout_s, tls)
        self._host = location.netloc
        self._path = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection for good; after an error the next call connects by itself."""
        self._pool.close()

    @property
    def path(self) -> str:
        """Where the gateway takes queries: it names its model in its API description."""
        if not self._path:
            described = self._send("GET", "/openapi.json", b"", self._authorization())
            if described.status != 200:
                raise ServeError(_reason(described.data), described.status, "query")
            paths = json.loads(described.data).get("paths", {})
            model_paths = [
                path for path in paths if path.endswith(INFER) and "/versions/" not in path
            ]
            if not model_paths:
                raise ServeError(f"{self.url} serves no model", 503, "overload")
            self._path = model_paths[0]
        return self._path

    def predict(self, query: Query, deadline_ms: float | None = None) -> Answered:
        """Predictions of `query`.

        Raises:
            ServeError: the gateway's reason and status; 502 where it does not answer.
        """
        more = {} if deadline_ms is None else {DEADLINE: f"{deadline_ms:g}"}
        parameters, _, body, took_s = self._infer(*infer_request(query_tensors(query)), more)
        return _answered(np.frombuffer(body, np.float32).copy(), parameters, took_s)

    def infer(
        self, inputs: Mapping[str, NDArray[Any]], deadline_ms: float | None = None
    ) -> tuple[dict[str, NDArray[Any]], Answered]:
        """The outputs for `inputs`, both by name, and the answer, its predictions the first output.

        Raises:
            ServeError: as `predict`.
        """
        more = {} if deadline_ms is None else {DEADLINE: f"{deadline_ms:g}"}
        parameters, described, body, took_s = self._infer(*infer_request(inputs), more)
        outputs, offset = {}, 0
        for output in described:
            dtype, count = np.dtype(DTYPES[output["datatype"]]), math.prod(output["shape"])
            array = np.frombuffer(body, dtype, count, offset).reshape(output["shape"])
            outputs[output["name"]], offset = array, offset + array.nbytes
        return outputs, _answered(next(iter(outputs.values())), parameters, took_s)

    @property
    def metadata(self) -> dict[str, Any]:
        """The gateway's metadata of its model. Raises ServeError as `predict`."""
        path = self.path.removesuffix(INFER)
        response = self._send("GET", path, b"", self._authorization())
        if response.status != 200:
            raise ServeError(_reason(response.data), response.status, "query")
        document: dict[str, Any] = json.loads(response.data)
        return document

    def _infer(
        self, head: bytes, buffers: list[bytes], more: dict[str, str]
    ) -> tuple[dict[str, Any], list[dict[str, Any]], bytes, float]:
        """One infer call: the answer's parameters and outputs, their bytes, seconds."""
        headers = {JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        headers |= self._authorization() | more
        path = self.path
        began = time.perf_counter()
        response = self._send("POST", path, b"".join([head, *buffers]), headers)
        took_s = time.perf_counter() - began
        body = response.data
        if response.status != 200:
            raise ServeError(_reason(body), response.status, "query")
        size = int(response.headers.get(JSON_LENGTH) or len(body))
        document = json.loads(body[:size])
        return document["parameters"], document.get("outputs", []), body[size:], took_s

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _send(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """One exchange; once more where the connection ended before an answer."""
        headers = {"Host": self._host, **headers}
        for attempt in (0, 1):
            try:
                return self._pool.urlopen(method, path, body or None, headers, redirect=False)
            except urllib3.exceptions.SSLError as error:
                reason = first_line(error)
                raise UntrustedError(f"{self.url} is not trusted: {reason}", 502) from error
            except urllib3.exceptions.HTTPError as error:
                ended = isinstance(error, urllib3.exceptions.ProtocolError)
                if attempt or not ended:
                    raise ServeError(f"{self.url} does not answer: {error}", 502) from error
        raise AssertionError


def _open_host(
    location: SplitResult, peer: SplitResult, timeout_s: float, tls: ClientTls
) -> urllib3.HTTPConnectionPool:
    """Connections to the gateway at URL `location`, by way of `peer`'s host and port.

    Raises:
        ConfigError: a file of `tls` cannot be used.
    """
    host = peer.hostname or ""
    if location.scheme == "http":
        return urllib3.HTTPConnectionPool(host, peer.port, timeout=timeout_s, retries=False)
    return urllib3.HTTPSConnectionPool(
        host,
        peer.port,
        timeout=timeout_s,
        retries=False,
        ssl_context=_context(tls),
        server_hostname=location.hostname,
        assert_hostname=location.hostname if tls.verify else False,
    )


def _context(tls: ClientTls) -> ssl.SSLContext:
    files = [file for file in (tls.authorities or ca_bundle(), tls.certificate, tls.key) if file]
    try:
        context = ssl.create_default_context(cafile=tls.authorities or ca_bundle())
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{', '.join(files)}: cannot be used for TLS: {error}") from error
    if not tls.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _answered(predictions: NDArray[Any], parameters: dict[str, Any], took_s: float) -> Answered:
    return Answered(
        predictions,
        parameters.get("release", ""),
        parameters.get("degraded", False),
        parameters.get("cold_start", False),
        parameters.get("fan_out", 0),
        took_s,
        parameters.get("generation", 0),
    )


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
