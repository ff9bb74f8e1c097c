"""Profiles counted on Spark are those of one machine, and what is wrong is told as well."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erless.errors import ArtifactError, LogError, SparkError, StorageError
from erless.plan.source import profile_tables
from erless.profile.access import profile_access
from erless.profile.counted import AccessReport
from erless.profile.formats import LogFormat, LogSource
from erless.profile.spark import job, session
from erless.profile.spark.executor import CountTask
from erless.profile.spark.job import SparkProfile, profile_on_spark
from erless.profile.spark.session import SparkOptions, spark_session
from erless.profile.spark.units import log_units, shares
from erless.specs.bundle import BundleManifest
from erless.storage.tensors import write_tensors
from tests.conftest import ROOT

from ..conftest import MakeBundle
from .conftest import LOCAL

pytest.importorskip("pyspark", reason="pyspark is not installed: `make spark`")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # pyspark's own sockets
    pytest.mark.usefixtures("one_session"),
]

TABLES = {"t": 5000, "u": 70, "untouched": 3}


@pytest.fixture
def unit_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row group is a unit, and a table has several windows."""

    monkeypatch.setattr(job, "log_units", partial(log_units, unit_bytes=1))
    monkeypatch.setattr(job, "WINDOW_ROWS", 512)


def bags(rows: int, samples: int, seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [(generator.zipf(1.3, generator.integers(0, 9)) % rows).tolist() for _ in range(samples)]


def write_log(path: Path, **columns: list[list[int]]) -> Path:
    arrays = {name: pa.array(each, pa.list_(pa.int64())) for name, each in columns.items()}
    pq.write_table(pa.table(arrays), path, row_group_size=100)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def both(model: Path, sources: list[LogSource], folder: Path) -> tuple[AccessReport, AccessReport]:
    alone = profile_access(model, sources, folder / "alone")
    spark = profile_on_spark(LOCAL, model, sources, folder / "spark", SparkProfile())
    return alone, spark


def test_logs_of_every_format_give_the_same_profile(
    make_bundle: MakeBundle, tmp_path: Path, unit_bytes: None
) -> None:
    model = make_bundle(TABLES)
    lists = write_log(tmp_path / "a.parquet", t=bags(5000, 450, 0), u=bags(70, 450, 1))
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        write_log(folder / f"part-{number}.parquet", t=bags(5000, 150, 5 + number))
    counts = {"table": ["t", "u"] * 150, "id": [4, 5] * 150, "count": [3, 0] * 150}
    counted = pa.table(counts).replace_schema_metadata({"samples": "17"})
    pq.write_table(counted, tmp_path / "counts.parquet", row_group_size=100)
    (tmp_path / "lines.txt").write_text("ann 1 2 2\n\nbob 69\ncid\n")
    texts = [str(lists), str(folder), str(tmp_path / "counts.parquet"), f"u:{tmp_path}/lines.txt"]
    sources = [LogSource.parse(text) for text in texts]
    assert len(list(log_units(sources, TABLES, LogFormat.AUTO, 1))) == 5 + 2 * 2 + 3 + 1
    alone, spark = both(model, sources, tmp_path)
    assert spark == alone
    files = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*.*")
        }
        for name in ("alone", "spark")
    ]
    assert files[0] == files[1]


def test_criteo_and_a_log_without_samples(make_bundle: MakeBundle, tmp_path: Path) -> None:
    model = make_bundle({"C1": 1000, "C2": 9})
    line = "\t".join(["1", *["0"] * 13, "68fd1e64", "", *["a"] * 24])
    (tmp_path / "day.tsv").write_text(f"{line}\n{line}\n")
    pq.write_table(pa.table({"id": [7], "count": [2]}), tmp_path / "c2.parquet")
    sources = [LogSource.parse(f"{tmp_path}/day.tsv"), LogSource.parse(f"C2:{tmp_path}/c2.parquet")]
    alone, spark = both(model, sources, tmp_path)
    assert spark == alone
    assert any("does not say how many samples" in line for line in spark.warnings)


def test_a_bad_id_is_named_by_file_row_group_and_row(
    make_bundle: MakeBundle, tmp_path: Path, unit_bytes: None
) -> None:
    model = make_bundle(TABLES)
    lists = bags(5000, 450, 0)
    lists[333] = [1, 5000]
    lists[444] = [-1]
    log = write_log(tmp_path / "a.parquet", t=lists)
    told = (
        r"a\.parquet: row 333 in row group 3: id 5000 is outside table t, whose rows are 0 … 4999"
    )
    with pytest.raises(LogError, match=told):
        profile_on_spark(LOCAL, model, [LogSource.parse(str(log))], tmp_path / "p", SparkProfile())
    assert not (tmp_path / "p").exists()
    assert not [path for path in tmp_path.iterdir() if "-counts-" in path.name]


def test_an_empty_log_and_counts_that_are_there_already(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    model = make_bundle(TABLES)
    sources = [LogSource.parse(str(write_log(tmp_path / "a.parquet", t=[[], []])))]
    how = SparkProfile(counts_at=str(tmp_path / "kept"))
    with pytest.raises(LogError, match="the log is empty: no accesses in it"):
        profile_on_spark(LOCAL, model, sources, tmp_path / "p", how)
    with pytest.raises(SparkError, match=r"Spark gave up: .*already exists"):
        profile_on_spark(LOCAL, model, sources, tmp_path / "p", how)
    assert not (tmp_path / "p").exists()


def test_a_sample_reads_some_units(
    make_bundle: MakeBundle, tmp_path: Path, unit_bytes: None
) -> None:
    model = make_bundle(TABLES)
    log = write_log(tmp_path / "a.parquet", t=[[1, 2]] * 400)
    how = SparkProfile(every=2)
    report = profile_on_spark(LOCAL, model, [LogSource.parse(str(log))], tmp_path / "p", how)
    access = report.profile.tables[0]
    assert (access.samples, access.accesses, access.pooling_factor) == (200, 400, 2.0)


def test_of_a_table_beyond_the_bound_a_histogram_is_kept_to_plan_with(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    model = make_bundle(TABLES)
    log = write_log(tmp_path / "a.parquet", t=bags(5000, 300, 0), u=bags(3, 300, 1))
    sources = [LogSource.parse(str(log))]
    how = SparkProfile(most_rows=3)
    report = profile_on_spark(LOCAL, model, sources, tmp_path / "p", how)
    large, small, _ = report.profile.tables
    assert (large.counts, small.histogram) == (None, None)
    profile_access(model, sources, tmp_path / "exact")
    _, planned, _ = profile_tables(BundleManifest.open(model), tmp_path / "p", 32)
    _, exact, _ = profile_tables(BundleManifest.open(model), tmp_path / "exact", 32)
    for table, wanted in zip(planned, exact, strict=True):
        assert table.gathers == wanted.gathers
        np.testing.assert_allclose(table.curve.share, wanted.curve.share, atol=1e-12)
    histogram = tmp_path / "p" / "histograms" / "t.safetensors"
    write_tensors(histogram, {"values": np.array([2]), "rows": np.array([1])})
    with pytest.raises(ArtifactError, match="not the histogram that the profile speaks of"):
        profile_tables(BundleManifest.open(model), tmp_path / "p", 32)


def test_an_executor_whose_work_fails_ends_the_job(make_bundle: MakeBundle, tmp_path: Path) -> None:
    model = make_bundle(TABLES)
    log = write_log(tmp_path / "a.parquet", t=[[1, 2]] * 400)
    sources = [LogSource.parse(str(log))]
    units = list(log_units(sources, TABLES, LogFormat.AUTO))
    gone = replace(job_task(model, sources, units), model="no model at all")
    with spark_session(LOCAL) as spark, pytest.raises(SparkError, match="Spark gave up: "):
        with session.spark_errors():
            job.count_on_spark(spark, gone).collect()


def job_task(model: Path, sources: list[LogSource], units: list[Any]) -> CountTask:
    share = tuple(tuple(each) for each in shares(units, 1))
    return CountTask("", str(model), tuple(sources), "auto", share)


def test_without_java_or_a_master_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for scheme in ("spark", "sc"):
        with (
            pytest.raises(SparkError, match=rf"no Spark answers at {scheme}://127.0.0.1:{port}: "),
            spark_session(SparkOptions(f"{scheme}://127.0.0.1:{port}")),
        ):
            pass
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    told = "no Java at JAVA_HOME=/nowhere: Spark 4 needs Java 17"
    with pytest.raises(SparkError, match=told), spark_session(LOCAL):
        pass
    import pyspark

    monkeypatch.setattr(pyspark, "__version__", "3.5.1")
    told = r"pyspark here is 3\.5\.1: it must be of version 4"
    with pytest.raises(SparkError, match=told), spark_session(LOCAL):
        pass


def test_counts_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    from erless.profile.spark.counts import SparkCounts

    with pytest.raises(StorageError, match="what Spark wrote cannot be read"):
        SparkCounts(str(tmp_path / "absent"), {}, tmp_path)


def test_a_cluster_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyspark
    from pyspark.sql import SparkSession

    with spark_session(LOCAL):
        monkeypatch.setattr(SparkSession, "version", property(lambda _: "3.5.1"))
        told = rf"the cluster runs Spark 3\.5\.1, pyspark here is {pyspark.__version__}: both must"
        with pytest.raises(SparkError, match=told), spark_session(LOCAL):
            pass


def test_an_executor_lost_midway_costs_nothing_but_time(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    model = make_bundle(TABLES)
    log = write_log(tmp_path / "a.parquet", t=bags(5000, 450, 0), u=bags(70, 450, 1))
    marker = tmp_path / "killed"
    script = "tests.profile.spark.losing_an_executor"
    command = [sys.executable, "-m", script, str(model), str(log), str(tmp_path / "p"), str(marker)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=300,
        env={**os.environ, "SPARK_HOME": pyspark_folder(), "SPARK_SCALA_VERSION": "2.13"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert marker.exists()
    assert "Lost executor" in done.stderr
    alone = profile_access(model, [LogSource.parse(str(log))], tmp_path / "alone")
    assert done.stdout.split()[-1] == alone.profile.digest


def pyspark_folder() -> str:
    import pyspark

    return str(Path(pyspark.__file__).parent)


def test_spark_submit_runs_the_script_with_the_package_from_its_py_files(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    model = make_bundle(TABLES)
    log = write_log(tmp_path / "a.parquet", t=bags(5000, 300, 0))
    package = tmp_path / "erless.zip"
    with zipfile.ZipFile(package, "w") as archive:
        for path in (ROOT / "erless").rglob("*.py"):
            archive.write(path, path.relative_to(ROOT).as_posix())
    other = tmp_path / "other"  # an erless that is found, if that one is not
    other.mkdir()
    (other / "erless.py").write_text("raise ImportError('not the one of --py-files')\n")
    script = ROOT / "spark" / "erless-profile-spark.py"
    command = [f"{pyspark_folder()}/bin/spark-submit", "--master", "local[2]"]
    command += ["--conf", "spark.ui.enabled=false", "--conf", "spark.driver.bindAddress=127.0.0.1"]
    command += ["--conf", "spark.driver.host=127.0.0.1", "--py-files", str(package), str(script)]
    command += ["--model", str(model), "--log", str(log), "--out", str(tmp_path / "p")]
    env = {**os.environ, "PYTHONPATH": str(other), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    profile_access(model, [LogSource.parse(str(log))], tmp_path / "alone")
    assert tree(tmp_path / "p") == tree(tmp_path / "alone")
    wheel = package.rename(tmp_path / "erless-0-py3-none-any.whl")
    told = "Spark hands no .whl to executors: copy it to erless.zip"
    env["PYTHONPATH"] = str(wheel)  # as spark-submit does with --py-files
    command = [sys.executable, str(script), "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert told in done.stderr
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2  # as `erless profile`, before Spark starts
    assert "--log" in done.stderr
