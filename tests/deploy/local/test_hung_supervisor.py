"""Target `local` where its supervisor does not answer, and nobody brings it back."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from erless.deploy.local import target as module
from erless.deploy.local.supervisor.folder.locks import WATCHDOG_LOCK, lock_holder
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import FunctionState
from erless.errors import NotDeployedError
from erless.progress import Silent
from erless.specs.config import Config, LocalConfig, TargetsConfig
from tests.deploy.fleets import WAIT_S, Box, get, release, supervision, until


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setattr(module, "ANSWER_S", 1.0)
    monkeypatch.setattr(module, "KILL_S", 1.0)
    made = Box(tmp_path / "state")
    yield made
    made.end()


def target(box: Box) -> LocalTarget:
    options = LocalConfig(state=box.folder.path)
    return LocalTarget(Config(targets=TargetsConfig(local=options)))


def stop_supervision(box: Box) -> None:
    """Stop the watchdog, then the supervisor: neither dies, and neither answers."""
    lock = box.folder.path / WATCHDOG_LOCK
    until(lambda: lock_holder(lock) is not None)
    for pid in (lock_holder(lock), box.folder.supervisor_pid()):
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)


def test_status_tells_what_can_be_seen_without_a_supervisor(box: Box) -> None:
    url = box.deploy(release("one"))
    box.until("frozen", lambda facts: facts["state"] == "at zero")
    stop_supervision(box)
    status = target(box).status()
    assert status.release.startswith("one")
    assert url == f"{status.answering_url()}/infer"
    assert get(url)["release"] == "one"
    functions = {function.name: function for function in status.functions}
    assert {name: function.ready for name, function in functions.items()} == {
        "hot-0": 1,
        "frozen": 0,
        "gateway": 1,
    }
    assert functions["frozen"].state is FunctionState.AT_ZERO
    assert functions["hot-0"].memory_bytes > 0
    assert "gave no answer" in functions["hot-0"].reason


def test_destroy_leaves_nothing_where_the_supervisor_does_not_answer(box: Box) -> None:
    box.deploy(release("one"))
    stop_supervision(box)
    target(box).destroy(Silent(), WAIT_S)
    assert box.processes() == 0
    assert not list(supervision(box.folder.path))
    assert not box.folder.path.exists()
    with pytest.raises(NotDeployedError):
        target(box).status()


def test_destroy_works_without_a_supervisor_and_without_its_socket(box: Box) -> None:
    box.deploy(release("one"))
    box.kill_watched()
    (box.folder.run / "control").unlink(missing_ok=True)
    target(box).destroy(Silent(), WAIT_S)
    assert box.processes() == 0
    assert not box.folder.path.exists()


def test_a_destroy_whose_client_leaves_is_completed(box: Box) -> None:
    """It used to end with a supervisor that said for ever: a destroy is under way."""
    url = box.deploy(release("one", gateway={"TOY_SLOW_S": "0.5"}))
    opened = socket.socket(socket.AF_UNIX)
    opened.connect(box.folder.socket_path("control"))
    opened.sendall(json.dumps({"do": "destroy"}).encode() + b"\n")
    until(lambda: not box.folder.exists)
    opened.close()
    assert box.deploy(release("two")) != url or get(url)["release"] == "two"
    target(box).destroy(Silent(), WAIT_S)
    assert not box.folder.path.exists()
