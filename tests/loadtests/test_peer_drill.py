"""Ray's replicas are found by the names of their processes, and broken as ours are."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from erless.errors import DeployError
from erless.specs.churn import FaultKind
from loadtests.peers.drill import RayFaults


def test_processes_named_as_rays_replicas_are() -> None:
    named = ["ray::ServeReplica:rm:hot-0", "ray::ServeReplica:rm:Gateway", "ray::IDLE"]
    processes = [subprocess.Popen([name, "60"], executable="/bin/sleep") for name in named]
    site = RayFaults(os.getpid())
    try:
        end = time.monotonic() + 20
        while len(site.replicas()) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        by_name = {replica.function: replica for replica in site.replicas()}
        assert {name: replica.kind for name, replica in by_name.items()} == {
            "hot-0": "sparse",
            "Gateway": "gateway",
        }
        site.inject(FaultKind.HANG, by_name["hot-0"])
        while {r.function for r in site.replicas() if r.ready} != {"Gateway"}:
            assert time.monotonic() < end
            time.sleep(0.01)
        site.inject(FaultKind.GATEWAY, by_name["Gateway"])
        assert processes[1].wait(20) == -signal.SIGKILL
        with pytest.raises(DeployError, match="of Gateway is gone"):
            site.inject(FaultKind.KILL, by_name["Gateway"])
        site.undo()
        assert [r.ready for r in site.replicas()] == [True]
    finally:
        for process in processes:
            process.kill()
            process.wait()
