"""What can be read from a function: probes, metadata, metrics, the description of its API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from erless.errors import ServeError
from erless.http.messages import Request, Response, problem
from erless.serve.metrics import Metrics
from erless.serve.protocol.guard import Guard
from erless.serve.protocol.served import Served
from erless.serve.protocol.standing import Standing
from erless.serve.protocol.wire import RETRY_AFTER
from erless.serve.settings import Settings
from erless.version import __version__

__all__ = ["Reads"]

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
READ = (b"GET", b"HEAD")


class Reads:
    """Answers every request that is no infer call.

    Args:
        settings, metrics: of the function.
        standing: what it serves.
        guard: whom it answers.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, standing: Standing, guard: Guard
    ) -> None:
        self._settings, self._standing, self._guard = settings, standing, guard
        self._openapi: bytes = b""
        self._open: dict[bytes, Callable[[], Response]] = {
            b"": lambda: _document(self._front_page()),
            b"/v2": lambda: _document(self._server()),
            b"/v2/health/live": self._liveness,
            b"/v2/health/ready": self._readiness,
        }
        self._closed: dict[bytes, Callable[[], Response]] = {
            b"/metrics": lambda: Response(200, (metrics.render(),), METRICS_TYPE),
            b"/openapi.json": lambda: Response(200, (self._describe_api(),)),
        }

    def answer(self, request: Request) -> Response | Served:
        """The answer to `request`; or the version that it asks to infer, which was just opened.

        Raises:
            ServeError: whatever the client is refused for.
        """
        path = request.path.rstrip(b"/")
        read = self._open.get(path) or self._closed.get(path)
        if read is not None:
            if path in self._closed and self._guard.closed_reads:
                self._guard.admit(request)
            return read() if request.method in READ else _not_allowed(b"GET, HEAD")
        parts = [unquote(part) for part in path.decode("latin-1").split("/")]
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
            return self._model(request, parts[3], parts[4:])
        return _not_found(request)

    def _model(self, request: Request, model: str, remainder: list[str]) -> Response | Served:
        self._guard.admit(request)
        standing = self._standing
        served = standing.loaded()
        if model != served.model:
            raise ServeError(
                f"there is no model {_cut(model)}: this serves {served.model}", 404, "query"
            )
        if remainder[:1] == ["versions"]:
            if remainder[1:2] != [standing.version]:
                digest = remainder[1] if len(remainder) > 1 else ""
                served = standing.open_version(served, digest)
            remainder = remainder[2:]
        if remainder == ["infer"]:
            if request.method != b"POST":
                return _not_allowed(b"POST")
            if standing.at.get(request.path) is served:
                return served
            # another spelling of the path: the hot path knows only the plain one
            return problem(404, f"write the path as /v2/models/{served.model}/infer")
        if remainder not in ([], ["ready"]):
            return _not_found(request)
        if request.method not in READ:
            return _not_allowed(b"GET, HEAD")
        return self._readiness() if remainder else _document(self._metadata(served))

    def _front_page(self) -> dict[str, Any]:
        """What answers here, for who opens the URL in a browser."""
        return {
            "name": "erless",
            "function": self._settings.kind,
            "state": self._standing.state,
            "protocol": "Open Inference Protocol v2",
            "paths": ["/v2", "/v2/health/ready", *map(bytes.decode, self._closed)],
        }

    def _liveness(self) -> Response:
        if self._standing.behind:
            return problem(503, f"to be replaced: {self._standing.behind}")
        return _document({"live": True})

    def _readiness(self) -> Response:
        reason = self._standing.not_ready
        if not reason:
            return _document({"ready": True})
        state = self._standing.state
        return problem(503, f"not ready: {reason}", headers=RETRY_AFTER, state=state)

    def _server(self) -> dict[str, Any]:
        served = self._standing.served
        return {
            "name": f"erless-{self._settings.kind}",
            "version": __version__,
            "extensions": ["binary_tensor_data"],
            "models": [served.model] if served else [],
        }

    def _metadata(self, served: Served) -> dict[str, Any]:
        return {
            "name": served.model,
            "versions": [served.digest[:12]],
            "platform": f"erless-{self._settings.kind}",
            "inputs": [tensor.describe() for tensor in served.inputs if not tensor.optional],
            "outputs": [tensor.describe() for tensor in served.outputs],
            "parameters": {"digest": served.digest, **served.facts},
        }

    def _describe_api(self) -> bytes:
        served = self._standing.served
        if not self._openapi or served is None:
            from erless.serve.protocol.openapi import openapi

            self._openapi = openapi(self._settings, served)
        return self._openapi


def _document(document: dict[str, Any]) -> Response:
    return Response(200, (json.dumps(document).encode(),))


def _not_found(request: Request) -> Response:
    return problem(404, f"there is nothing at {_cut(request.path.decode('latin-1'))}")


def _not_allowed(methods: bytes) -> Response:
    return problem(405, f"use {methods.decode()}", headers=((b"allow", methods),))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"
