"""The environment variables of a function and what each means; documentation is made from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from erless.serve.settings import Kind, Settings

__all__ = ["VARIABLES", "Variable", "default_text"]

GATEWAY: tuple[Kind, ...] = ("gateway",)
DENSE: tuple[Kind, ...] = ("dense",)
SPARSE: tuple[Kind, ...] = ("sparse",)
ALL: tuple[Kind, ...] = ("sparse", "dense", "gateway")


@dataclass(frozen=True)
class Variable:
    """One variable: the setting that it fills, the functions that read it, and what it means."""

    name: str
    setting: str
    kinds: tuple[Kind, ...]
    meaning: str


VARIABLES = (
    Variable("ERLESS_STORE", "store", ALL, "directory or `s3://bucket/prefix`; required"),
    Variable("ERLESS_ENDPOINT_URL", "endpoint_url", ALL, "of an S3 API other than AWS's"),
    Variable("ERLESS_CACHE", "cache", ALL, "folder in which what came from S3 is kept"),
    Variable("ERLESS_CACHE_BYTES", "cache_bytes", ALL, "bound of that folder"),
    Variable("ERLESS_SHARD", "digest", SPARSE, "the shard manifest's digest; required"),
    Variable(
        "ERLESS_RELEASE",
        "digest",
        ("gateway", "dense"),
        "the release manifest's digest; required",
    ),
    Variable(
        "ERLESS_SHARD_URLS",
        "shard_urls",
        GATEWAY,
        'JSON `{shard digest: "http://host:port"}` of every remote shard; required',
    ),
    Variable(
        "ERLESS_DENSE_URL",
        "dense_url",
        GATEWAY,
        "the dense function; without it the tower runs inside the gateway",
    ),
    Variable(
        "ERLESS_GATEWAY_URL",
        "gateway_url",
        GATEWAY,
        "the deployment's gateway as its functions reach it: while that does not answer for this "
        "release, a gateway gets ready only once all functions that it calls have answered",
    ),
    Variable(
        "ERLESS_FUNCTIONS_WAIT_S", "functions_wait_s", GATEWAY, "longest that it waits so, in s"
    ),
    Variable("ERLESS_HOST", "host", ALL, "address to listen on; `::` is all, IPv6 and IPv4"),
    Variable("PORT", "port", ALL, "port to listen on; 0 takes a free one and logs it"),
    Variable(
        "ERLESS_LISTEN_FD",
        "listen_fd",
        ALL,
        "instead of PORT: an inherited listening socket that all replicas share; accepted from "
        "only once ready, so connections wait in the kernel's backlog for a ready replica",
    ),
    Variable(
        "ERLESS_ADMIN_FD",
        "admin_fd",
        ALL,
        "an inherited private listening socket (unix) of this replica: the same HTTP API, accepted "
        "from at once, without token or secret; what a supervisor polls for health and metrics",
    ),
    Variable("ERLESS_SLA_MS", "sla_ms", ("gateway", "dense"), "objective of the p95 latency"),
    Variable(
        "ERLESS_DEADLINE_MS",
        "deadline_ms",
        GATEWAY,
        "most a query may take when its client names no deadline, long enough for a cold start",
    ),
    Variable(
        "ERLESS_COLD_MISS",
        "cold_miss",
        GATEWAY,
        "`wait`, or `default`: default vectors in place of a shard that sleeps",
    ),
    Variable(
        "ERLESS_DEGRADED_SHARE",
        "degraded_share",
        GATEWAY,
        "error budget of `default`: at most this share of all queries, and 20 in a row; beyond it "
        "queries wait",
    ),
    Variable("ERLESS_HEDGE", "hedge", GATEWAY, "`1`: a second call to a shard slower than its p95"),
    Variable(
        "ERLESS_HALF_PARTIALS",
        "float16_partials",
        GATEWAY,
        "`1`: partials cross the wire in float16: half the bytes, three digits",
    ),
    Variable(
        "ERLESS_TOKEN",
        "token",
        GATEWAY,
        "bearer token that clients must send, for `/metrics` and `/openapi.json` too",
    ),
    Variable(
        "ERLESS_TOKENS_FILE",
        "tokens_file",
        GATEWAY,
        "instead of ERLESS_TOKEN, a file of SHA-256 of tokens, one a line as `sha256sum` prints: "
        "any of them is accepted, and the file is looked at every second",
    ),
    Variable(
        "ERLESS_CANARY_SHA256",
        "canary",
        GATEWAY,
        "SHA-256 of a token that opens nothing: whoever sends it gets the 401 of any wrong token, "
        "and an alert is raised (docs/decoys.md)",
    ),
    Variable(
        "ERLESS_IDS_IN_ORDER",
        "ids_in_order",
        GATEWAY,
        "`1`: an alert where one client takes a table's ids in order (docs/decoys.md)",
    ),
    Variable(
        "ERLESS_ALERTS_SOCKET",
        "alerts_socket",
        ALL,
        "path of a unix datagram socket that takes alerts as JSON, beside the log",
    ),
    Variable(
        "ERLESS_TLS_CERTIFICATE",
        "tls_certificate",
        GATEWAY,
        "PEM file of the certificate that clients are shown, and of its chain: the port speaks "
        "HTTPS. It and the key are looked at before every handshake",
    ),
    Variable("ERLESS_TLS_KEY", "tls_key", GATEWAY, "PEM file of the certificate's key"),
    Variable(
        "ERLESS_IDENTITY",
        "identity",
        ALL,
        "folder with `tls.crt`, `tls.key` and `ca.crt`: gateway and functions speak mutual TLS. "
        "Looked at before every handshake",
    ),
    Variable(
        "ERLESS_IDENTITY_PREFIX",
        "identity_prefix",
        ALL,
        "URI that the names of all identities begin with, such as `spiffe://erless/NAME/`: behind "
        "it `gateway`, or the kind and the first 16 digits of the digest, `sparse-…`, `dense-…`",
    ),
    Variable(
        "ERLESS_OPEN_READS",
        "open_reads",
        ALL,
        "`1`: `/metrics` and `/openapi.json` of a gateway need no token; whoever shows a function "
        "with an identity no certificate, or another's, may ask for health and metrics",
    ),
    Variable(
        "ERLESS_GRPC",
        "grpc",
        GATEWAY,
        "`1`: HTTP/2 without TLS negotiation (h2c) is spoken on the same port, and gRPC on it; "
        "needs `pip install 'erless[grpc]'`",
    ),
    Variable(
        "ERLESS_SECRET_FILE",
        "secret_file",
        ALL,
        "file with the secret of the deployment, 16 to 128 of A-Z a-z 0-9 _ -: the gateway shows "
        "it (`erless-secret`), sparse and dense functions answer nobody else (401) but for `/v2`, "
        "health and `/metrics`. It may hold several, one a line: the first is shown, all are "
        "accepted, and the file is looked at every second",
    ),
    Variable("ERLESS_SECRET", "secret", ALL, "the secret itself, where there is no such file"),
    Variable(
        "ERLESS_MAX_IN_FLIGHT", "max_in_flight", ALL, "queries at once; beyond it 503, Retry-After"
    ),
    Variable("ERLESS_MAX_BATCH", "max_batch", ALL, "samples per query"),
    Variable(
        "ERLESS_COALESCED_QUERIES",
        "coalesced_queries",
        GATEWAY,
        "most queries that are answered together where they come in the same moment; 1: each by "
        "itself",
    ),
    Variable("ERLESS_MAX_BODY_BYTES", "max_body_bytes", ALL, "of a request; 413 beyond it"),
    Variable(
        "ERLESS_MEMORY_IN_FLIGHT_BYTES",
        "memory_in_flight_bytes",
        ALL,
        "memory that queries in flight may hold, bodies and answers; beyond it 503. Without it "
        "half of what the container's limit leaves once all is loaded, or a quarter of the machine",
    ),
    Variable(
        "ERLESS_REWRITTEN_BYTES",
        "rewritten_bytes",
        ("sparse", "gateway"),
        "memory for a copy of all rows with those that generations changed in place, so that "
        "lookups cost what they did (docs/generations.md); beyond it changed rows lie beside. "
        "Without it a quarter of what the container's limit leaves once all rows are in memory, or "
        "a sixteenth of the machine, and 128 MB in a gateway at least",
    ),
    Variable(
        "ERLESS_SCRUB_BYTES_S",
        "scrub_bytes_s",
        ("sparse", "gateway"),
        "mapped files are hashed again in the background, so many bytes a second; 0: only their "
        "sizes are looked at",
    ),
    Variable(
        "ERLESS_FOLLOW_S",
        "follow_s",
        ("gateway",),
        "seconds between two looks for the next generation of changed rows; 0: none is looked for",
    ),
    Variable(
        "ERLESS_SAMPLE",
        "sample",
        GATEWAY,
        "share of queries whose row ids are counted, for live heat in the store; 0: none",
    ),
    Variable(
        "ERLESS_HEAT_HALF_LIFE_S",
        "heat_half_life_s",
        GATEWAY,
        "of live heat: an access weighs half as much after so many seconds",
    ),
    Variable(
        "ERLESS_HEAT_EVERY_S",
        "heat_every_s",
        GATEWAY,
        "of live heat: seconds between two writes to the store",
    ),
    Variable(
        "ERLESS_HEAT_BYTES", "heat_bytes", GATEWAY, "of live heat: counters of all tables together"
    ),
    Variable(
        "ERLESS_BEHIND_S",
        "behind_s",
        ("sparse", "dense"),
        "most seconds that fetching a generation's part may take: beyond it the function answers "
        "on, but is no longer ready or live, so that another takes its place",
    ),
    Variable(
        "ERLESS_DISK_ENGINE",
        "disk_engine",
        SPARSE,
        "of the disk tier: `io_uring`, `pread` (threads), or `auto`: io_uring where it works",
    ),
    Variable("ERLESS_DISK_DEPTH", "disk_depth", SPARSE, "of the disk tier: reads in flight"),
    Variable(
        "ERLESS_DISK_WAITING",
        "disk_waiting",
        SPARSE,
        "of the disk tier: reads that may wait; a query beyond them gets 503, Retry-After",
    ),
    Variable("ERLESS_MAX_CONNECTIONS", "max_connections", ALL, "connections of all clients"),
    Variable(
        "ERLESS_MAX_CLIENT_CONNECTIONS",
        "max_client_connections",
        ALL,
        "connections of one client's address",
    ),
    Variable("ERLESS_DEVICE", "device", DENSE, "`cpu` or `cuda`"),
    Variable("ERLESS_PRECISION", "precision", DENSE, "`fp32` or `bf16`, of the tower"),
    Variable("ERLESS_MAX_DELAY_MS", "max_delay_ms", DENSE, "longest wait of dynamic batching"),
    Variable("ERLESS_MAX_COALESCE", "max_coalesce", DENSE, "most samples of one dynamic batch"),
    Variable("ERLESS_DRAIN_S", "drain_s", ALL, "longest drain after SIGTERM"),
    Variable(
        "ERLESS_CONNECTION_AGE_S",
        "connection_age_s",
        GATEWAY,
        "connections, to shards and from clients, are replaced after so long, so that new replicas "
        "get their share",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "otlp_endpoint",
        ALL,
        "collector of OpenTelemetry (OTLP over HTTP): queries are traced, needs `pip install "
        "'erless[otel]'`; the SDK's other variables hold too, such as OTEL_TRACES_SAMPLER",
    ),
    Variable("ERLESS_LOG", "log", ALL, "`info`, `debug` or `warning`: JSON lines on stderr"),
    Variable(
        "ERLESS_WORKERS",
        "workers",
        ALL,
        "processes that answer for the function on one port, for one that has several vCPU; they "
        "share the rows' memory, count together and get ready together",
    ),
    Variable("ERLESS_THREADS", "threads", ALL, "torch threads of the tower"),
)


def default_text(variable: Variable) -> str:
    """The value of the setting where the variable is absent, as a person writes it; else empty."""
    field = next(field for field in fields(Settings) if field.name == variable.setting)
    match field.default:
        case bool():
            return str(int(field.default))
        case int() | float():
            return f"{field.default:g}" if isinstance(field.default, float) else f"{field.default}"
        case str():
            return field.default
    return ""
