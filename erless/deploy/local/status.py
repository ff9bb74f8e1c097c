"""The supervisor's facts as a `Status`, and the facts that can be had without it."""

from __future__ import annotations

import os
from typing import Any

from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.replica.memory import pss_bytes
from erless.deploy.local.supervisor.replica.orphans import find_orphans
from erless.deploy.local.supervisor.sockets import LOOPBACK
from erless.deploy.local.supervisor.spec import FunctionSpec
from erless.deploy.target import FunctionState, FunctionStatus, Status
from erless.specs.functions import GATEWAY

__all__ = ["facts_without_supervisor", "gateway_url", "status_of"]


def gateway_url(port: int | None, scheme: str) -> str:
    """The gateway's URL; empty where it has no port."""
    return f"{scheme}://{LOOPBACK}:{port}" if port else ""


def facts_without_supervisor(folder: StateFolder, problem: str) -> dict[str, Any]:
    """The facts of `LocalFleet.status` from the saved state and the processes that live.

    Rates are unknown, and given as zero.

    Raises:
        ArtifactError: the saved state is damaged.
    """
    state = folder.load()
    release = state.release(state.current)
    pids: dict[str, list[int]] = {}
    for orphan in find_orphans(folder.path):
        os.close(orphan.pidfd)
        pids.setdefault(orphan.function, []).append(orphan.pid)
    functions = release.functions if release else ()
    return {
        "current": state.current,
        "release": release.release if release else None,
        "full_copy_bytes": release.full_copy_bytes if release else 0,
        "port": state.ports.get(GATEWAY),
        "scheme": release.gateway.scheme if release else "http",
        "problem": "",
        "changing": "",
        "functions": [
            _facts_from_processes(spec, pids.get(spec.key, []), problem) for spec in functions
        ],
        "supervisor": {"pids": [], "memory_bytes": 0},
    }


def _facts_from_processes(spec: FunctionSpec, pids: list[int], problem: str) -> dict[str, Any]:
    """One function's facts by its processes alone."""
    missing = not pids and spec.scaling.min_scale > 0
    state = FunctionState.FAILING if missing else FunctionState.IDLE
    return {
        "name": spec.name,
        "kind": spec.kind,
        "tier": spec.tier,
        "digest": spec.digest,
        "ready": len(pids),
        "wanted": max(len(pids), spec.scaling.min_scale),
        "rps": 0.0,
        "p95_ms": None,
        "memory_bytes": sum(map(pss_bytes, pids)),
        "disk_bytes": spec.disk_bytes * len(pids),
        "disk_reads_s": None,
        "state": (state if pids or missing else FunctionState.AT_ZERO).value,
        "reason": problem,
        "replicas": [{"pid": pid} for pid in pids],
    }


def status_of(facts: dict[str, Any], target: str) -> Status:
    """The status of `target` from the supervisor's facts (`LocalFleet.status`)."""
    functions = tuple(
        FunctionStatus(
            name=function["name"],
            kind=function["kind"],
            tier=function["tier"],
            digest=function["digest"],
            ready=function["ready"],
            wanted=function["wanted"],
            rps=function["rps"],
            p95_ms=function["p95_ms"],
            memory_bytes=function["memory_bytes"],
            state=FunctionState(function["state"]),
            reason=function["reason"],
            vcpu=function.get("vcpu"),
            decision=function.get("decision", ""),
            disk_bytes=function.get("disk_bytes", 0),  # a supervisor of an older erless has none
            disk_reads_s=function.get("disk_reads_s"),
        )
        for function in facts["functions"]
    )
    if facts["problem"]:
        functions = (
            *functions,
            FunctionStatus(
                name=GATEWAY,
                kind=GATEWAY,
                tier=GATEWAY,
                digest=facts["release"] or "",
                ready=0,
                wanted=1,
                rps=0.0,
                p95_ms=None,
                memory_bytes=0,
                state=FunctionState.FAILING,
                reason=facts["problem"],
            ),
        )
    copies = max((function.ready for function in functions), default=0)
    memory = (
        sum(function.memory_bytes for function in functions) + facts["supervisor"]["memory_bytes"]
    )
    return Status(
        target=target,
        release=facts["release"] or "",
        # a supervisor from before TLS names no scheme
        url=gateway_url(facts["port"], facts.get("scheme", "http")),
        functions=functions,
        memory_bytes=memory,
        model_wise_bytes=max(1, copies) * facts["full_copy_bytes"],
    )
