"""Live heat that Spark adds up is that of one machine, to the last bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from erless.cli.main import app
from erless.errors import ArtifactError, ExistsError, LogError
from erless.profile.live import profile_live, read_live
from erless.profile.spark.heat import StoreAt, profile_live_on_spark
from erless.serve.files import Source, open_gateway
from erless.serve.gateway.live_heat import LiveHeat, SampledQuery
from erless.specs.heat import heat_prefix
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.storage.stores import open_store
from tests.releases import Made, make_release

from .conftest import LOCAL
from .test_spark import tree

pytest.importorskip("pyspark", reason="pyspark is not installed: `make spark`")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # pyspark's own sockets
    pytest.mark.usefixtures("one_session"),
]

TABLES = {"user": 40_000, "item": 9_000, "day": 7}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    tables = tuple(TableSpec(name=name, rows=rows, dim=4) for name, rows in TABLES.items())
    tower = DlrmTower(bottom_mlp=(4,), top_mlp=(1,))
    model = ModelSpec(name="three", dense_features=1, tables=tables, tower=tower)
    return make_release(tmp_path / "made", model=model)


def spill(
    made: Made, replica: str, *, sample: float = 0.01, rows: int = 0, age_s: float = 0
) -> None:
    """Let a replica see some queries, or many rows of each table, and write them."""
    random = np.random.default_rng(int(replica, 16) + 1)
    with open_gateway(Source(made.store), made.release.digest) as opened:
        heat = LiveHeat(
            opened, sample=sample, half_life_s=1800.0, memory_bytes=1 << 17, replica=replica * 12
        )
    shards = len(made.release.shards)
    for _ in range(3):
        bags = [np.sort(random.zipf(1.2, rows) % most) for most in TABLES.values()]
        ends = np.cumsum([len(bag) for bag in bags])
        by_shard = np.zeros((shards, len(TABLES)), np.int64)
        heat.add([SampledQuery(np.concatenate(bags), ends, by_shard, samples=10)])
        heat.pass_time(700.0)
    heat.spill(open_store(made.store))
    path = Path(made.store) / heat_prefix(made.release.digest) / f"{replica * 12}.json"
    at = path.stat().st_mtime - age_s
    os.utime(path, (at, at))


def test_the_sums_and_the_profile_are_those_of_one_machine(made: Made, tmp_path: Path) -> None:
    spill(made, "a", rows=30_000)
    spill(made, "b", rows=20_000, sample=0.03, age_s=700)
    spill(made, "c", rows=500, sample=0.007, age_s=1234.5)
    spill(made, "d", rows=500, age_s=1e6)  # forgotten
    spill(made, "e", rows=500)
    manifest = Path(made.store) / heat_prefix(made.release.digest) / f"{'e' * 12}.json"
    manifest.write_text(manifest.read_text().replace('"number":1', '"number":2'))
    store = open_store(made.store)
    heat = read_live(store, made.release)
    assert [each.replica[0] for each in heat.spills] == ["a", "b", "c"]
    assert all(table.error > 0 for table in heat.tables[:2])  # more rows than counters
    alone = profile_live(store, made.release, tmp_path / "alone", before=made.profile)
    spark = profile_live_on_spark(
        LOCAL, StoreAt(made.store), made.release, tmp_path / "spark", before=made.profile
    )
    assert spark == alone
    assert len(spark.warnings) == 1
    assert "does not match its digest" in spark.warnings[0]
    assert tree(tmp_path / "spark") == tree(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"made", "alone", "spark"}


def test_no_heat_and_damaged_heat_are_told(made: Made, tmp_path: Path) -> None:
    out, at = tmp_path / "p", StoreAt(made.store)
    with pytest.raises(LogError, match="no gateway has sampled a query"):
        profile_live_on_spark(LOCAL, at, made.release, out)
    spill(made, "a")
    with pytest.raises(LogError, match="no query was sampled"):
        profile_live_on_spark(LOCAL, at, made.release, out)
    manifest = Path(made.store) / heat_prefix(made.release.digest) / f"{'a' * 12}.json"
    manifest.write_text(manifest.read_text().replace('"number":1', '"number":2'))
    with pytest.raises(ArtifactError, match="does not match its digest"):
        profile_live_on_spark(LOCAL, at, made.release, out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ExistsError):
        profile_live_on_spark(LOCAL, at, made.release, out)


def test_the_command_line_adds_up_on_spark(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spill(made, "a", rows=500)
    command = ["profile", "--live", "--store", str(made.store), "--engine", "spark"]
    command += ["--master", LOCAL.master, "--conf", "spark.sql.shuffle.partitions=2"]
    done = CliRunner().invoke(app, [*command, "--counts-out", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "kept").glob("*.parquet"))
    alone = CliRunner().invoke(app, ["profile", "--live", "--store", made.store, "--out", "alone"])
    assert alone.exit_code == 0, alone.output
    assert tree(tmp_path / "live") == tree(tmp_path / "alone")
