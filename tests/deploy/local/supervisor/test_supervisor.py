"""The supervisor with real processes that keep the functions' contract (tests/deploy/toy.py)."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from erless.deploy.local.supervisor.client import call
from erless.deploy.local.supervisor.replica.cgroups import obstacle
from erless.errors import ConflictError, DeployError, NotDeployedError
from tests.deploy.fleets import WAIT_S, Box, Load, function, get, kill_everything, release


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "state")
    yield made
    made.end()


def test_wakes_at_a_connection_and_goes_back_to_zero(box: Box) -> None:
    box.deploy(release("one"))
    frozen = box.until("frozen", lambda each: each["state"] == "at zero")
    assert frozen["wanted"] == 0
    assert get(f"http://127.0.0.1:{frozen['port']}/infer")["pid"]
    woken = box.until("frozen", lambda each: each["requests"] >= 1)
    assert woken["ready"] == 1
    box.until("frozen", lambda each: each["state"] == "at zero")


def test_upgrades_under_load_without_a_failed_answer(box: Box) -> None:
    url = box.deploy(release("one", gateway={"TOY_SLOW_S": "0.02"}))
    hot = box.function("hot-0")["replicas"][0]["pid"]
    with Load(url) as load:
        box.until("gateway", lambda each: each["ready"] == 3)
        assert box.deploy(release("two", gateway={"TOY_SLOW_S": "0.02"})) == url
        switched = len(load.answers)
        assert box.function("gateway")["ready"] == 3  # it takes over at the old one's size
        while len(load.answers) < switched + 40:
            time.sleep(0.01)
    assert load.errors == []
    assert set(load.answers[switched + 4 :]) == {"two"}
    assert box.function("hot-0")["replicas"][0]["pid"] == hot  # same shard, same process


def test_scales_with_the_load_and_says_why(box: Box) -> None:
    url = box.deploy(release("one", gateway={"TOY_SLOW_S": "0.05"}))
    with Load(url, threads=8):
        facts = box.until("gateway", lambda each: each["ready"] == 3)
        assert facts["wanted"] == 3
        assert any(word in facts["decision"] for word in ("concurrency", "max scale", "panic"))
        box.until("gateway", lambda each: each["rps"] > 0 and each["p95_ms"])
    box.until("gateway", lambda each: each["ready"] == 1)


@pytest.mark.parametrize("name", ["hot-0", "gateway"])
def test_restarts_a_killed_replica(box: Box, name: str) -> None:
    url = box.deploy(release("one"))
    pid = box.function(name)["replicas"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    facts = box.until(name, lambda each: each["ready"] == 1 and each["restarts"] == 1)
    assert facts["replicas"][0]["pid"] != pid
    assert get(url)["release"] == "one"


def test_a_killed_supervisor_is_followed_without_a_refused_query(box: Box) -> None:
    url = box.deploy(release("one"))
    before = box.function("gateway")
    with Load(url, threads=2) as load:
        box.kill_supervisor()
        assert get(url)["release"] == "one"  # the orphan serves on
        after = box.until("gateway", lambda each: each["ready"] == 1)
        deadline = time.monotonic() + WAIT_S
        while box.processes() > 2:  # orphans end once they are replaced
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert load.errors == []
    assert after["replicas"][0]["pid"] != before["replicas"][0]["pid"]
    assert box.deploy(release("one")) == url


def test_a_release_that_fails_leaves_the_old_one_serving(box: Box) -> None:
    url = box.deploy(release("one"))
    with pytest.raises(DeployError, match="frozen does not start: rows.bin: altered"):
        box.deploy(release("two", TOY_FAIL="rows.bin: altered"))
    assert get(url)["release"] == "one"
    assert box.status()["release"].startswith("one")
    box.left_with(2)


def test_a_first_release_that_fails_leaves_no_process(box: Box) -> None:
    with pytest.raises(DeployError, match="says why"):
        box.deploy(release("one", TOY_FAIL="says why"))
    deadline = time.monotonic() + WAIT_S
    while box.folder.supervisor_pid() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    box.left_with(0)
    assert not box.folder.exists


def test_a_deploy_that_takes_too_long_is_undone(box: Box) -> None:
    url = box.deploy(release("one"))
    with pytest.raises(DeployError, match=r"not ready within 0.5 s: frozen \(loading\)"):
        box.deploy(release("two", TOY_LOAD_S="60"), timeout_s=0.5)
    assert get(url)["release"] == "one"
    box.left_with(2)


def test_two_deploys_at_once_conflict_and_a_client_that_leaves_is_undone(box: Box) -> None:
    url = box.deploy(release("one"))
    slow = release("two", TOY_LOAD_S="60").model_dump(mode="json")
    opened = socket.socket(socket.AF_UNIX)
    opened.connect(box.folder.socket_path("control"))
    opened.sendall(json.dumps({"do": "deploy", "release": slow, "settings": {}}).encode() + b"\n")
    while not box.status()["changing"]:
        time.sleep(0.02)
    with pytest.raises(ConflictError, match="a deploy is under way"):
        box.deploy(release("three"))
    with pytest.raises(ConflictError):
        call(box.folder, {"do": "destroy"}, WAIT_S)
    opened.close()  # Ctrl-C
    while box.status()["changing"]:
        time.sleep(0.02)
    box.left_with(2)
    assert get(url)["release"] == "one"
    assert box.deploy(release("three")) == url


def test_rolls_back_and_forth(box: Box) -> None:
    url = box.deploy(release("one"))
    box.deploy(release("two"))
    for asked, expected in ((None, "one"), ("two", "two"), ("one", "one")):
        call(box.folder, {"do": "rollback", "release": asked}, WAIT_S)
        assert get(url)["release"] == expected
    with pytest.raises(NotDeployedError, match="no release is kept from before"):
        call(box.folder, {"do": "rollback", "release": None}, WAIT_S)
    with pytest.raises(NotDeployedError, match="no kept release begins with 'nine'"):
        call(box.folder, {"do": "rollback", "release": "nine"}, WAIT_S)


def test_keeps_as_many_releases_as_asked(box: Box) -> None:
    for name in ("one", "two", "three"):
        box.deploy(release(name), keep=2)
    assert [each.release[:5] for each in box.folder.load().releases] == ["three", "two00"]
    with pytest.raises(NotDeployedError, match="kept are"):
        call(box.folder, {"do": "rollback", "release": "one"}, WAIT_S)


def _ready_after(old: int) -> Callable[[dict[str, Any]], bool]:
    """Whether the one replica is another process than `old`, and ready."""
    return lambda facts: facts["ready"] == 1 and facts["replicas"][0]["pid"] != old


def test_a_crash_loop_backs_off_and_shows_its_reason(box: Box) -> None:
    box.deploy(release("one"))
    pid = box.function("hot-0")["replicas"][0]["pid"]
    for _ in range(3):  # each time that it comes back it is killed
        os.kill(pid, signal.SIGKILL)
        facts = box.until("hot-0", _ready_after(pid))
        pid = facts["replicas"][0]["pid"]
    assert facts["restarts"] == 3
    lines = (box.folder.logs / "supervisor.0.log").read_text().splitlines()
    crashes = [json.loads(line) for line in lines if '"crashed"' in line]
    assert len(crashes) == 3
    assert {each["reason"] for each in crashes} == {"killed by SIGKILL"}


def test_a_taken_port_is_named(box: Box) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeployError, match=f"port {port} on 127.0.0.1 is taken"):
            box.deploy(release("one"), port=port)
    assert box.deploy(release("one"), port=port).startswith(f"http://127.0.0.1:{port}/")
    with pytest.raises(DeployError, match="keeps its port"):
        box.deploy(release("two"), port=port + 1)


def test_a_port_that_was_taken_while_nobody_supervised_shows_and_heals(box: Box) -> None:
    url = box.deploy(release("one"))
    port = int(url.split(":")[2].split("/")[0])
    kill_everything(box.folder.path)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert "is taken" in box.status()["problem"]
    deadline = time.monotonic() + WAIT_S
    while box.status()["problem"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert get(url)["release"] == "one"


def test_destroy_answers_what_is_in_flight_and_leaves_nothing(box: Box) -> None:
    url = box.deploy(release("one", gateway={"TOY_SLOW_S": "0.5"}))
    answers: list[str] = []
    threads = [Thread(target=lambda: answers.append(get(url)["release"])) for _ in range(4)]
    for each in threads:
        each.start()
    deadline = time.monotonic() + WAIT_S
    while box.in_flight("gateway") + len(answers) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    call(box.folder, {"do": "destroy"}, WAIT_S)
    for each in threads:
        each.join()
    assert answers == ["one"] * 4
    box.left_with(0)


def test_a_function_that_cannot_start_names_the_module(box: Box) -> None:
    broken = release("one")
    lost = function("sparse", "lost", "b2").model_copy(update={"module": "functions.lost"})
    broken = broken.model_copy(update={"functions": (lost, *broken.functions)})
    with pytest.raises(DeployError, match="lost does not start: .*functions.lost"):
        box.deploy(broken)


def test_holds_replicas_to_their_plan_where_the_system_can(box: Box) -> None:
    if reason := obstacle():
        pytest.skip(reason)
    limited = release("one")
    functions = tuple(
        each.model_copy(update={"vcpu": 0.5, "memory_bytes": 256 << 20})
        for each in limited.functions
    )
    box.deploy(limited.model_copy(update={"functions": functions}), limits=True)
    pid = box.function("hot-0")["replicas"][0]["pid"]
    places = Path(f"/proc/{pid}/cgroup").read_text()
    name = next(line.rpartition("/")[2] for line in places.splitlines() if "/erless-" in line)
    folders = [Path(root) for root, _, _ in os.walk("/sys/fs/cgroup") if root.endswith(name)]
    found = {
        file: (folder / file).read_text().split()[0]
        for folder in folders
        for file in ("cpu.cfs_quota_us", "cpu.max", "memory.limit_in_bytes", "memory.max")
        if (folder / file).exists()
    }
    assert set(found.values()) == {"50000", str(256 << 20)}
    call(box.folder, {"do": "destroy"}, WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while any(each.exists() for each in folders):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_vcpu_follows_the_load_in_place_without_a_failed_answer(box: Box) -> None:
    if reason := obstacle():
        pytest.skip(reason)
    scaling = {"autoscaler": "status", "max_vcpu": 0.8, "max_scale": 2, "window_s": 2.0}
    made = release("one")
    gateway = function("gateway", "gateway", "gone", TOY_NAME="one", scaling=scaling)
    gateway = gateway.model_copy(update={"vcpu": 0.3, "requests_per_vcpu_s": 600.0})
    spec = made.model_copy(update={"functions": (*made.behind, gateway)})
    url = box.deploy(spec, limits=True)
    least = 2 / 600 / 0.1  # room for two calls in each period
    calm = box.until("gateway", lambda each: each["vcpu"] <= least / 0.89)
    assert "vCPU" in calm["decision"] and quota(calm) == pytest.approx(calm["vcpu"], abs=0.01)
    with Load(url, threads=3) as load:
        grown = box.until("gateway", lambda each: each["vcpu"] > 0.3)
        assert grown["replicas"][0]["pid"] == calm["replicas"][0]["pid"]
    assert load.errors == [] and load.answers
    box.until("gateway", lambda each: each["vcpu"] <= least / 0.89)
    kept = made.model_copy(update={"key": "key-kept"})
    box.deploy(kept, limits=True)
    assert box.function("gateway")["vcpu"] is None


def quota(facts: dict[str, Any]) -> float:
    """vCPU that the first replica's group allows."""
    pid = facts["replicas"][0]["pid"]
    places = Path(f"/proc/{pid}/cgroup").read_text()
    name = next(line.rpartition("/")[2] for line in places.splitlines() if "/erless-" in line)
    for root, _, files in os.walk("/sys/fs/cgroup"):
        for file in {"cpu.cfs_quota_us", "cpu.max"} & set(files):
            if root.endswith(name):
                return int((Path(root) / file).read_text().split()[0]) / 100_000
    raise AssertionError(name)
