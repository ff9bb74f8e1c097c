"""What the supervisor and its watchdog do about what hangs, dies or disappears under them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from erless.deploy.local.supervisor.client import call
from erless.deploy.local.supervisor.folder.locks import WATCHDOG_LOCK, lock_holder
from erless.deploy.local.supervisor.spec import Timing
from tests.deploy.fleets import (
    WAIT_S,
    Box,
    Load,
    function,
    get,
    release,
    supervision,
    until,
)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "state")
    yield made
    made.end()


def crashes(box: Box) -> str:
    """The supervisor's own log."""
    return (box.folder.logs / "supervisor.0.log").read_text()


@pytest.mark.parametrize("name", ["hot-0", "gateway"])
def test_a_stopped_replica_is_replaced_and_what_it_held_is_answered_by_another(
    box: Box, name: str
) -> None:
    url = box.deploy(release("one"))
    pid = box.function(name)["replicas"][0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    facts = box.until(name, lambda facts: facts["ready"] == 1 and facts["restarts"] == 1)
    assert facts["replicas"][0]["pid"] != pid
    assert get(url)["release"] == "one"
    assert "it was stopped by a signal" in crashes(box)


def test_a_replica_whose_event_loop_blocks_is_replaced(box: Box) -> None:
    url = box.deploy(release("one", gateway={"TOY_BLOCK_S": "3600"}))
    pid = box.function("gateway")["replicas"][0]["pid"]
    with pytest.raises(OSError, match=r"."):  # who asks a killed process gets no answer
        get(f"{url.removesuffix('/infer')}/block")
    facts = box.until("gateway", lambda facts: facts["ready"] == 1 and facts["restarts"] == 1)
    assert facts["replicas"][0]["pid"] != pid
    assert "it hangs: asleep, and no answer" in crashes(box)


def test_a_replica_that_is_busy_is_given_time(box: Box) -> None:
    """Twice as long as one that sleeps: it is at work."""
    busy_s = 2 * Timing().hung_s + 1
    url = box.deploy(release("one", gateway={"TOY_SPIN_S": f"{busy_s}"}))
    assert get(f"{url.removesuffix('/infer')}/spin") == {}
    assert box.function("gateway")["restarts"] == 0


def test_a_replica_that_is_not_ready_any_more_is_replaced_with_its_reason(box: Box) -> None:
    url = box.deploy(release("one"))
    pid = box.function("gateway")["replicas"][0]["pid"]
    get(f"{url.removesuffix('/infer')}/unready")
    facts = box.until(
        "gateway", lambda facts: facts["ready"] == 1 and facts["replicas"][0]["pid"] != pid
    )
    assert facts["restarts"] <= 1
    until(lambda: "it is not ready any more: rows.bin: altered" in crashes(box))
    assert get(url)["release"] == "one"


def test_removed_admin_sockets_cost_no_query(box: Box) -> None:
    url = box.deploy(release("one"))
    before = box.function("gateway")["replicas"][0]["pid"]
    with Load(url, threads=2) as load:
        for each in box.folder.run.iterdir():
            if each.is_socket():
                each.unlink()
        until(lambda: box.folder.has_socket("control"))
        box.until(
            "gateway", lambda facts: facts["ready"] == 1 and facts["replicas"][0]["pid"] != before
        )
        done = len(load.answers)
        until(lambda: len(load.answers) > done + 10)
    assert load.errors == []


def test_a_removed_state_file_comes_back_and_a_removed_folder_ends_the_deployment(
    box: Box,
) -> None:
    box.deploy(release("one"))
    (box.folder.path / "state.json").unlink()
    until(lambda: box.folder.exists)

    def removed() -> bool:
        """A supervisor that still lives may write while the folder is being emptied."""
        shutil.rmtree(box.folder.path, ignore_errors=True)
        return not box.folder.path.exists()

    until(removed)
    box.left_with(0)
    until(lambda: not list(supervision(box.folder.path)))
    assert not box.folder.exists


def test_the_watchdog_brings_a_killed_supervisor_back(box: Box) -> None:
    url = box.deploy(release("one"))
    until(lambda: lock_holder(box.folder.path / WATCHDOG_LOCK) is not None)
    first = box.folder.supervisor_pid()
    with Load(url, threads=2) as load:
        box.kill_supervisor()
        until(lambda: box.folder.supervisor_pid() not in (None, first))  # and no verb was called
        until(lambda: box.processes() == 2)
        done = len(load.answers)
        until(lambda: len(load.answers) > done + 10)
    assert load.errors == []
    assert box.folder.supervisor_pid() != first


def test_the_watchdog_ends_a_stopped_supervisor(box: Box) -> None:
    url = box.deploy(release("one"))
    until(lambda: lock_holder(box.folder.path / WATCHDOG_LOCK) is not None)
    first = box.folder.supervisor_pid()
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    until(lambda: box.folder.supervisor_pid() not in (None, first))
    assert box.function("gateway")["ready"] >= 0
    assert get(url)["release"] == "one"


def test_a_killed_watchdog_is_followed_by_another(box: Box) -> None:
    box.deploy(release("one"))
    lock = box.folder.path / WATCHDOG_LOCK
    until(lambda: lock_holder(lock) is not None)
    first = lock_holder(lock)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: lock_holder(lock) not in (None, first))


def test_a_supervisor_that_is_asked_to_end_stays_ended(box: Box) -> None:
    box.deploy(release("one"))
    until(lambda: lock_holder(box.folder.path / WATCHDOG_LOCK) is not None)
    pid = box.folder.supervisor_pid()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    until(lambda: not list(supervision(box.folder.path)))
    box.left_with(0)
    assert box.folder.exists  # a verb, or the machine's next start, brings all of it back
    assert box.function("hot-0")["key"]


def test_a_supervisor_with_nothing_to_do_ends(box: Box) -> None:
    """A first deploy was interrupted after it had started one, and before it had asked anything."""
    from erless.deploy.local.supervisor.client import ensure

    assert ensure(box.folder)
    until(lambda: box.folder.supervisor_pid() is None)


def test_the_secret_changes_with_a_deploy_and_both_hold_until_the_old_gateway_has_gone(
    box: Box,
) -> None:
    secret = box.folder.secret
    box.deploy(release("one", gateway={"TOY_SLOW_S": "1"}))
    (first,) = secret.lines()
    assert len(first) >= 32
    assert secret.path.stat().st_mode & 0o777 == 0o600
    pid = box.function("hot-0")["replicas"][0]["pid"]
    environment = Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    assert first.encode() not in environment  # only where it lies
    box.deploy(release("one", gateway={"TOY_SLOW_S": "1"}))
    assert secret.lines() == (first,)  # nothing changed
    url = box.deploy(release("two", gateway={"TOY_LOAD_S": "1"}))
    (second,) = secret.lines()
    assert second != first
    with pytest.raises(Exception, match="says why"):
        box.deploy(release("three", gateway={"TOY_FAIL": "says why"}))
    # a gateway's replica that started meanwhile sends the secret of the deploy that failed
    assert secret.lines()[0] == second
    assert len(secret.lines()) == 2
    assert get(url)["release"] == "two"
    call(box.folder, {"do": "rollback", "release": None}, WAIT_S)
    (last,) = secret.lines()
    assert last not in (first, second)


def test_hundreds_of_seconds_of_the_supervisor_itself_prove_nothing_about_replicas(
    box: Box,
) -> None:
    """A supervisor that was stopped itself has heard nobody meanwhile, and kills nobody for it."""
    box.deploy(release("one"))
    pid, supervisor = box.function("hot-0")["replicas"][0]["pid"], box.folder.supervisor_pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGSTOP)
    time.sleep(1.5)  # less than its watchdog allows
    os.kill(supervisor, signal.SIGCONT)
    time.sleep(1.0)
    assert box.function("hot-0")["replicas"][0]["pid"] == pid
    assert box.folder.supervisor_pid() == supervisor


def test_a_function_that_cannot_start_answers_with_the_reason_until_it_can(
    box: Box, tmp_path: Path
) -> None:
    failing = tmp_path / "failing"
    box.deploy(release("one", TOY_FAIL_FILE=str(failing)))
    facts = box.until("frozen", lambda facts: facts["state"] == "at zero")
    url = f"http://127.0.0.1:{facts['port']}/infer"
    failing.write_text("the store is gone")
    for _ in range(2):  # the first query wakes it, the second finds it failing
        with pytest.raises(HTTPError) as failed:
            urlopen(url, b"{}", timeout=WAIT_S)
        with failed.value as answer:
            assert answer.code == 503
            document = json.loads(answer.read())
        assert document["state"] == "failed"
        assert "the store is gone" in document["error"]
    assert box.function("frozen")["state"] == "failing"
    failing.unlink()

    def answers() -> bool:
        try:
            return "release" in get(url)
        except HTTPError:
            return False

    until(answers)


def test_a_shard_that_took_over_from_another_answers_with_the_reason_too(
    box: Box, tmp_path: Path
) -> None:
    """Its predecessor's replicas, by whose number it starts, are no orphans that still serve."""
    failing = tmp_path / "failing"
    box.deploy(release("one"))
    second = release("two")
    hot = function("sparse", "hot-0", "b2", TOY_FAIL_FILE=str(failing))
    box.deploy(second.model_copy(update={"functions": (hot, *second.functions[1:])}))
    facts = box.function("hot-0")
    failing.write_text("a file is damaged")
    os.kill(facts["replicas"][0]["pid"], signal.SIGKILL)
    with pytest.raises(HTTPError, match="503") as failed:
        urlopen(f"http://127.0.0.1:{facts['port']}/infer", b"{}", timeout=WAIT_S)
    with failed.value as answer:
        assert "a file is damaged" in json.loads(answer.read())["error"]
