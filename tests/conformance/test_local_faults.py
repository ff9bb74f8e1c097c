"""Faults that only this machine can inflict on itself, with real functions under load."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import Deployment
from erless.dlrm.queries import QueryFile
from erless.errors import ErlessError, NotDeployedError
from erless.progress import Silent
from erless.serve.protocol.client import QueryClient
from tests.conformance.conftest import TIMEOUT_S, Releases
from tests.conformance.harness import LocalHarness
from tests.conformance.test_target import Traffic, Wanted, wrong

ROOT = Path(__file__).parents[2]
IDLE = 4200


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHarness]:
    made = LocalHarness(tmp_path_factory.mktemp("faults"))
    yield made
    made.end()


@pytest.fixture
def deployed(local: LocalHarness, releases: Releases) -> Deployment:
    return local.target.deploy(local.desired(releases.first), Silent(), TIMEOUT_S)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def until_settled(target: LocalTarget) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not all(each.ready >= each.wanted for each in target.status().functions):
        assert time.monotonic() < deadline, target.status()
        time.sleep(0.1)


def test_a_killed_shard_fails_no_query(
    local: LocalHarness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    with Traffic(deployed, releases.first.queries, wanted) as traffic:
        traffic.more(20)
        for name in ("hot", "cold"):
            kill(local.target.processes()[name][0])
            traffic.more(20)
    assert traffic.faults == []
    until_settled(local.target)


def test_a_killed_gateway_loses_only_what_it_was_answering(
    local: LocalHarness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    with Traffic(deployed, releases.first.queries, wanted, clients=3) as traffic:
        traffic.more(10)
        kill(local.target.processes()["gateway"][0])
        traffic.more(20)
    assert (
        len(traffic.faults) <= 3
    )  # one per client: a query that was being answered is not asked twice
    assert not any("mixed" in each for each in traffic.faults)


def test_a_killed_supervisor_is_replaced_and_nothing_leaks(
    local: LocalHarness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    before = local.target.processes()
    with Traffic(deployed, releases.first.queries, wanted) as traffic:
        kill(before["supervisor"][0])
        traffic.more(20)  # functions serve on without it
        until_settled(local.target)  # `status` starts another, which replaces them
        traffic.more(20)
    assert traffic.faults == []
    after = local.target.processes()
    old = {pid for each in before.values() for pid in each}
    deadline = time.monotonic() + TIMEOUT_S
    while any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in old):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not old & {pid for each in after.values() for pid in each}


def _alive(pid: int) -> bool:
    """Running: the test's process reaps no zombies of others."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize("after_s", [0.4, 1.0, 1.6])
def test_ctrl_c_leaves_the_old_release_serving(
    local: LocalHarness, releases: Releases, wanted: Wanted, deployed: Deployment, after_s: float
) -> None:
    second = releases.second
    command = [
        sys.executable,
        "-m",
        "erless",
        "deploy",
        "--store",
        second.store,
        "--release",
        second.release.digest,
        "--state",
        str(local.state),
    ]
    process = subprocess.Popen(
        command,
        cwd=local.state.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode in (0, 130, -signal.SIGINT), said  # 0: it had been done by then
    done = second if process.returncode == 0 else releases.first
    deadline = time.monotonic() + TIMEOUT_S
    while local.target.status().release != done.release.digest:
        # the switch was made when the signal came: then it is completed
        if local.target.status().release == second.release.digest:
            done = second
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with QueryClient(deployed.url) as client:
        answer = client.predict(QueryFile(releases.first.queries)[0])
    assert answer.release in (done.release.digest, second.release.digest)
    assert not wrong(answer.predictions, wanted[answer.release][0])


def test_destroy_under_load_answers_or_refuses_but_never_hangs(
    local: LocalHarness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    with Traffic(deployed, releases.first.queries, wanted) as traffic:
        traffic.more(10)
        local.target.destroy(Silent(), TIMEOUT_S)
        assert local.leftovers() == []
    assert not any("mixed" in each for each in traffic.faults)
    with pytest.raises(NotDeployedError):
        local.target.status()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_the_old_release_serving(
    small_disk: Path, releases: Releases, wanted: Wanted
) -> None:
    local = LocalHarness(small_disk)
    try:
        first = local.target.deploy(local.desired(releases.first), Silent(), TIMEOUT_S)
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 1024)
            except OSError:
                pass
        with pytest.raises(ErlessError, match="no space left|No space left"):
            local.target.deploy(local.desired(releases.second), Silent(), TIMEOUT_S)
        assert local.target.status().release == first.release
        with QueryClient(first.url) as client:
            answer = client.predict(QueryFile(releases.first.queries)[0])
        assert not wrong(answer.predictions, wanted[first.release][0])
        kill(local.target.processes()["hot"][0])
        until_settled(local.target)  # it comes back though it cannot log
        filler.unlink()
        done = local.target.deploy(local.desired(releases.second), Silent(), TIMEOUT_S)
        assert done.release == releases.second.release.digest
        local.target.destroy(Silent(), TIMEOUT_S)
        assert local.leftovers() == []
    finally:
        local.end()


def test_the_lock_names_the_one_supervisor(local: LocalHarness, deployed: Deployment) -> None:
    pid = StateFolder(local.state).supervisor_pid()
    assert pid == local.target.processes()["supervisor"][0]


@pytest.mark.parametrize("verb", ["status", "history", "logs", "deploy --diff"])
def test_a_terminal_without_utf_8_sees_every_verb(
    local: LocalHarness, releases: Releases, deployed: Deployment, verb: str
) -> None:
    words = [*verb.split(), "--state", str(local.state)]
    if verb.startswith("deploy"):
        words += ["--store", releases.second.store, "--release", releases.second.release.digest]
    done = subprocess.run(
        [sys.executable, "-m", "erless", *words],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
        cwd=local.state.parent,
        capture_output=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.returncode == (1 if "--diff" in verb else 0), done.stderr
    assert done.stdout.isascii()
    assert done.stdout


def test_thousands_of_idle_connections_neither_shut_clients_out_nor_get_the_gateway_killed(
    local: LocalHarness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 500:
        pytest.skip(f"this user may open only {hard} files")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 500), hard))
    before = local.target.processes()["gateway"]
    place = urlsplit(deployed.url)
    opened: list[socket.socket] = []
    try:
        for _ in range(IDLE):
            opened.append(socket.create_connection((place.hostname, place.port), TIMEOUT_S))
        time.sleep(5.0)  # longer than a replica may leave the supervisor without an answer
        assert local.target.processes()["gateway"] == before
        with QueryClient(deployed.url) as client:
            answer = client.predict(QueryFile(releases.first.queries)[0])
        assert not wrong(answer.predictions, wanted[answer.release][0])
    finally:
        for each in opened:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
