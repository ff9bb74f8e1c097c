"""From one release to another: start, prove, switch, drain. Interrupted before the switch: undone.

Every function of the new release has been ready once before the first query reaches its gateway;
shards that both releases name are the same functions and stay as they are. The switch is the new
gateway's first accept on the shared socket; the old gateway then accepts no more, answers what it
has, and ends. A query is answered by one gateway, so by one release.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from erless.deploy.local.supervisor.fleet import LocalFleet, Report
from erless.deploy.local.supervisor.folder.events import log_event
from erless.deploy.local.supervisor.function import LocalFunction
from erless.deploy.local.supervisor.spec import ReleaseSpec, StoredState
from erless.deploy.target import place_to_restore
from erless.errors import DeployError, StorageError
from erless.specs.functions import GATEWAY

__all__ = ["deploy", "destroy", "rollback"]

RETRIES = 2  # a function that has been ready before may crash so often during a change


async def deploy(
    fleet: LocalFleet, release: ReleaseSpec, settings: StoredState, timeout_s: float, report: Report
) -> ReleaseSpec:
    """Make `release` current. Does nothing where it is already and all is well.

    Args:
        fleet: what runs.
        release: what shall.
        settings: port, keep, limits, timing and webhook from the user; the rest is not read.
        timeout_s: until all is ready.
        report: called with the number of functions that are ready.

    Raises:
        DeployError: a function failed, or the time is over: the old release serves on.
        ConflictError: another change is under way, or the port would change.
    """
    await fleet.begin("deploy")
    try:
        port = fleet.public.getsockname()[1] if fleet.public else 0
        if settings.port and port and settings.port != port:
            raise DeployError(
                f"the gateway listens on port {port}, not {settings.port}: it keeps its port "
                "until it is destroyed"
            )
        options = {
            name: getattr(settings, name) for name in ("keep", "limits", "timing", "webhook")
        }
        before = fleet.state
        pending = before.model_copy(update={**options, "port": port or settings.port})
        fleet.state = pending
        try:
            # deployed before: keeps its time
            release = before.release(release.key) or release
            return await _switch(fleet, release, timeout_s, report)
        finally:
            if fleet.state is pending:  # nothing was committed
                fleet.state = before
    finally:
        fleet.end()


async def rollback(
    fleet: LocalFleet, prefix: str | None, timeout_s: float, report: Report
) -> ReleaseSpec:
    """Make a kept release current again; None: the one deployed before the current.

    Raises:
        NotDeployedError: there is none.
        DeployError, ConflictError: as `deploy`.
    """
    await fleet.begin("rollback")
    try:
        return await _switch(fleet, _release_to_restore(fleet.state, prefix), timeout_s, report)
    finally:
        fleet.end()


def _release_to_restore(state: StoredState, prefix: str | None) -> ReleaseSpec:
    """The release to go back to. Errors as `place_to_restore`."""
    keys = [release.key for release in state.releases]
    place = None if state.current is None else keys.index(state.current)
    digests = [release.release for release in state.releases]
    return state.releases[place_to_restore(digests, place, prefix)]


async def destroy(fleet: LocalFleet) -> None:
    """Drain and end everything, whoever goes away meanwhile. The folder remains.

    The saved state goes first: a supervisor that is killed here is not followed by one that starts
    everything again, and `erless destroy` finishes what is left.

    Raises:
        ConflictError: another change is under way.
        StorageError: the disk refused; nothing has changed.
    """
    await fleet.begin("destroy")
    try:
        fleet.folder.forget_state()
    except BaseException:
        fleet.end()
        raise
    fleet.destroyed = True
    fleet.guardian.end()
    await fleet.stop()


async def _switch(
    fleet: LocalFleet, release: ReleaseSpec, timeout_s: float, report: Report
) -> ReleaseSpec:
    fleet.folder.check_space()
    before = _rotate_secret(fleet, release)
    former_keys = set(fleet.functions)
    resting = {key for key, function in fleet.functions.items() if not function.active}
    try:
        async with asyncio.timeout(timeout_s):
            functions = [fleet.open(spec) for spec in release.behind]
            serving = _serving(fleet)
            await _prove(functions, release, serving, report)
            gateway = fleet.open_gateway(release)
            gateway.activate(release.gateway, serving.get(GATEWAY, 0))
            await _settle(
                [function for function in functions if function.spec.scaling.min_scale] + [gateway],
                report,
            )
        fleet.commit(_with_current(fleet.state, release))
    except TimeoutError:
        opened = [fleet.functions.get(function.key) for function in release.functions]
        late = [function for function in opened if function is not None and not function.settled]
        late_names = ", ".join(
            f"{function.spec.name} ({function.reason or 'loading'})" for function in late
        )
        await fleet.finish(_undo(fleet, former_keys, resting, before))
        raise DeployError(f"not ready within {timeout_s:g} s: {late_names}") from None
    except BaseException:
        await fleet.finish(_undo(fleet, former_keys, resting, before))
        raise
    log_event("current", release=release.release)
    await fleet.finish(_retire(fleet))
    return release


def _with_current(state: StoredState, release: ReleaseSpec) -> StoredState:
    """`state` with `release` current, and no more releases than are kept."""
    if state.release(release.key) is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        release = release.model_copy(update={"deployed_at": now})
        releases = (release, *state.releases)
    else:
        releases = tuple(release if kept.key == release.key else kept for kept in state.releases)
    remaining = [
        kept
        for position, kept in enumerate(releases)
        if position < state.keep or kept.key == release.key
    ]
    return state.model_copy(update={"current": release.key, "releases": tuple(remaining)})


def _serving(fleet: LocalFleet) -> dict[str, int]:
    """Replicas of the current release by function name: its successor takes over at that size."""
    current = fleet.state.release(fleet.state.current)
    return (
        {
            function.name: fleet.functions[function.key].wanted
            for function in current.functions
            if function.key in fleet.functions
        }
        if current
        else {}
    )


async def _prove(
    functions: Sequence[LocalFunction],
    release: ReleaseSpec,
    serving: dict[str, int],
    report: Report,
) -> None:
    """Start every function that has not been ready yet, a few at a time; then let it scale.

    One that may be at zero goes there at once: with tables larger than memory, cold shards are
    proven one after the other. A decoy is never started.
    """
    limit = asyncio.Semaphore(max(2, os.cpu_count() or 2))
    specs = {spec.key: spec for spec in release.behind}
    done = 0

    async def prove(function: LocalFunction) -> None:
        nonlocal done
        async with limit:
            spec = specs[function.spec.key]
            if not function.proven and not spec.decoy:
                function.hold = max(1, spec.scaling.initial_scale)
            function.activate(spec, serving.get(spec.name, 0))
            if function.hold:
                await _settle([function])
            function.hold = 0
            function.converge()
        done += 1
        report("functions ready", done, len(release.functions))

    try:
        async with asyncio.TaskGroup() as tasks:
            for function in functions:
                tasks.create_task(prove(function))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _settle(functions: Sequence[LocalFunction], report: Report | None = None) -> None:
    """Wait until each has all the replicas it wants; fail with the first that fails."""
    while not all(function.settled for function in functions):
        for function in functions:
            if function.failures > (RETRIES if function.proven else 0) and not function.settled:
                raise DeployError(f"{function.spec.name} does not start: {function.reason}")
        await asyncio.sleep(functions[0].timing.ready_poll_s)
    if report is not None:
        report("gateway ready", 1, 1)


def _rotate_secret(fleet: LocalFleet, release: ReleaseSpec) -> tuple[str, ...]:
    """Give the gateway that will start a secret of its own; returns what was accepted before.

    The gateway that serves sends the old secret until it has ended. Where no gateway will start,
    because this very release serves, the secret stays.
    """
    serving = fleet.functions.get(release.gateway.key)
    if serving is not None and serving.active:
        return fleet.folder.secret.lines()
    return fleet.folder.secret.rotate()


async def _undo(
    fleet: LocalFleet, former_keys: set[str], resting: set[str], secret: tuple[str, ...]
) -> None:
    """Restore what was: end new functions, rest those that rested, scale shared ones as before."""
    new = [key for key in fleet.functions if key not in former_keys]
    for key in [*new, *(key for key in resting if key in fleet.functions)]:
        fleet.functions[key].pause()
    current = fleet.state.release(fleet.state.current)
    for spec in current.behind if current else ():
        function = fleet.functions[spec.key]
        function.hold = 0
        function.activate(spec)
    await asyncio.gather(*(fleet.functions[key].gone() for key in new))
    fleet.drop(new)
    with suppress(StorageError):  # both secrets are accepted then
        fleet.folder.secret.restore(secret)
    if current is None and fleet.public is not None:
        fleet.public.close()
        fleet.public = None


async def _retire(fleet: LocalFleet) -> None:
    """Drain gateways that are not current, then what only they used; forget releases not kept."""
    current = fleet.state.release(fleet.state.current)
    used = {function.key for function in current.functions} if current else set()
    old = [function for key, function in fleet.functions.items() if key not in used]
    gateways = [function for function in old if function.spec.kind == GATEWAY]
    for group in (gateways, [function for function in old if function.spec.kind != GATEWAY]):
        for function in group:
            function.pause()
        await asyncio.gather(*(function.gone() for function in group))
    # a kept gateway is made anew at a rollback: its shards' ports may have changed by then
    kept_keys = {spec.key for release in fleet.state.releases for spec in release.behind} | used
    fleet.drop([key for key in fleet.functions if key not in kept_keys])
    with suppress(StorageError):  # both secrets are accepted until the next deploy then
        fleet.folder.secret.settle()
