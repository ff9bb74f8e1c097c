"""The environment of a function → its settings: the code of docs/functions.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from erless.errors import ConfigError

__all__ = ["Kind", "Settings", "read_settings"]

Kind = Literal["sparse", "dense", "gateway", "monolith"]
T = TypeVar("T")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"spiffe://[a-z0-9.\-_]+/([A-Za-z0-9.\-_]+/)*")
_URL = re.compile(r"https?://([A-Za-z0-9.\-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?/?")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a function. See docs/functions.md for each."""

    kind: Kind
    store: str
    digest: str  # of the shard, or of the release
    endpoint_url: str | None = None
    cache: str | None = None
    cache_bytes: int = 64 << 30
    shard_urls: Mapping[str, str] | None = None
    dense_url: str | None = None
    gateway_url: str | None = None
    functions_wait_s: float = 660.0
    host: str = "127.0.0.1"
    port: int = 8080
    listen_fd: int | None = None
    admin_fd: int | None = None
    sla_ms: float = 100.0
    deadline_ms: float = 30_000.0
    cold_miss: Literal["wait", "default"] = "wait"
    degraded_share: float = 0.05
    hedge: bool = False
    float16_partials: bool = False
    token: str | None = None
    tokens_file: str | None = None
    canary: str | None = None
    ids_in_order: bool = False
    alerts_socket: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    identity: str | None = None
    identity_prefix: str = ""
    open_reads: bool = False
    grpc: bool = False
    secret: str | None = None
    secret_file: str | None = None
    max_in_flight: int = 512
    max_batch: int = 4096
    coalesced_queries: int = 8
    max_body_bytes: int = 64 << 20
    memory_in_flight_bytes: int | None = None
    rewritten_bytes: int | None = None
    scrub_bytes_s: float = float(2 << 20)
    follow_s: float = 0.0
    sample: float = 0.0
    heat_half_life_s: float = 1800.0
    heat_every_s: float = 30.0
    heat_bytes: int = 64 << 20
    behind_s: float = 60.0
    disk_engine: Literal["auto", "io_uring", "pread"] = "auto"
    disk_depth: int = 256
    disk_waiting: int = 32_768
    max_connections: int = 4096
    max_client_connections: int = 3072
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    max_delay_ms: float = 1.0
    max_coalesce: int = 256
    otlp_endpoint: str | None = None
    drain_s: float = 30.0
    connection_age_s: float = 10.0
    log: Literal["debug", "info", "warning"] = "info"
    threads: int = 1
    workers: int = 1


class _Environment:
    """Reads variables, and names the one that is wrong."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, name: str) -> str | None:
        """The variable, or None where it is absent or empty."""
        return self._variables.get(name) or None

    def read(self, name: str, default: T, parse: Callable[[str], T], expected: str) -> T:
        """The variable through `parse`, or `default`."""
        text = self.text(name)
        if text is None:
            return default
        try:
            return parse(text)
        except (ValueError, KeyError):
            raise ConfigError(f"{name} is {text!r}: expected {expected}") from None

    def number(self, name: str, default: float, low: float = 0.0, high: float = 1e15) -> float:
        """A finite number of at least `low` and at most `high`."""

        def parse(text: str) -> float:
            value = float(text)
            if not low <= value <= high:
                raise ValueError
            return value

        most = f" to {high:g}" if high < 1e15 else ""
        return self.read(name, default, parse, f"a number from {low:g}{most}")

    def integer(self, name: str, default: int, low: int = 1, high: int | None = None) -> int:
        """A whole number of at least `low` and at most `high`."""

        def parse(text: str) -> int:
            value = int(text)
            if value < low or (high is not None and value > high):
                raise ValueError
            return value

        most = "" if high is None else f" to {high}"
        return self.read(name, default, parse, f"a whole number from {low}{most}")

    def optional_integer(self, name: str, low: int = 1) -> int | None:
        """A whole number of at least `low`, or None."""
        return self.integer(name, low, low) if self.text(name) else None

    def choice(self, name: str, *choices: str) -> str:
        """One of `choices`; the first by default."""
        return self.read(
            name,
            choices[0],
            {choice: choice for choice in choices}.__getitem__,
            " or ".join(choices),
        )

    def required(self, name: str, pattern: re.Pattern[str] | None, expected: str) -> str:
        """A variable that must be there."""
        text = self.text(name)
        if text is None or (pattern and not pattern.fullmatch(text)):
            value = "absent" if text is None else repr(text)
            raise ConfigError(f"{name} is {value}: expected {expected}")
        return text

    def descriptor(self, name: str) -> int | None:
        """An inherited file descriptor, or None."""
        return self.read(name, None, int, "a file descriptor")

    def url(self, name: str) -> str | None:
        """A URL without a path, or None."""
        text = self.text(name)
        if text is not None and not _URL.fullmatch(text):
            raise ConfigError(f"{name} is {text!r}: expected http://host:port")
        return text


def _shard_urls(environment: _Environment) -> dict[str, str]:
    name = "ERLESS_SHARD_URLS"
    text = environment.required(name, None, 'JSON {shard digest: "http://host:port"}')
    try:
        urls = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from None
    if not isinstance(urls, dict):
        raise ConfigError(f'{name}: expected JSON {{shard digest: "http://host:port"}}')
    for digest, url in urls.items():
        if not _DIGEST.fullmatch(digest):
            raise ConfigError(f"{name}: {digest!r} is not a digest")
        if not isinstance(url, str) or not _URL.fullmatch(url):
            raise ConfigError(f"{name}: {url!r} is not http://host:port")
    return urls


def _workers(environment: _Environment) -> int:
    workers = environment.integer("ERLESS_WORKERS", 1)
    inherited = environment.text("ERLESS_LISTEN_FD") or environment.text("ERLESS_ADMIN_FD")
    if workers > 1 and inherited:
        raise ConfigError(
            f"ERLESS_WORKERS is {workers}: replicas that share a socket are started one by one"
        )
    return workers


def _canary(environment: _Environment) -> str | None:
    name = "ERLESS_CANARY_SHA256"
    if environment.text(name) is None:
        return None
    if not environment.text("ERLESS_TOKEN") and not environment.text("ERLESS_TOKENS_FILE"):
        raise ConfigError(f"{name} is set, and anybody may ask without a token: set ERLESS_TOKEN")
    return environment.required(name, _DIGEST, "a SHA-256 as sha256sum prints it")


def _identity_prefix(environment: _Environment) -> str:
    name, expected = "ERLESS_IDENTITY_PREFIX", "spiffe://DOMAIN/… up to the functions' own names"
    if environment.text(name) is None and environment.text("ERLESS_IDENTITY") is None:
        return ""
    return environment.required(name, _PREFIX, expected)


def read_settings(kind: Kind, variables: Mapping[str, str]) -> Settings:
    """The settings of a function of `kind`.

    Raises:
        ConfigError: naming the variable that is missing or wrong.
    """
    env = _Environment(variables)
    digest = "ERLESS_SHARD" if kind == "sparse" else "ERLESS_RELEASE"
    choice = env.choice
    return Settings(
        kind=kind,
        store=env.required("ERLESS_STORE", None, "a directory or s3://bucket/prefix"),
        digest=env.required(digest, _DIGEST, "a digest: 64 hexadecimal digits"),
        endpoint_url=env.text("ERLESS_ENDPOINT_URL"),
        cache=env.text("ERLESS_CACHE"),
        cache_bytes=env.integer("ERLESS_CACHE_BYTES", 64 << 30),
        shard_urls=_shard_urls(env) if kind == "gateway" else None,
        dense_url=env.url("ERLESS_DENSE_URL") if kind == "gateway" else None,
        gateway_url=env.url("ERLESS_GATEWAY_URL") if kind == "gateway" else None,
        functions_wait_s=env.number("ERLESS_FUNCTIONS_WAIT_S", 660.0, 1.0),
        host=env.text("ERLESS_HOST") or "127.0.0.1",
        port=env.integer("PORT", 8080, 0),
        listen_fd=env.descriptor("ERLESS_LISTEN_FD"),
        admin_fd=env.descriptor("ERLESS_ADMIN_FD"),
        sla_ms=env.number("ERLESS_SLA_MS", 100.0, 0.001),
        deadline_ms=env.number("ERLESS_DEADLINE_MS", 30_000.0, 0.001),
        cold_miss=choice("ERLESS_COLD_MISS", "wait", "default"),  # type: ignore[arg-type]
        degraded_share=env.number("ERLESS_DEGRADED_SHARE", 0.05, 0.0, 1.0),
        hedge=choice("ERLESS_HEDGE", "0", "1") == "1",
        float16_partials=choice("ERLESS_HALF_PARTIALS", "0", "1") == "1",
        token=env.text("ERLESS_TOKEN") if kind == "gateway" else None,
        tokens_file=env.text("ERLESS_TOKENS_FILE") if kind == "gateway" else None,
        canary=_canary(env) if kind == "gateway" else None,
        ids_in_order=kind == "gateway" and choice("ERLESS_IDS_IN_ORDER", "0", "1") == "1",
        alerts_socket=env.text("ERLESS_ALERTS_SOCKET"),
        tls_certificate=env.text("ERLESS_TLS_CERTIFICATE") if kind == "gateway" else None,
        tls_key=env.text("ERLESS_TLS_KEY") if kind == "gateway" else None,
        identity=env.text("ERLESS_IDENTITY"),
        identity_prefix=_identity_prefix(env),
        open_reads=choice("ERLESS_OPEN_READS", "0", "1") == "1",
        grpc=kind == "gateway" and choice("ERLESS_GRPC", "0", "1") == "1",
        secret=env.text("ERLESS_SECRET"),
        secret_file=env.text("ERLESS_SECRET_FILE"),
        max_in_flight=env.integer("ERLESS_MAX_IN_FLIGHT", 512),
        max_batch=env.integer("ERLESS_MAX_BATCH", 4096),
        coalesced_queries=env.integer("ERLESS_COALESCED_QUERIES", 8),
        max_body_bytes=env.integer("ERLESS_MAX_BODY_BYTES", 64 << 20),
        memory_in_flight_bytes=env.optional_integer("ERLESS_MEMORY_IN_FLIGHT_BYTES"),
        rewritten_bytes=env.optional_integer("ERLESS_REWRITTEN_BYTES", 0),
        scrub_bytes_s=env.number("ERLESS_SCRUB_BYTES_S", 2 << 20),
        sample=env.number("ERLESS_SAMPLE", 0.0, 0.0, 1.0),
        heat_half_life_s=env.number("ERLESS_HEAT_HALF_LIFE_S", 1800.0, 1.0),
        heat_every_s=env.number("ERLESS_HEAT_EVERY_S", 30.0, 0.05),
        heat_bytes=env.integer("ERLESS_HEAT_BYTES", 64 << 20, 1 << 16),
        disk_engine=choice("ERLESS_DISK_ENGINE", "auto", "io_uring", "pread"),  # type: ignore[arg-type]
        disk_depth=env.integer("ERLESS_DISK_DEPTH", 256, 1, 4096),
        disk_waiting=env.integer("ERLESS_DISK_WAITING", 32_768),
        follow_s=env.number("ERLESS_FOLLOW_S", 1.0) if kind == "gateway" else 0.0,
        behind_s=env.number("ERLESS_BEHIND_S", 60.0, 0.001),
        max_connections=env.integer("ERLESS_MAX_CONNECTIONS", 4096),
        max_client_connections=env.integer("ERLESS_MAX_CLIENT_CONNECTIONS", 3072),
        device=choice("ERLESS_DEVICE", "cpu", "cuda"),  # type: ignore[arg-type]
        precision=choice("ERLESS_PRECISION", "fp32", "bf16"),  # type: ignore[arg-type]
        max_delay_ms=env.number("ERLESS_MAX_DELAY_MS", 1.0),
        max_coalesce=env.integer("ERLESS_MAX_COALESCE", 256),
        otlp_endpoint=env.text("OTEL_EXPORTER_OTLP_ENDPOINT"),
        drain_s=env.number("ERLESS_DRAIN_S", 30.0),
        connection_age_s=env.number("ERLESS_CONNECTION_AGE_S", 10.0, 0.01),
        log=choice("ERLESS_LOG", "info", "debug", "warning"),  # type: ignore[arg-type]
        threads=env.integer("ERLESS_THREADS", 1),
        workers=_workers(env),
    )
