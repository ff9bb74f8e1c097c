"""The OpenAPI document of a function, for /openapi.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from erless.serve.settings import Settings
from erless.version import __version__

if TYPE_CHECKING:
    from erless.serve.protocol.served import Served
    from erless.serve.protocol.tensors import TensorSpec

__all__ = ["openapi"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "state": {"type": "string"}},
}
_JSON_TYPES = {"INT": "integer", "UINT": "integer", "BOOL": "boolean", "BYTES": "string"}
_REASONS = {
    200: "OK",
    400: "what the client sent does not fit; the error says what",
    401: "no token",
    404: "no such model, version or path",
    405: "another method",
    408: "the client was too slow",
    413: "the body is too large",
    502: "a shard failed",
    503: "loading, draining or overloaded: try again",
    504: "the deadline passed",
}


def openapi(settings: Settings, served: Served | None) -> bytes:
    """The document, as JSON. Before anything is loaded it has no model's paths."""
    tokens = settings.token or settings.tokens_file
    closed = [401] if tokens or settings.secret or settings.secret_file else []
    reads = [401] if tokens and not settings.open_reads else []
    paths: dict[str, Any] = {
        "/v2": {"get": _read("Server metadata", [200])},
        "/v2/health/live": {"get": _read("Whether the process runs", [200])},
        "/v2/health/ready": {"get": _read("Whether it answers queries", [200, 503])},
        "/metrics": {"get": _read("Prometheus metrics", [200, *reads], "text/plain")},
    }
    if served is not None:
        version = served.digest[:12]
        for base in (f"/v2/models/{served.model}", f"/v2/models/{served.model}/versions/{version}"):
            paths[base] = {"get": _read("Model metadata", [200, *closed])}
            paths[f"{base}/ready"] = {"get": _read("Whether it is ready", [200, *closed, 503])}
            paths[f"{base}/infer"] = {"post": _infer(served, closed, settings.kind)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"erless {settings.kind} function",
            "version": __version__,
            "description": "Open Inference Protocol v2 over HTTP. Tensors may also follow the "
            "JSON as bytes: binary tensor extension, Inference-Header-Content-Length.",
        },
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }
    if settings.token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return json.dumps(document).encode()


def _responses(statuses: list[int], content: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): {
            "description": _REASONS[status],
            "content": content if status == 200 else error,
        }
        for status in sorted(statuses)
    }


def _read(summary: str, statuses: list[int], media: str = "application/json") -> dict[str, Any]:
    schema = {"type": "object"} if media == "application/json" else {"type": "string"}
    return {"summary": summary, "responses": _responses(statuses, {media: {"schema": schema}})}


def _json_type(spec: TensorSpec) -> str:
    """What an element of the tensor is in JSON."""
    return _JSON_TYPES.get(spec.datatypes[0].rstrip("0123456789"), "number")


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    sizes = [
        {"const": n} if n >= 0 else {"type": "integer", "minimum": 0} for n in spec.shape or ()
    ]
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"enum": list(spec.datatypes)},
            "shape": {
                "type": "array",
                "prefixItems": sizes,
                "items": False,
                "minItems": len(sizes),
            },
            "data": {
                "type": "array",
                "items": {"type": _json_type(spec)},
                "description": "or nested",
            },
        },
    }


def _request_schema(served: Served) -> dict[str, Any]:
    needed = [tensor for tensor in served.inputs if not tensor.optional]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {
                "type": "array",
                "prefixItems": [_tensor(tensor) for tensor in needed],
                "items": False,
                "minItems": len(needed),
            },
            "outputs": {
                "type": "array",
                "description": "those to answer; all of them where none are named",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"enum": [tensor.name for tensor in served.outputs]}},
                },
            },
            "parameters": {"type": "object", "properties": {}},
        },
        "additionalProperties": False,
    }


def _answer_schema(served: Served) -> dict[str, Any]:
    kinds = sorted({_json_type(tensor) for tensor in served.outputs})
    return {
        "type": "object",
        "required": ["model_name", "model_version", "parameters", "outputs"],
        "properties": {
            "model_name": {"const": served.model},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape", "data"],
                    "properties": {
                        "name": {"enum": [tensor.name for tensor in served.outputs]},
                        "datatype": {"type": "string"},
                        "shape": {"type": "array", "items": {"type": "integer"}},
                        "data": {
                            "type": "array",
                            "items": {"type": kinds[0] if len(kinds) == 1 else kinds},
                        },
                    },
                },
            },
        },
    }


def _infer(served: Served, closed: list[int], kind: str) -> dict[str, Any]:
    """The `infer` operation; `closed` are the statuses for a missing token or secret."""
    request = {"application/json": {"schema": _request_schema(served)}}
    answer = {"application/json": {"schema": _answer_schema(served)}}
    statuses = [200, 400, *closed, 408, 413, 503, 504]
    if kind == "gateway":
        statuses.append(502)
    return {
        "summary": "Predict" if kind != "sparse" else "Gather and pool",
        "parameters": [
            {
                "name": "erless-deadline-ms",
                "in": "header",
                "description": "how many milliseconds are left for an answer",
                "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000},
            }
        ],
        "requestBody": {"required": True, "content": request},
        "responses": _responses(statuses, answer),
    }
