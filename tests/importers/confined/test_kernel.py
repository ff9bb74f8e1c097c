from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED = {"read", "read on", "list", "ask for a limit"}


def test_a_confined_process_can_only_read_and_compute(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"content")
    command = [sys.executable, "-m", "tests.importers.confined.rights", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    outcomes = answer["outcomes"]
    assert {name: outcomes[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, "done")
    assert outcomes["much memory"] == "MemoryError"  # a limit, whatever the kernel
    assert outcomes["write"] != "done"
    if "seccomp" not in answer["enforced"]:
        pytest.skip(f"this kernel enforces only {answer['enforced']}")
    refused = outcomes.keys() - ALLOWED - {"much memory", "thread"}
    assert {name: outcomes[name] for name in refused} == dict.fromkeys(refused, "PermissionError")
    assert (tmp_path / "there").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
