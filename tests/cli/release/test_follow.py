"""`erless update --follow` beside a deployment: publishes, folds, cuts over, goes on."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.dlrm.reference import Monolith
from erless.storage.tensors import write_tensors
from tests.conftest import ROOT, Cli
from tests.releases import Made, make_release, random_query
from tests.serve.functions import body_of

CONFIG = """\
store: {store}
freshness: {{compact_share: 0.05}}
targets:
  local: {{state: state, poll_s: 0.2}}
"""
WAIT_S = 60.0


class Project:
    """A folder with a deployment and a follower beside it."""

    def __init__(self, cli: Cli, made: Made, folder: Path) -> None:
        self._cli, self.made, self.folder = cli, made, folder
        (folder / "erless.yaml").write_text(CONFIG.format(store=made.store))
        self.url = str(self.erless("deploy", "--decoys", 1)["url"])
        command = [sys.executable, "-m", "erless", "update", "--follow", "incoming"]
        self.log = folder / "follower.log"
        with self.log.open("wb") as log:
            self.follower = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env={"PYTHONPATH": str(ROOT)}
            )
        self.whole = Monolith.load(made.bundle)
        self.random = np.random.default_rng(3)

    def erless(self, *arguments: object) -> dict[str, Any]:
        done = self._cli(*arguments, "-o", "json", cwd=self.folder)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def drop(self, name: str, share: float) -> None:
        """Move in a batch with a share of the users changed."""
        batch = self.folder / "incoming" / f".{name}"
        batch.mkdir(parents=True)
        users = self.whole.tables[0].numpy()
        ids = self.random.choice(len(users), int(share * len(users)), replace=False)
        users[ids] = self.random.normal(size=(len(ids), users.shape[1]))
        write_tensors(batch / "user.safetensors", {"ids": ids, "rows": users[ids]})
        batch.rename(batch.parent / name)

    def ask(self, body: bytes) -> tuple[tuple[str, int], list[float]]:
        """Which release and generation answer, and what."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", f"/v2/models/{self.made.model.name}/infer", body)
            document = json.loads(connection.getresponse().read())
        parameters = document["parameters"]
        by = (parameters["release"], parameters["generation"])
        return by, document["outputs"][0]["data"]

    def decoys(self) -> dict[str, int]:
        """How many stand beside the shards of each kept release."""
        state = json.loads((self.folder / "state" / "state.json").read_text())
        return {
            release["release"]: sum(function["decoy"] for function in release["functions"])
            for release in state["releases"]
        }

    def close(self) -> None:
        self.follower.kill()
        self.follower.wait()
        self.erless("destroy", "--yes")


@pytest.fixture
def project(cli: Cli, tmp_path: Path) -> Iterator[Project]:
    made = make_release(tmp_path / "made")
    opened = Project(cli, made, tmp_path)
    yield opened
    opened.close()


def test_generations_are_folded_once_they_are_much(project: Project) -> None:
    query = random_query(project.made.model, 4, 16)
    body, release = body_of(query), project.made.release.digest
    seen: dict[tuple[str, int], list[float]] = {}

    def wait_for(other_release: bool, generation: int) -> None:
        """Ask until that answers, and with what it should."""
        until = time.monotonic() + WAIT_S
        by = ("", -1)
        while (by[0] != release, by[1]) != (other_release, generation):
            assert time.monotonic() < until, (by, project.log.read_text())
            by, answer = project.ask(body)
            # up to the order in which the shards' sums came
            np.testing.assert_allclose(seen.setdefault(by, answer), answer, rtol=1e-6)
        np.testing.assert_allclose(seen[by], project.whole.predict(query), rtol=1e-5, atol=1e-6)

    wait_for(False, 0)
    project.drop("001", 0.01)
    wait_for(False, 1)
    project.drop("002", 0.3)
    wait_for(True, 0)
    (folded,) = {by[0] for by in seen} - {release}
    if (release, 2) in seen:
        np.testing.assert_allclose(seen[release, 2], seen[folded, 0], rtol=1e-6)
    project.drop("003", 0.01)
    wait_for(True, 1)
    assert seen.keys() - {(release, 2)} == {(each, n) for each in (release, folded) for n in (0, 1)}
    project.follower.send_signal(signal.SIGINT)
    assert project.follower.wait(30) == 130
    told = project.log.read_text()
    assert f"release {folded[:12]} answers" in told
    assert "not compacted" not in told
    assert project.decoys() == {release: 1, folded: 1}
