"""`erless update` and `erless rollback --generation` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from erless.storage.tensors import write_tensors
from tests.conftest import Cli
from tests.releases import Made, make_release


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = make_release(tmp_path)
    rows = np.ones((3, 8), np.float32)
    write_tensors(tmp_path / "rows.safetensors", {"ids": np.array([1, 5, 2999]), "rows": rows})
    return made


def test_rows_are_published_and_taken_back(cli: Cli, made: Made, tmp_path: Path) -> None:
    given = ("--store", made.store, "-o", "json")
    dry = cli("update", "--rows", "user=rows.safetensors", "--dry-run", *given, cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert sum(json.loads(dry.stdout)["shards"].values()) == 3
    assert not Path(made.store, "generations").exists()
    done = cli("update", "--rows", "user=rows.safetensors", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["number"], document["changed"]) == (1, 3)
    told = cli("update", "--rows", "user=rows.safetensors", "--store", made.store, cwd=tmp_path)
    assert "generation 2 of release" in told.stdout
    assert "3 rows changed, 0 added, 0 deleted" in told.stdout
    back = cli("rollback", "--generation", 1, *given, cwd=tmp_path)
    assert back.returncode == 0, back.stderr
    document = json.loads(back.stdout)
    assert (document["number"], document["returns_to"]) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ((), "give --rows, --delete or --tower, or else --follow"),
        (("--rows", "rows.safetensors"), "expected TABLE=FILE"),
        (("--rows", "user=a", "--rows", "user=b"), "table user is given twice"),
        (("--rows", "nobody=rows.safetensors"), "no table nobody; it has user, item, shop"),
        (("--rows", "user=absent.parquet"), "absent.parquet"),
        (("--rows", "user=rows.safetensors", "--release", "ffff"), "no release ffff"),
        (("--follow", "x", "--rows", "user=rows.safetensors"), "or else --follow"),
    ],
)
def test_mistakes_are_named(
    cli: Cli, made: Made, tmp_path: Path, arguments: tuple[str, ...], fact: str
) -> None:
    run = cli("update", *arguments, "--store", made.store, cwd=tmp_path)
    assert run.returncode == 1, run.stdout
    assert fact in run.stderr.replace("\n", " ")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "x").exists()
