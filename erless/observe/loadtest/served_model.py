"""What a gateway serves, asked over the Open Inference Protocol before a load test begins."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import urllib3

from erless.dlrm.graph_queries import served_inputs
from erless.errors import ServeError, UntrustedError, first_line
from erless.specs.features import NamedTensor

__all__ = ["ServedModel", "discover"]

DISCOVERY_S = 5.0  # a gateway that does not answer within this is down


@dataclass(frozen=True)
class ServedModel:
    """What the gateway says about the model that it serves.

    `inputs` are those of a model cut from a graph, else none.
    """

    name: str
    version: str
    release: str
    dense_features: int
    tables: tuple[dict[str, Any], ...]
    batch: int = 32
    inputs: tuple[NamedTensor, ...] = ()

    @property
    def path(self) -> str:
        """Where queries are sent."""
        return f"/v2/models/{self.name}/infer"


def discover(
    host: str,
    model: str | None = None,
    token: str | None = None,
    wait_s: float = DISCOVERY_S,
    connect: str = "",
    authorities: str | None = None,
) -> ServedModel:
    """Ask the gateway at `host` what it serves; tries again for `wait_s`.

    Args:
        host: its URL.
        model: name of the one meant, where it serves several.
        token: that it asks for.
        wait_s: seconds.
        connect: HOST:PORT to connect to, where the URL's own host is not known here.
        authorities: PEM file of those that sign an https gateway's certificate; None: those that
            urllib3 trusts.

    Raises:
        ServeError: it is down, not ready, or not a gateway.
        UntrustedError: its certificate is signed by none of the authorities.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    location = host
    if connect:
        parts = urlsplit(host)
        headers["host"] = parts.netloc
        location = f"{parts.scheme}://{connect}"
    if not location.startswith(("http://", "https://")):
        raise ServeError(f"{host}: a gateway's URL begins with http:// or https://")
    trust: dict[str, Any] = {}
    if location.startswith("https://"):
        trust = {"ca_certs": authorities, "server_hostname": urlsplit(host).hostname}
        trust["assert_hostname"] = trust["server_hostname"]
    with urllib3.PoolManager(retries=False, timeout=wait_s, **trust) as pool:
        name = model or _served_name(_get(pool, location, "/v2", headers, wait_s))
        metadata = _get(pool, location, f"/v2/models/{name}", headers, wait_s)
    parameters = metadata.get("parameters", {})
    listed = metadata.get("inputs", ())
    try:
        inputs = served_inputs(listed)
        widths = [tensor["shape"][-1] for tensor in listed if tensor["name"] == "dense"]
    except (ValueError, KeyError, TypeError, IndexError):
        inputs, widths = (), []
    if (not inputs and not widths) or (inputs and not parameters.get("tables")):
        raise ServeError(f"{host}: {name} is not a recommendation model that erless serves")
    return ServedModel(
        name=name,
        version=str((metadata.get("versions") or [""])[0]),
        release=str(parameters.get("digest", "")),
        dense_features=0 if inputs else int(widths[0]),
        tables=tuple(parameters.get("tables", ())),
        batch=int(parameters.get("batch", 32)),
        inputs=inputs,
    )


def _served_name(server: dict[str, Any]) -> str:
    models: Sequence[Any] = server.get("models") or server.get("parameters", {}).get("models") or ()
    if len(models) != 1:
        raise ServeError(
            f"{server.get('name', 'the server')} does not say which model it serves: "
            "name it with --model"
        )
    return str(models[0])


def _get(
    pool: urllib3.PoolManager, host: str, path: str, headers: dict[str, str], wait_s: float
) -> dict[str, Any]:
    """The JSON document at `path`; what may pass (no connection, 5xx) is tried until `wait_s`."""
    url = host.rstrip("/") + path
    end = time.monotonic() + wait_s
    while True:
        try:
            response = pool.request("GET", url, headers=headers)
        except urllib3.exceptions.SSLError as error:
            raise UntrustedError(f"{url} is not trusted: {first_line(error)}", 502) from error
        except urllib3.exceptions.HTTPError as error:
            reason = first_line(error)
        else:
            if response.status == 200:
                return _document(url, response.data)
            reason = f"HTTP {response.status}"
            if response.status < 500:
                raise ServeError(f"{url}: {reason}", status=response.status)
        if time.monotonic() > end:
            raise ServeError(f"{url}: no answer within {wait_s:g} s ({reason})", kind="down")
        time.sleep(0.2)


def _document(url: str, body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ServeError(f"{url}: not a server of the Open Inference Protocol")
    return document
