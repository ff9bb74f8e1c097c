"""A terminal that can only write ASCII: nothing fails, and documents are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.towers import DeepFm, export

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PLAN = ("plan", "--workload", "rm3", "--equal-containers")


def erless(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    return subprocess.run(
        [sys.executable, "-m", "erless", *words],
        capture_output=True,
        cwd=folder,
        env=plain | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("plan", "--help"),
        ("init",),
        ("config", "schema"),
        (*PLAN, "--compare", "--plot", "plan.html", "--out", "plan.json"),
    ],
    ids=" ".join,
)
def test_every_verb_of_planning_writes_what_the_terminal_can(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = erless(tmp_path, *words, **ASCII)
    assert done.returncode == 0, done.stderr.decode("ascii", "replace")
    done.stdout.decode("ascii")


def test_files_and_documents_are_the_same_in_any_locale(tmp_path: Path) -> None:
    found = []
    for name, environment in (("ascii", ASCII), ("utf-8", {"PYTHONUTF8": "1"})):
        folder = tmp_path / name
        folder.mkdir()
        done = erless(folder, *PLAN, "--out", "plan.json", "-o", "json", **environment)
        assert done.returncode == 0, done.stderr
        erless(folder, "init", **environment)
        files = [(folder / file).read_bytes() for file in ("plan.json", "erless.yaml")]
        found.append((json.loads(done.stdout), *files))
    assert found[0] == found[1]


def test_a_tower_whose_name_is_outside_ascii_is_tried_in_any_locale(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", np.ones((3, 4), np.float32))
    export(DeepFm(2, 1, 4), tmp_path / "tower.pt2", dense=2, tables=1, dim=4)
    (tmp_path / "tower.pt2").rename(tmp_path / "türme.pt2")
    words = ("import", "tables", "u=u.npy", "--tower", "türme.pt2", "--dense-features", "2")
    done = erless(tmp_path, *words, "--pooling", "sum", "--out", "größe", **ASCII)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "größe" / "model.json").is_file()


def test_a_name_outside_ascii_is_told_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "erless.yaml").write_text("modell_größe: 1\n", encoding="utf-8")
    done = erless(tmp_path, "config", "check", **ASCII)
    assert done.returncode == 1
    assert b"erless.yaml:1: modell_gr??e" in done.stderr
    assert b"Traceback" not in done.stderr
