"""Drift that lasts, on a real deployment: planned anew, packed and cut over, without a person."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erless.specs.decoys import load_decoys
from erless.storage.stores import open_store
from tests.conftest import ROOT, Cli
from tests.plan.live.traffic import Gateway, Planned, Traffic, drifting_model, plan_and_pack

CONFIG = """\
model: {folder}/model
profile: {folder}/profile
store: {folder}/store
observe: {{sample: 0.01}}
targets:
  local: {{state: state, poll_s: 0.2}}
"""
WAIT_S = 90.0


@pytest.fixture
def planned(tmp_path: Path, cli: Cli) -> Iterator[Planned]:
    """A release that is deployed."""
    made = plan_and_pack(tmp_path, Traffic(drifting_model()))
    (tmp_path / "erless.yaml").write_text(CONFIG.format(folder=tmp_path))
    done = cli("deploy", "--decoys", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    yield made
    assert cli("destroy", "--yes", cwd=tmp_path).returncode == 0


def news(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The documents that `erless replan --auto -o json` prints."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            yield json.loads("".join(lines))
            lines.clear()


def test_drift_that_lasts_is_cut_over(planned: Planned, cli: Cli, tmp_path: Path) -> None:
    traffic = Traffic(drifting_model())
    gateway = Gateway(planned)
    gateway.serve(traffic, 300.0)
    arguments = ("replan", "--auto", "--every", "0.2", "--after", "1", "-o", "json")
    shape = ("--shards", "2", "--resident-share", "0.7")
    with subprocess.Popen(
        [sys.executable, "-m", "erless", *arguments, *shape],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            told = news(process)
            assert next(told)["decision"] == "no drift"
            traffic.rotate(0.3)
            gateway.serve(traffic, 600.0)
            until = time.monotonic() + WAIT_S
            for document in told:
                assert document["decision"] != "not known", document
                if document["decision"] == "deployed":
                    break
                assert time.monotonic() < until, document
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(WAIT_S)  # before the pipe that it ends its output on is closed
    assert code == 130
    status = json.loads(cli("status", "-o", "json", cwd=tmp_path).stdout)
    assert status["release"] == document["release"] != planned.release.digest
    kept = {shard.digest for shard in planned.release.remote}
    assert kept & {each["digest"] for each in status["functions"]}
    (decoy,) = load_decoys(open_store(str(tmp_path / "store")), status["release"])
    assert decoy.shard.digest in {each["digest"] for each in status["functions"]}
