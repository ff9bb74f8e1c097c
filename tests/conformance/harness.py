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

    def __init__(self, folder: Path) -> None: ...

    @property
    def target(self) -> Target:
        """What is tested."""

    def desired(self, made: Made) -> Desired:
        """`made` in a store that the target's functions reach."""

    def leftovers(self) -> list[str]:
        """What of erless is still there: processes, files, objects."""

    def end(self) -> None:
        """Whatever the test did, nothing is left."""


class LocalHarness:
    """Processes of this machine under a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.config = Config(
            targets=TargetsConfig(local=LocalConfig(state=self.state, window_s=3.0, grace_s=0.5))
        )
        self.target = LocalTarget(self.config, Timing(poll_s=0.2))

    def desired(self, made: Made) -> Desired:
        return load_desired(made.store, made.release.digest, None)

    def leftovers(self) -> list[str]:
        found = find_orphans(self.state)
        for each in found:
            os.close(each.pidfd)
        files = [str(each) for each in self.state.rglob("*")] if self.state.exists() else []
        return [f"process {each.pid} of {each.function}" for each in found] + files

    def end(self) -> None:
        kill_everything(self.state)


def _knative(folder: Path) -> Harness:
    from tests.conformance.knative import KnativeHarness

    return KnativeHarness(folder)


HARNESSES: dict[str, Callable[[Path], Harness]] = {"local": LocalHarness, "knative": _knative}
