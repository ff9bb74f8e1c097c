"""Target `local`: this machine, plain processes, one supervisor. What the verbs call."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from erless.deploy.canary import canary_digest
from erless.deploy.deployed_models import (
    deployment_to_change,
    deployment_to_compare,
    deployment_to_destroy,
    find_deployment,
)
from erless.deploy.local import systemd
from erless.deploy.local.faults import LocalFaults
from erless.deploy.local.functions import LocalSettings, changes, place
from erless.deploy.local.model_folders import deployed_in, model_folder, remove_empty
from erless.deploy.local.status import facts_without_supervisor, gateway_url, status_of
from erless.deploy.local.supervisor.client import call, command
from erless.deploy.local.supervisor.folder.identities import check_cryptography
from erless.deploy.local.supervisor.folder.logs import read_logs
from erless.deploy.local.supervisor.folder.state_folder import ALERTS, StateFolder
from erless.deploy.local.supervisor.replica.cgroups import obstacle
from erless.deploy.local.supervisor.replica.orphans import end_all
from erless.deploy.local.supervisor.spec import ReleaseSpec, StoredState, Timing
from erless.deploy.local.supervisor.watchdog import end_watchdog
from erless.deploy.target import Change, Deployment, Desired, Status, Watched, served_model
from erless.deploy.webhook import webhook_url
from erless.errors import ConfigError, ConflictError, DeployError, NotDeployedError, StorageError
from erless.progress import Progress
from erless.specs.alerts import Alert
from erless.specs.config import Config
from erless.specs.functions import GATEWAY

__all__ = ["LocalTarget"]

ANSWER_S = 10.0  # of the supervisor, to a question
KILL_S = 5.0  # from the SIGTERM of a supervisor that does not answer to its SIGKILL


class LocalTarget:
    """Functions as processes of this machine, in the state folder of `erless.yaml`.

    Args:
        config: of the project.
        timing: how often the supervisor polls; tests take smaller numbers.
        key: of the model that all verbs are about, where that is known.

    Raises:
        ConfigError: a token or the webhook is to come from a variable that is not set.
    """

    name = "local"

    def __init__(
        self, config: Config, timing: Timing | None = None, key: str | None = None
    ) -> None:
        options = config.targets.local
        self._root = Path(options.state)
        self._config, self._key = config, key
        self._asked = config.targets.model or ""
        self._timing = timing or Timing(poll_s=options.poll_s)
        self._options = options
        self._webhook = webhook_url(config.decoys.alert.webhook_env)
        if config.security.mutual_tls:
            check_cryptography()
        name = config.gateway.token_env
        if name and not os.environ.get(name):
            raise ConfigError(f"gateway.token_env: the environment has no variable {name}")

    def _site(self, folder: StateFolder) -> LocalSettings:
        """What functions of the deployment in `folder` need to know."""
        config, name = self._config, self._config.gateway.token_env
        return LocalSettings(
            cache=folder.cache,
            gateway=config.gateway,
            observe=config.observe,
            freshness=config.freshness,
            traces=config.traces,
            token=os.environ[name] if name else None,
            ids_in_order=config.decoys.alert.ids_in_order,
            canary=canary_digest(config.gateway, guarded=bool(name or config.gateway.tokens_file)),
            identities=folder.identities.path if config.security.mutual_tls else None,
            sla_ms=config.traffic.sla_p95_ms,
            window_s=self._options.window_s,
            grace_s=self._options.grace_s,
        )

    def by_model(self) -> tuple[LocalTarget, ...]:
        """See `Target.by_model`."""
        if self._key is not None or self._asked:
            keys = [self._find_key()]
        else:
            keys = [deployment.key for deployment in deployed_in(self._root)]
        return tuple(LocalTarget(self._config, self._timing, key) for key in keys)

    def _find_key(self) -> str:
        """The key of the deployment that verbs are about. Errors as `find_deployment`."""
        if self._key is not None:
            return self._key
        return find_deployment(self._asked, deployed_in(self._root))

    @property
    def _folder(self) -> StateFolder:
        """Of the deployment that verbs are about. Errors as `find_deployment`."""
        return model_folder(self._root, self._find_key())

    def _folder_for(self, desired: Desired, *, compare: bool = False) -> StateFolder:
        """Where `desired` goes, or where that is refused is compared with.

        Errors as `deployment_to_change`.
        """
        choose = deployment_to_compare if compare else deployment_to_change
        model, replaces = desired.release.model.name, desired.replace_model
        key = self._key
        if key is None:
            key = choose(self._asked, model, deployed_in(self._root), replace=replaces)
        return model_folder(self._root, key)

    def replaced_model(self, desired: Desired) -> str:
        """See `Target.replaced_model`."""
        folder = self._folder_for(desired)
        return served_model(_deployments(folder))

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        """What `deploy` would do now; changes nothing."""
        folder = self._folder_for(desired, compare=True)
        state = folder.load()
        return changes(state.release(state.current), place(desired, self._site(folder)))

    def deploy(self, desired: Desired, progress: Progress, timeout_s: float) -> Deployment:
        """See `Target.deploy`."""
        folder = self._folder_for(desired)
        release = place(desired, self._site(folder))
        if self._options.limits and (reason := obstacle()):
            raise DeployError(f"targets.local.limits: {reason}")
        if not self._options.limits and (sized := _sized(release)):
            raise DeployError(
                f"targets.local.limits is false: the plan's autoscaler `status` gives {sized} and "
                "others their vCPU by cgroups; set it to true, or planner.autoscaler to kpa"
            )
        settings = StoredState(
            port=self._options.port,
            keep=self._options.keep,
            limits=self._options.limits,
            timing=self._timing,
            webhook=self._webhook,
        )
        if self._options.systemd and (reason := systemd.obstacle()):
            raise DeployError(f"targets.local.systemd: {reason}")
        folder.make()
        request = {
            "do": "deploy",
            "release": release.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
        }
        try:
            _change(folder, request, progress, timeout_s, len(release.functions))
        except KeyboardInterrupt:
            if folder.load().current == release.key:
                raise KeyboardInterrupt(
                    f"release {release.release[:12]} is current: the switch had been made"
                ) from None
            raise
        if self._options.systemd:
            _hand_to_systemd(folder)
        return _current(folder)

    def status(self) -> Status:
        """See `Target.status`.

        A dead supervisor is started first. Where it cannot be started, or does not answer, what
        can be seen without it is returned, with the reason.
        """
        return status_of(self._facts(), self.name)

    def processes(self) -> dict[str, list[int]]:
        """Process ids of all replicas by function; `supervisor` has its own and its zygote's."""
        facts = self._facts()
        pids = {
            function["name"]: [replica["pid"] for replica in function["replicas"]]
            for function in facts["functions"]
        }
        return {**pids, "supervisor": facts["supervisor"]["pids"]}

    def faults(self) -> LocalFaults:
        """The ways to break this deployment on purpose. Raises NotDeployedError."""
        return LocalFaults(self._existing_folder())

    def _facts(self) -> dict[str, Any]:
        folder = self._existing_folder()
        facts: dict[str, Any]
        try:
            facts = command(folder, {"do": "status"}, ANSWER_S)
        except (DeployError, StorageError) as error:
            # it may have been destroyed meanwhile
            return facts_without_supervisor(self._existing_folder(), str(error))
        if facts["current"] is None and not facts["changing"]:
            raise NotDeployedError(f"nothing is deployed in {folder.path}")
        return facts

    def _existing_folder(self) -> StateFolder:
        folder = self._folder
        if not folder.exists:
            raise NotDeployedError(f"nothing is deployed in {folder.path}")
        return folder

    def deployments(self) -> tuple[Deployment, ...]:
        """See `Target.deployments`."""
        try:
            return _deployments(self._folder)
        except NotDeployedError:
            return ()

    def rollback(self, release: str | None, progress: Progress, timeout_s: float) -> Deployment:
        """See `Target.rollback`; `release` may be the beginning of a digest."""
        folder = self._existing_folder()
        _change(folder, {"do": "rollback", "release": release}, progress, timeout_s, None)
        return _current(folder)

    def logs(self, function: str | None, lines: int, follow: bool) -> Iterator[str]:
        """See `Target.logs`. Function names are the plan's; `supervisor` is one of them."""
        folder = self._folder
        names = {
            spec.key: spec.name
            for release in reversed(folder.load().releases)
            for spec in release.functions
        }
        names |= {"supervisor": "supervisor", ALERTS: ALERTS}
        if not folder.logs.is_dir():
            raise NotDeployedError(f"nothing was deployed in {folder.path}")
        if function is not None and function not in names.values():
            listed = ", ".join(sorted(set(names.values())))
            raise DeployError(f"there is no function {function!r}; there are {listed}")

        def display_name(key: str) -> str | None:
            name = names.get(key, key)
            return name if function in (None, name) else None

        return read_logs(folder.logs, display_name, lines, follow)

    def alerts(
        self, lines: int, follow: bool, watched: Callable[[], Watched] = Watched
    ) -> Iterator[Alert]:
        """See `Alerting.alerts`."""
        folder = self._folder
        if not folder.exists:
            raise NotDeployedError(f"nothing is deployed in {folder.path}")

        def display_name(key: str) -> str | None:
            return ALERTS if key == ALERTS else None

        for line in read_logs(folder.logs, display_name, lines, follow):
            with contextlib.suppress(ValueError, KeyError):  # a line that was cut short
                yield Alert.model_validate(json.loads(line.removeprefix(f"{ALERTS} "))["alert"])

    def destroy(self, progress: Progress, timeout_s: float) -> None:
        """See `Target.destroy`. Works without a supervisor, and with one that hangs, as well.

        Interrupted, it is completed by the supervisor, or by the next `destroy`.
        """
        key = self._key
        if key is None:
            key = deployment_to_destroy(self._asked, deployed_in(self._root))
        folder = model_folder(self._root, key)
        if not folder.path.is_dir() or (not folder.run.is_dir() and not folder.exists):
            return
        with progress.step("destroy", None, "steps"):
            deadline_s = time.monotonic() + timeout_s
            try:
                if folder.supervisor_pid() is not None:
                    _destroy_by_supervisor(folder, deadline_s)
            except KeyboardInterrupt:
                if folder.exists:
                    raise
                raise KeyboardInterrupt("what is left is being removed") from None
            folder.forget_state()
            end_watchdog(folder.path)
            end_all(folder.path, max(1.0, deadline_s - time.monotonic()))
            folder.remove()
            systemd.remove_unit(folder.path)
            remove_empty(self._root)


def _hand_to_systemd(folder: StateFolder) -> None:
    """Have the supervisor run by systemd, where it does not yet.

    The one that made the deployment is killed: the one that systemd starts follows it as any
    other would, without a refused query.
    """
    path = folder.path
    systemd.write_unit(path)
    pid = folder.supervisor_pid()
    if pid is not None and not systemd.runs(path, pid):
        end_watchdog(path)
        _end_supervisor(folder, signal.SIGKILL, time.monotonic() + KILL_S)
    systemd.start_unit(path)


def _change(
    folder: StateFolder,
    request: dict[str, Any],
    progress: Progress,
    timeout_s: float,
    total: int | None,
) -> None:
    with progress.step(request["do"], total, "steps") as step:
        reported = 0

        def report(label: str, done: int, of: int) -> None:
            nonlocal reported
            step.advance(max(0, done - reported) if label == "functions ready" else 1)
            reported = max(reported, done)

        command(folder, request, timeout_s, report)


def _current(folder: StateFolder) -> Deployment:
    return next(deployment for deployment in _deployments(folder) if deployment.current)


def _deployments(folder: StateFolder) -> tuple[Deployment, ...]:
    state = folder.load()
    return tuple(_deployment(release, state) for release in state.releases)


def _destroy_by_supervisor(folder: StateFolder, deadline_s: float) -> None:
    """Have the supervisor drain everything and end; end it where it does not answer.

    Raises:
        ConflictError: another change is under way.
    """
    left_s = deadline_s - time.monotonic()
    try:
        call(folder, {"do": "ping"}, ANSWER_S)
        call(folder, {"do": "destroy"}, left_s)
    except ConflictError:
        raise
    except DeployError:  # it hangs, or has ended meanwhile
        folder.forget_state()
        end_watchdog(folder.path)
        _end_supervisor(folder, signal.SIGTERM, min(deadline_s, time.monotonic() + KILL_S))
        _end_supervisor(folder, signal.SIGKILL, time.monotonic() + KILL_S)
        return
    while folder.supervisor_pid() is not None:
        if time.monotonic() > deadline_s:
            raise DeployError("the supervisor did not end in time")
        time.sleep(0.02)


def _end_supervisor(folder: StateFolder, number: signal.Signals, deadline_s: float) -> None:
    pid = folder.supervisor_pid()
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    while folder.supervisor_pid() is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _sized(release: ReleaseSpec) -> str:
    """A function whose replicas change their size, if there is one."""
    return next((function.name for function in release.functions if function.changes_size), "")


def _deployment(release: ReleaseSpec, state: StoredState) -> Deployment:
    return Deployment(
        release=release.release,
        url=gateway_url(state.ports.get(GATEWAY), release.gateway.scheme),
        deployed_at=release.deployed_at,
        current=release.key == state.current,
        model=release.model,
    )
