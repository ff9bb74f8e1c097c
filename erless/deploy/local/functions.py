"""Release + plan → the functions that this machine runs. Pure: `diff` and `deploy` share it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from erless.deploy.local.supervisor.spec import (
    IDENTITY,
    IDENTITY_PREFIX,
    FunctionSpec,
    ReleaseSpec,
)
from erless.deploy.target import Change, Desired
from erless.errors import DeployError
from erless.specs.config import FreshnessConfig, GatewayConfig, ObserveConfig, TracesConfig
from erless.specs.decoys import planned_shard
from erless.specs.functions import GATEWAY
from erless.specs.model import DlrmTower
from erless.specs.odds import ShardOdds
from erless.specs.plan import DensePlan, GatewayPlan, Scaling, ShardPlan
from erless.specs.release import ReleaseManifest, ReleaseShard
from erless.storage.digests import digest_json

__all__ = ["LocalSettings", "changes", "place"]

MODULE = "erless.serve"
PROCESS_BYTES = 36_000_000  # a function without rows, measured: so is a model-wise replica
TORCH_BYTES = 217_000_000  # torch in a process, measured: what a tower of any other kind takes
SHORT = 16  # digits of a digest in a function's key


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """What functions need to know besides release and plan.

    cache: folder for what comes from S3. identities: folder of the functions' certificates, where
    they speak mutual TLS. canary: SHA-256 of a token that opens nothing. ids_in_order: who takes
    ids in order is an alert. window_s, grace_s: instead of the plan's, if not None.
    """

    cache: Path
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    freshness: FreshnessConfig = field(default_factory=FreshnessConfig)
    token: str | None = None
    canary: str | None = None
    ids_in_order: bool = False
    identities: Path | None = None
    traces: TracesConfig = field(default_factory=TracesConfig)
    sla_ms: float = 100.0
    window_s: float | None = None
    grace_s: float | None = None


def place(desired: Desired, site: LocalSettings) -> ReleaseSpec:
    """The functions of a release on this machine.

    Raises:
        DeployError: the plan is not the release's.
    """
    release, plan = desired.release, desired.plan
    if plan.digest != release.plan_digest:
        raise DeployError(
            f"plan {plan.digest[:12]} is not the one of release {release.digest[:12]}, "
            f"which was packed by {release.plan_digest[:12]}"
        )
    common = _common(desired, site)
    planned = {shard.name: shard for shard in plan.shards}
    functions = [_sparse(shard, planned[shard.name], common, site) for shard in release.remote]
    for decoy in desired.decoys:
        like = planned_shard(release, plan, decoy)
        if like is not None:
            function = _sparse(decoy.shard, like, common, site)
            functions.append(function.model_copy(update={"decoy": True}))
    if plan.gateway.dense_placement == "function" and plan.dense is not None:
        dense = plan.dense
        env = {
            **common,
            "ERLESS_RELEASE": release.digest,
            "ERLESS_SLA_MS": f"{site.sla_ms:g}",
            "ERLESS_DEVICE": dense.device,
            "ERLESS_PRECISION": dense.precision,
            "ERLESS_MAX_DELAY_MS": f"{dense.max_delay_ms:g}",
            "ERLESS_MAX_COALESCE": str(dense.max_batch),
            "ERLESS_THREADS": _threads(dense.vcpu),
            **_identity(site, f"dense-{release.tower.sha256[:SHORT]}"),
        }
        functions.append(
            _function(
                "dense",
                "dense",
                "dense",
                release.tower.sha256,
                env,
                dense,
                site,
            )
        )
    functions.append(_gateway(desired, common, site))
    content = [function.model_dump(mode="json") for function in functions]
    return ReleaseSpec(
        key=digest_json({"functions": content}),
        release=release.digest,
        deployed_at="",
        model=release.model.name,
        full_copy_bytes=_full_copy(release),
        functions=tuple(functions),
    )


def _common(desired: Desired, site: LocalSettings) -> dict[str, str]:
    """Where every function finds its artifacts."""
    env = site.traces.environment
    env["ERLESS_CACHE"] = str(site.cache)  # also remembers what was verified, for a directory
    if "://" not in desired.store:
        return {**env, "ERLESS_STORE": str(Path(desired.store).absolute())}
    env["ERLESS_STORE"] = desired.store
    if desired.endpoint_url:
        env["ERLESS_ENDPOINT_URL"] = desired.endpoint_url
    return env


def _sparse(
    shard: ReleaseShard, planned: ShardPlan, common: Mapping[str, str], site: LocalSettings
) -> FunctionSpec:
    in_memory = shard.row_bytes if shard.cache_bytes is None else 0
    env = {**common, "ERLESS_SHARD": shard.digest, **site.freshness.environment(in_memory)}
    env |= _identity(site, f"sparse-{shard.digest[:SHORT]}")
    function = _function(
        "sparse",
        shard.name,
        shard.tier.value,
        shard.digest,
        env,
        planned,
        site,
    )
    odds = ShardOdds.of(planned)
    update: dict[str, float] = {
        "share": odds.share,
        "rows_per_call": odds.rows_per_call,
        "memory_bytes": planned.memory_bytes + site.freshness.memory_bytes(in_memory),
    }
    if shard.cache_bytes is not None:
        update["disk_bytes"] = shard.size_bytes
    return function.model_copy(update=update)


def _gateway(desired: Desired, common: Mapping[str, str], site: LocalSettings) -> FunctionSpec:
    plan, options = desired.plan.gateway, site.gateway
    resident = sum(shard.row_bytes for shard in desired.release.resident)
    env = {
        **common,
        **site.freshness.environment(resident),
        "ERLESS_RELEASE": desired.release.digest,
        "ERLESS_SLA_MS": f"{site.sla_ms:g}",
        "ERLESS_COLD_MISS": options.cold_miss,
        "ERLESS_DEGRADED_SHARE": f"{options.degraded_share:g}",
        "ERLESS_HEDGE": "1" if options.hedge else "0",
        **site.observe.environment,
        "ERLESS_MAX_IN_FLIGHT": str(options.max_in_flight),
        "ERLESS_THREADS": _threads(plan.vcpu),
    }
    if site.token:
        env["ERLESS_TOKEN"] = site.token
    if site.canary:
        env["ERLESS_CANARY_SHA256"] = site.canary
    if site.ids_in_order:
        env["ERLESS_IDS_IN_ORDER"] = "1"
    if options.tokens_file:
        env["ERLESS_TOKENS_FILE"] = str(options.tokens_file.absolute())
    if options.tls:
        env["ERLESS_TLS_CERTIFICATE"] = str(options.tls.certificate.absolute())
        env["ERLESS_TLS_KEY"] = str(options.tls.key.absolute())
    if options.grpc:
        env["ERLESS_GRPC"] = "1"
    env |= _identity(site, GATEWAY)
    function = _function(
        GATEWAY,
        GATEWAY,
        GATEWAY,
        desired.release.digest,
        env,
        plan,
        site,
    )
    memory = plan.memory_bytes + site.freshness.memory_bytes(resident)
    return function.model_copy(update={"memory_bytes": memory})


def _identity(site: LocalSettings, name: str) -> dict[str, str]:
    """Where a function finds its certificate: see docs/functions.md, ERLESS_IDENTITY."""
    if site.identities is None:
        return {}
    deployment = digest_json({"state": str(site.identities)})[:SHORT]
    return {
        IDENTITY: str(site.identities / name),
        IDENTITY_PREFIX: f"spiffe://erless/{deployment}/",
    }


def _function(
    kind: str,
    name: str,
    tier: str,
    digest: str,
    env: dict[str, str],
    planned: ShardPlan | GatewayPlan | DensePlan,
    site: LocalSettings,
) -> FunctionSpec:
    """A function whose key names what it serves and its environment, but not how it scales."""
    scaling, vcpu = _scaling(planned.scaling, site), planned.vcpu
    if scaling.autoscaler == "status" and kind != "dense":
        scaling, vcpu = _sized_by_the_core(scaling, vcpu)
    elif kind != "dense":
        scaling = _by_the_core(scaling, vcpu)
    environment_mark = digest_json({"env": env})[:6]
    return FunctionSpec.model_validate(
        {
            "key": f"{kind}-{digest[:SHORT]}-{environment_mark}",
            "name": name,
            "kind": kind,
            "tier": tier,
            "digest": digest,
            "module": MODULE,
            "env": env,
            "scaling": scaling,
            "vcpu": vcpu,
            "memory_bytes": planned.memory_bytes,
            "requests_per_vcpu_s": planned.qps_per_replica / planned.vcpu,
        }
    )


def _scaling(scaling: Scaling, site: LocalSettings) -> Scaling:
    overrides = {"window_s": site.window_s, "grace_s": site.grace_s}
    return scaling.model_copy(
        update={key: value for key, value in overrides.items() if value is not None}
    )


def _by_the_core(scaling: Scaling, vcpu: float) -> Scaling:
    """What the plan does on several vCPU, replicas of one core each do here.

    They map the same files, so the rows lie in memory once all the same.
    """
    cores = math.ceil(vcpu)
    most = scaling.max_scale * min(cores, os.cpu_count() or 1)
    return scaling.model_copy(update={"target": scaling.target / cores, "max_scale": most})


def _sized_by_the_core(scaling: Scaling, vcpu: float) -> tuple[Scaling, float]:
    """The same for replicas whose size changes: each is one process and grows to one core."""
    most = scaling.max_vcpu or vcpu
    replicas = scaling.max_scale * min(math.ceil(most), os.cpu_count() or 1)
    update = {"max_vcpu": min(most, 1.0), "max_scale": replicas}
    return scaling.model_copy(update=update), min(vcpu, 1.0)


def _threads(vcpu: float) -> str:
    """The tower's threads: as planned, but one core less than there are.

    All functions share this machine; threads that wait for a core that another one has spin.
    """
    return str(max(1, min(int(vcpu), (os.cpu_count() or 1) - 1)))


def _full_copy(release: ReleaseManifest) -> int:
    """Bytes of one model-wise replica: all rows in fp32, the tower, the process, maybe torch."""
    rows = sum(4 * table.rows * table.dim for table in release.model.tables)
    tower = sum(file.size_bytes for file in (*release.tower_files, *release.vocabularies))
    torch = 0 if isinstance(release.model.tower, DlrmTower) else TORCH_BYTES
    return rows + tower + PROCESS_BYTES + torch


def changes(before: ReleaseSpec | None, after: ReleaseSpec) -> tuple[Change, ...]:
    """What deploying `after` over `before` does to each function."""
    old = {function.key: function for function in before.functions} if before else {}
    names = {function.name: function for function in old.values()}
    differences = []
    for function in after.functions:
        former = old.get(function.key)
        if former is None:
            same = names.get(function.name)
            action = "update" if same and same.key not in _keys(after) else "create"
            differences.append(Change(action, function.name, _differs(same, function)))  # type: ignore[arg-type]
        elif former.scaling != function.scaling:
            differences.append(Change("update", function.name, _differs(former, function)))
        else:
            differences.append(
                Change("keep", function.name, f"{function.kind} {function.digest[:12]}")
            )
    updated = {change.what for change in differences if change.action == "update"}
    gone = [function for function in old.values() if function.key not in _keys(after)]
    differences += [
        Change("remove", function.name, f"{function.kind} {function.digest[:12]}")
        for function in gone
        if function.name not in updated
    ]
    return tuple(differences)


def _keys(release: ReleaseSpec) -> set[str]:
    return {function.key for function in release.functions}


def _differs(before: FunctionSpec | None, after: FunctionSpec) -> str:
    """The fields that differ, old → new; a token is never shown."""
    if before is None:
        return f"{after.kind} {after.digest[:12]}"
    differences = []
    if before.digest != after.digest:
        differences.append(f"digest {before.digest[:12]} → {after.digest[:12]}")
    for name in sorted(before.env.keys() | after.env.keys()):
        old, new = before.env.get(name), after.env.get(name)
        if old != new and name not in ("ERLESS_RELEASE", "ERLESS_SHARD"):
            differences.append(name if name == "ERLESS_TOKEN" else f"{name} {old} → {new}")
    old_scaling, new_scaling = dict(before.scaling), dict(after.scaling)
    differences += [
        f"{name} {_rounded(old_scaling[name])} → {_rounded(new_scaling[name])}"
        for name in old_scaling
        if old_scaling[name] != new_scaling[name]
    ]
    return ", ".join(differences)


def _rounded(value: object) -> str:
    """A scaling number for people.

    >>> _rounded(105.39629005059022), _rounded("rps"), _rounded(2)
    ('105.4', 'rps', '2')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)
