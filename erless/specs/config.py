"""`erless.yaml`: what a person writes. Unknown keys are errors that name the nearest valid one."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from erless.errors import ConfigError
from erless.specs.cluster import ClusterConfig
from erless.specs.knative import KnativeConfig
from erless.specs.kubernetes import KubernetesConfig
from erless.specs.plan import Precision
from erless.specs.planning import (
    Architectures,
    Autoscaler,
    BatchSize,
    Disk,
    FanOutLimit,
    Growth,
    LatencyLimit,
    Objective,
    Policy,
    Precisions,
    QueryRate,
    ReplicaFloors,
    ShardSizeLimit,
    Spot,
)
from erless.specs.strict.findings import first_finding, places
from erless.specs.strict.section import Section
from erless.specs.strict.yaml_file import Keys, read_yaml

__all__ = [
    "AlertConfig",
    "Config",
    "DecoysConfig",
    "FreshnessConfig",
    "GatewayConfig",
    "KnativeConfig",
    "KubernetesConfig",
    "LocalConfig",
    "ObserveConfig",
    "PlannerConfig",
    "PrecisionConfig",
    "SecurityConfig",
    "TargetsConfig",
    "TlsConfig",
    "TracesConfig",
    "TrafficConfig",
    "anchored",
    "load_config",
]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class TrafficConfig(Section):
    """What the deployment must serve."""

    qps: QueryRate = 100.0
    batch: BatchSize = 32
    sla_p95_ms: LatencyLimit = 100.0


class PlannerConfig(Section):
    """How rows become functions."""

    policy: Policy = "joint"
    objective: Objective = "dollars"
    max_fan_out: FanOutLimit | None = None
    max_shard_bytes: ShardSizeLimit | None = None
    min_replicas: ReplicaFloors = Field(default_factory=dict)
    arch: Architectures = ("amd64",)
    spot: Spot = False
    disk: Disk = False
    autoscaler: Autoscaler = "kpa"
    growth: Growth = 2.0
    prices: Path | None = Field(None, description="Your own price table; default: the shipped one.")


class PrecisionConfig(Section):
    """Precisions that the plan may use, or the accuracy it may lose by a choice of its own."""

    allowed: Precisions = Field((Precision.FP32,), min_length=1)
    queries: Path | None = Field(
        None, description="Query file to choose precisions by, within the budget below."
    )
    max_auc_loss: float = Field(
        0.001, ge=0, le=1, description="Accuracy budget where the queries have labels."
    )
    max_relative_error: float = Field(
        0.01, ge=0, description="Budget without labels: mean change over mean prediction."
    )


class TlsConfig(Section):
    """HTTPS of the gateway: PEM files, looked at before every handshake."""

    certificate: Path = Field(description="The certificate, and its chain.")
    key: Path = Field(description="Its key.")


class SecurityConfig(Section):
    """Between the functions of a deployment."""

    mutual_tls: bool = Field(
        False, description="Gateway and functions speak TLS and know each other by certificates."
    )


class TracesConfig(Section):
    """OpenTelemetry of the functions; the extra `otel` brings its library."""

    endpoint: str | None = Field(
        None, pattern=r"^https?://", description="Collector that takes OTLP over HTTP; none: off."
    )
    share: float = Field(
        0.01, ge=0, le=1, description="Of the queries whose clients bring no trace of their own."
    )

    @property
    def environment(self) -> dict[str, str]:
        """The SDK's own variables."""
        if self.endpoint is None:
            return {}
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": f"{self.share:g}",
        }


class GatewayConfig(Section):
    """The data path's front."""

    max_in_flight: Count = Field(512, description="Queries at once; beyond it 503 + Retry-After.")
    cold_miss: Literal["wait", "default"] = Field(
        "wait", description="While a function wakes: wait, or answer with the default vector."
    )
    degraded_share: float = Field(
        0.05, ge=0, le=1, description="Most queries that `cold_miss: default` may answer so."
    )
    hedge: bool = Field(False, description="Send a second call to a shard slower than its p95.")
    token_env: str | None = Field(
        None, description="Environment variable that holds the bearer token, if any."
    )
    tokens_file: Path | None = Field(
        None, description="File of SHA-256 of bearer tokens, one a line; looked at every second."
    )
    canary_token_env: str | None = Field(
        None,
        description="Environment variable with a token to leave lying about: it opens nothing, and "
        "whoever sends it raises an alert.",
    )
    tls: TlsConfig | None = Field(None, description="Speak HTTPS (target local).")
    grpc: bool = Field(
        False, description="Speak gRPC too, on the same port; needs the extra `grpc`."
    )
    visibility: Literal["cluster-local", "public"] = Field(
        "cluster-local", description="Who reaches the gateway on Kubernetes."
    )


class ObserveConfig(Section):
    """What gateways count of live queries, for `erless profile --live`, `drift` and `replan`."""

    sample: float = Field(
        0.0, ge=0, le=1, description="Share of queries whose row ids are counted; 0: none."
    )
    half_life_s: float = Field(
        1800.0, ge=1, description="An access weighs half as much after so many seconds."
    )
    every_s: float = Field(
        30.0, ge=0.05, description="Seconds between two writes of live heat to the store."
    )
    memory_bytes: int = Field(
        64 << 20, ge=1 << 16, description="Counters of all tables together, in each gateway."
    )

    @property
    def environment(self) -> dict[str, str]:
        """The gateway's variables; none where nothing is sampled."""
        if not self.sample:
            return {}
        return {
            "ERLESS_SAMPLE": f"{self.sample:g}",
            "ERLESS_HEAT_HALF_LIFE_S": f"{self.half_life_s:g}",
            "ERLESS_HEAT_EVERY_S": f"{self.every_s:g}",
            "ERLESS_HEAT_BYTES": str(self.memory_bytes),
        }


class FreshnessConfig(Section):
    """Changed rows on top of a release."""

    compact_share: float = Field(
        0.0,
        ge=0,
        description="`erless update --follow` folds generations into a new release and deploys it "
        "once they are this share of its rows; 0: never.",
    )
    memory_share: float = Field(
        0.0,
        ge=0,
        le=4,
        description="Memory that functions get beside what is planned, as a share of their rows in "
        "memory: for a copy of them with changed rows in place, so that lookups cost nothing more "
        "(1).",
    )

    def memory_bytes(self, row_bytes: int) -> int:
        """For changed rows, of a function with so many bytes of rows in memory."""
        return math.ceil(self.memory_share * row_bytes)

    def environment(self, row_bytes: int) -> dict[str, str]:
        """Its variables; none where nothing is configured."""
        given = self.memory_bytes(row_bytes)
        return {"ERLESS_REWRITTEN_BYTES": str(given)} if given else {}


class AlertConfig(Section):
    """Where alerts go beside `erless alerts`."""

    webhook_env: str | None = Field(
        None, description="Environment variable with the https:// URL that gets each alert as JSON."
    )
    ids_in_order: bool = Field(
        False,
        description="Raise one where a client takes a table's ids in order, from query to query. A "
        "job that scores everybody does so too.",
    )


class DecoysConfig(Section):
    """Functions that nobody should touch, and what becomes of it when somebody does."""

    count: int = Field(0, ge=0, le=32, description="Decoy shards beside the release's own.")
    budget_mb: int = Field(
        0, ge=0, description="Memory that they may take once they are all awake; 0: any."
    )
    alert: AlertConfig = AlertConfig()


class LocalConfig(Section):
    """This machine, with plain processes."""

    state: Path = Field(Path(".erless"), description="Folder of the supervisor's state.")
    port: int = Field(0, ge=0, le=65535, description="Gateway's port on loopback; 0: any free.")
    keep: Count = Field(
        3, description="Releases kept for `erless rollback`, the current among them."
    )
    limits: bool = Field(
        False, description="Hold replicas to their plan's vCPU and memory (cgroup)."
    )
    systemd: bool = Field(
        False, description="Have a systemd user unit keep the supervisor, after a reboot too."
    )
    poll_s: Positive = Field(2.0, description="Metrics are read and scaling is decided so often.")
    window_s: Positive | None = Field(None, description="Scaling window, instead of the plan's.")
    grace_s: float | None = Field(
        None, ge=0, description="Scale-to-zero grace period, instead of the plan's."
    )


class TargetsConfig(Section):
    """Where to deploy."""

    default: Literal["local", "knative", "kubernetes"] = Field(
        "local", description="Target of `erless deploy`."
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="Name of the model, where several are deployed in one namespace or state "
        "folder; its objects carry it. Default: the only one there.",
    )
    local: LocalConfig = LocalConfig()
    knative: KnativeConfig = KnativeConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()


class Config(Section):
    """All of `erless.yaml`. Relative paths are relative to the file."""

    model: Path = Field(Path("model"), description="The model bundle.")
    profile: Path = Field(Path("profile"), description="The profile of its access log.")
    store: str = Field(
        "releases", min_length=1, description="Where releases go: a folder or s3://bucket/prefix."
    )
    traffic: TrafficConfig = TrafficConfig()
    planner: PlannerConfig = PlannerConfig()
    precision: PrecisionConfig = PrecisionConfig()
    gateway: GatewayConfig = GatewayConfig()
    security: SecurityConfig = SecurityConfig()
    traces: TracesConfig = TracesConfig()
    observe: ObserveConfig = ObserveConfig()
    freshness: FreshnessConfig = FreshnessConfig()
    decoys: DecoysConfig = DecoysConfig()
    targets: TargetsConfig = TargetsConfig()


def load_config(path: Path) -> Config:
    """Read and check `erless.yaml` at `path`; relative paths come back joined to its folder.

    Raises:
        ConfigError: there is no such file; it is not YAML, has an unknown key or a wrong value:
            names file, line and key.
        ArtifactError: it cannot be read.
    """
    document = read_yaml(path)
    for keys in _empty_paths(Config, document.values):
        line = document.lines[keys]
        raise ConfigError(f"{path}:{line}: {'.'.join(keys)}: must be a path, found ''")
    try:
        # as JSON, where a path is a text and a tuple is a list, and nothing else is converted
        config = Config.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        raise ConfigError(_explain(path, error, document.lines)) from error
    return anchored(config, path.parent)


def _empty_paths(
    section: type[BaseModel], values: dict[str, Any], keys: Keys = ()
) -> Iterator[Keys]:
    """Paths that are an empty text, which would otherwise mean the current folder."""
    for name, value in values.items():
        field = section.model_fields.get(name)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        if value == "" and Path in kinds:
            yield (*keys, name)
        for kind in kinds:
            if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Section):
                yield from _empty_paths(kind, value, (*keys, name))


def _explain(path: Path, error: ValidationError, lines: dict[tuple[str, ...], int]) -> str:
    """The first finding as `file:line: key: reason`."""
    keys, words = first_finding(error)
    line = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), 1)
    where = f"{path}:{line}: {'.'.join(keys)}"
    others = places(error) - 1
    more = f" ({others} more)" if others else ""
    if error.errors()[0]["type"] != "extra_forbidden":
        return f"{where}: {words}{more}"
    names = _valid_names(keys[:-1])
    near = difflib.get_close_matches(keys[-1], names, 1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"valid are {', '.join(names)}"
    return f"{where}: unknown key; {hint}{more}"


def _valid_names(keys: tuple[str, ...]) -> list[str]:
    """Field names of the section that `keys` leads to."""
    section: Any = Config
    for key in keys:
        field = section.model_fields.get(key) if hasattr(section, "model_fields") else None
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        section = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(section.model_fields) if section else []


def anchored(config: Config, folder: Path) -> Config:
    """`config` with paths relative to `folder`."""
    targets = config.targets
    store = config.store if "://" in config.store else str(folder / config.store)
    prices = config.planner.prices and folder / config.planner.prices
    return config.model_copy(
        update={
            "model": folder / config.model,
            "profile": folder / config.profile,
            "store": store,
            "gateway": _anchored_gateway(config.gateway, folder),
            "planner": config.planner.model_copy(update={"prices": prices}),
            "targets": targets.model_copy(
                update={
                    "local": targets.local.model_copy(
                        update={"state": folder / targets.local.state}
                    ),
                    "knative": _anchored_cluster(targets.knative, folder),
                    "kubernetes": _anchored_cluster(targets.kubernetes, folder),
                }
            ),
        }
    )


def _anchored_cluster(cluster: ClusterConfig, folder: Path) -> ClusterConfig:
    paths = {name: getattr(cluster, name) for name in ("infra", "kubeconfig", "images_file")}
    return cluster.model_copy(update={name: path and folder / path for name, path in paths.items()})


def _anchored_gateway(gateway: GatewayConfig, folder: Path) -> GatewayConfig:
    tls = gateway.tls
    if tls is not None:
        tls = TlsConfig(certificate=folder / tls.certificate, key=folder / tls.key)
    tokens = gateway.tokens_file and folder / gateway.tokens_file
    return gateway.model_copy(update={"tls": tls, "tokens_file": tokens})
