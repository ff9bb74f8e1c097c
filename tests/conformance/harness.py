"""What a target must bring to be tested: one class here, one line in `HARNESSES`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from erless.deploy.desired_release import load_desired
from erless.deploy.local.supervisor.replica.orphans import find_orphans
from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import Desired, Target
from erless.specs.config import Config, LocalConfig, TargetsConfig
from tests.deploy.fleets import kill_everything
from tests.releases import Made

__all__ = ["HARNESSES", "Harness", "LocalHarness"]


class Harness(Protocol):
    """A place of its own for one target, made for tests: windows of seconds, not minutes."""

    scales_to_zero: bool

    @property
    def target(self) -> Target:
        """What is tested."""

    def of_model(self, name: str) -> Target:
        """The same place, as `--model NAME` means it."""

    def desired(self, made: Made) -> Desired:
        """`made` in a store that the target's functions reach."""

    def leftovers(self) -> list[str]:
        """What of erless is still there: processes, files, objects."""

    def end(self) -> None:
        """Whatever the test did, nothing is left."""


class LocalHarness:
    """Processes of this machine under a temporary folder."""

    scales_to_zero = True

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.config = Config(
            targets=TargetsConfig(local=LocalConfig(state=self.state, window_s=3.0, grace_s=0.5))
        )
        self.target = LocalTarget(self.config, Timing(poll_s=0.2))

    def of_model(self, name: str) -> Target:
        targets = self.config.targets.model_copy(update={"model": name})
        config = self.config.model_copy(update={"targets": targets})
        return LocalTarget(config, Timing(poll_s=0.2))

    def desired(self, made: Made) -> Desired:
        return load_desired(made.store, made.release.digest, None)

    def leftovers(self) -> list[str]:
        found = find_orphans(self.state)
        for each in found:
            os.close(each.pidfd)
        files = [str(each) for each in self.state.rglob("*")] if self.state.exists() else []
        return [f"process {each.pid} of {each.function}" for each in found] + files

    def end(self) -> None:
        for folder in (self.state, *self.state.glob("models/*")):
            kill_everything(folder)


def _kubernetes(folder: Path) -> Harness:
    from erless.deploy.plain_kubernetes.target import KubernetesTarget
    from tests.conformance.cluster import ClusterHarness

    return ClusterHarness(KubernetesTarget)


def _knative(folder: Path) -> Harness:
    from erless.deploy.knative.target import KnativeTarget
    from tests.conformance.cluster import ClusterHarness

    return ClusterHarness(KnativeTarget)


HARNESSES: dict[str, Callable[[Path], Harness]] = {
    "local": LocalHarness,
    "knative": _knative,
    "kubernetes": _kubernetes,
}
