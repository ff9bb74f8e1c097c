"""deploy → status → predict → rollback → destroy, as a user types them, on this machine."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.deploy.local.supervisor.replica.orphans import end_all
from erless.specs.plan import Tier
from erless.storage.tensors import write_tensors
from tests.conftest import ROOT, Cli
from tests.releases import TIERS, Cut, Made, make_release

CONFIG = """\
store: {store}
targets:
  local: {{state: state, poll_s: 0.2, window_s: 3, grace_s: 0.5}}
"""
SHOWN = {"status": b"gateway", "logs": b"gateway", "open": b"http://127.0.0.1:"}
Run = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    folder = tmp_path_factory.mktemp("cli")
    recut = (*TIERS[:2], Cut("cold", Tier.COLD, 0.5), Cut("frozen", Tier.FROZEN, 1.0))
    return make_release(folder), make_release(folder, tiers=recut)


@pytest.fixture
def run(cli: Cli, made: tuple[Made, Made], tmp_path: Path) -> Iterator[Run]:
    """Run a verb with `-o json` in a project of its own: exit code and document."""
    (tmp_path / "erless.yaml").write_text(CONFIG.format(store=made[0].store))

    def verb(*arguments: object) -> tuple[int, Any]:
        done = cli(*arguments, "-o", "json", cwd=tmp_path)
        return done.returncode, json.loads(done.stdout or "null")

    yield verb
    assert verb("destroy", "--yes")[0] == 0


def test_the_verbs_of_a_deployment(
    run: Run, cli: Cli, made: tuple[Made, Made], tmp_path: Path
) -> None:
    first, second = (each.release.digest for each in made)
    code, said = run("status")
    assert (code, said["error"]["type"]) == (1, "NotDeployedError")
    code, said = run("deploy", "--release", first, "--diff")
    assert (code, said["changed"]) == (1, True)
    code, said = run("deploy", "--release", first, "--dry-run")
    assert code == 0
    assert {each["action"] for each in said["changes"]} == {"create"}

    code, deployed = run("deploy", "--release", first)
    assert (code, deployed["release"]) == (0, first)
    assert run("deploy", "--release", first, "--diff")[0] == 0

    code, status = run("status")
    assert code == 0
    assert {each["name"] for each in status["functions"]} == {"hot", "cold", "frozen", "gateway"}
    assert status["memory_reduction"] > 0
    tiers = {each["name"]: each["tier"] for each in status["functions"]}
    assert tiers == {name: name for name in ("hot", "cold", "frozen", "gateway")}
    assert status["next"] == "erless predict QUERIES"
    text = cli("status", cwd=tmp_path)
    assert "× as much)" in text.stdout
    assert "model-wise replicas would hold" in text.stdout

    assert status["generation"] == 0
    rows = {"ids": np.array([1, 2]), "rows": np.ones((2, 8), np.float32)}
    write_tensors(tmp_path / "rows.safetensors", rows)
    assert run("update", "--rows", "user=rows.safetensors", "--release", first)[0] == 0
    (tmp_path / "rows.safetensors").unlink()
    assert run("rollback", first, "--generation", 0)[0] == 0
    until = time.monotonic() + 60
    while (status := run("status")[1])["generation"] != 2:
        assert time.monotonic() < until, status
    assert "generation 2, " in cli("status", cwd=tmp_path).stdout

    code, answers = run("predict", made[0].queries, "--against", made[0].bundle)
    assert code == 0
    assert answers["max_relative_error"] <= 1e-5
    assert answers["releases"] == [first]
    assert len(answers["predictions"]) == 64

    assert run("deploy", "--release", first)[0] == 0  # again: still one kept release
    said = run("rollback")[1]["error"]
    assert (said["type"], said["try"][:16]) == ("NotDeployedError", "`erless history`")

    assert run("deploy", "--release", second)[0] == 0
    code, back = run("rollback")
    assert (code, back["release"], back["url"]) == (0, first, deployed["url"])
    code, kept = run("history")
    assert [(each["release"], each["current"]) for each in kept["deployments"]] == [
        (second, False),
        (first, True),
    ]
    code, logs = run("logs", "gateway", "--lines", 5)
    assert code == 0
    assert len(logs["lines"]) == 5

    assert run("destroy", "--yes")[0] == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["erless.yaml"]
    assert run("rollback")[1]["error"]["type"] == "NotDeployedError"


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--watch"),
        ("status", "--watch", "--interval", "0.1", "-o", "json"),
        ("logs", "--follow"),
        ("open", "-o", "json"),
    ],
)
def test_what_ends_by_ctrl_c_ends_well(
    run: Run, made: tuple[Made, Made], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Nothing went wrong: exit 0, and no word about it."""
    assert run("deploy", "--release", made[0].release.digest)[0] == 0
    master, slave = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "erless", *words],
        cwd=tmp_path,
        stdout=slave,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(slave)
    try:
        seen = b""
        while SHOWN[words[0]] not in seen:
            assert select.select([master], [], [], 60)[0], f"silent after {seen!r}"
            seen += os.read(master, 65536)
        watching.send_signal(signal.SIGINT)
        assert watching.communicate(timeout=60)[1] == ""
        assert watching.returncode == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(master)


def test_after_a_reboot_a_taken_port_is_named_and_heals(
    run: Run, made: tuple[Made, Made], tmp_path: Path
) -> None:
    url = run("deploy", "--release", made[0].release.digest)[1]["url"]
    state = tmp_path / "state"
    os.kill(int((state / "lock").read_text()), signal.SIGKILL)
    end_all(state, drain_s=0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        taken.listen()
        code, said = run("predict", made[0].queries)
        assert (code, said["error"]["type"]) == (1, "DeployError")
        assert "is taken by another process" in said["error"]["message"]
    deadline = time.monotonic() + 60
    while run("predict", made[0].queries)[0]:
        assert time.monotonic() < deadline


def test_what_cannot_be_is_said_shortly(run: Run, cli: Cli, tmp_path: Path) -> None:
    code, said = run("deploy", "--release", "abcdef")
    assert (code, said["error"]["type"]) == (1, "StoreError")
    lost = cli("status", "--target", "moon", cwd=tmp_path)
    assert lost.returncode == 1
    assert "target 'moon' is unknown; valid are local" in lost.stderr
    watched = cli("status", "--watch", "-o", "json", cwd=tmp_path)
    assert json.loads(watched.stdout)["error"]["type"] == "NotDeployedError"
