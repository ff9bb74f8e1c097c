"""Processes by fork and from scratch: what they inherit, how they end, and a dead zygote."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from erless.deploy.local.supervisor.replica.orphans import STATE_MARK, find_orphans
from erless.deploy.local.supervisor.replica.spawner import Spawner

SCRIPT = """
import os, socket, sys
print(os.getsid(0) == os.getpid(), os.getcwd(), os.environ["GIVEN"], flush=True)
with socket.socket(fileno=int(os.environ["TALK"])) as talk:
    talk.sendall(b"inherited")
sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[Spawner]:
    (tmp_path / "run").mkdir()
    (tmp_path / "erless_spoken.py").write_text(SCRIPT)
    made = Spawner(tmp_path)
    yield made
    made.close()


def spawn(spawner: Spawner, folder: Path, code: int = 0, threads: str = "1") -> tuple[int, str]:
    """Exit code and what it printed."""
    ours, theirs = socket.socketpair()
    env = {
        **os.environ,
        "GIVEN": "yes",
        "CODE": str(code),
        "ERLESS_THREADS": threads,
        "PYTHONPATH": str(folder),
        STATE_MARK: str(folder),
    }
    log = folder / "log"
    with ours, log.open("wb") as file:
        with theirs:
            child = spawner.spawn(
                ("erless_spoken",),
                env,
                {"TALK": theirs.fileno()},
                file.fileno(),
                folder / "run" / "spoken.0.pid",
            )
        assert ours.recv(100) == b"inherited"
        return child.wait(), log.read_text()


@pytest.mark.parametrize("threads", ["1", "4"])  # forked; from scratch
def test_a_child_gets_what_it_is_given(spawner: Spawner, tmp_path: Path, threads: str) -> None:
    assert spawn(spawner, tmp_path, threads=threads) == (0, f"True {tmp_path} yes\n")
    assert spawn(spawner, tmp_path, code=65, threads=threads)[0] == 65


def test_a_dead_zygote_is_replaced(spawner: Spawner, tmp_path: Path) -> None:
    assert spawn(spawner, tmp_path)[0] == 0
    first = spawner.zygote_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert spawn(spawner, tmp_path)[0] == 0  # from scratch
    assert spawn(spawner, tmp_path)[0] == 0
    assert spawner.zygote_pid not in (None, first)


def test_a_forked_child_is_found_with_its_function(spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "erless_sleeps.py").write_text("import time\ntime.sleep(600)\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), STATE_MARK: str(tmp_path)}
    with (tmp_path / "log").open("wb") as file:
        child = spawner.spawn(
            ("erless_sleeps",), env, {}, file.fileno(), tmp_path / "run" / "f.0.pid"
        )
    record = tmp_path / "run" / "f.0.pid"
    deadline = time.monotonic() + 30
    while not (record.exists() and record.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found = find_orphans(tmp_path)
    try:
        assert {each.pid: each.function for each in found} == {
            child.pid: "f",
            spawner.zygote_pid: "",
        }
        orphan = next(each for each in found if each.function)
        assert orphan.alive
        orphan.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not orphan.alive
    finally:
        for each in found:
            os.close(each.pidfd)
