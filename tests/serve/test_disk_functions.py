"""Functions of the disk tier, as processes: exact answers, or an error and a metric."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.disk import BLOCK_BYTES, block_checksums
from erless.dlrm.reference import Monolith
from erless.serve.disk_files import DiskOptions, open_disk_shard
from erless.serve.files import Source, open_shard
from erless.specs.plan import Precision, Tier
from erless.specs.release import ShardManifest, shard_name
from erless.storage.tensors import TensorFile
from tests.releases import Cut, Made, default_model, make_release, random_query
from tests.serve.functions import Fleet, Function, body_of, predict

DISK_TIERS = (
    Cut("resident", Tier.RESIDENT, 0.02),
    Cut("hot", Tier.HOT, 0.2),
    Cut("cold", Tier.COLD, 0.6, cache_bytes=20_000),
    Cut("frozen", Tier.FROZEN, 1.0, Precision.INT8, cache_bytes=0),
)
INFER = "/v2/models/small/infer"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(
        tmp_path_factory.mktemp("disk"), model=default_model(20_000), tiers=DISK_TIERS
    )


@pytest.fixture(scope="module")
def running(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(made, tmp_path_factory.mktemp("logs")) as fleet:
        yield fleet


def manifest_of(made: Made, shard: str) -> ShardManifest:
    path = Path(made.store) / shard_name(made.release.shard(shard).digest)
    return ShardManifest.load(path)


def test_rows_of_the_disk_tier_begin_at_a_block_and_have_checksums(made: Made) -> None:
    for shard in ("cold", "frozen"):
        for part in manifest_of(made, shard).slices:
            file = TensorFile(Path(made.store) / part.file.path)
            assert file.info("rows").begin % BLOCK_BYTES == 0
            expected = block_checksums(file.read("rows").reshape(-1).view(np.uint8))
            np.testing.assert_array_equal(file.read("checksums"), expected)
    for part in manifest_of(made, "hot").slices:
        assert "checksums" not in TensorFile(Path(made.store) / part.file.path).tensors


def test_a_manifest_says_which_tier_and_old_ones_keep_their_digest(made: Made) -> None:
    assert manifest_of(made, "cold").cache_bytes == 20_000
    assert manifest_of(made, "frozen").cache_bytes == 0
    assert made.release.shard("cold").cache_bytes == 20_000
    path = Path(made.store) / shard_name(made.release.shard("hot").digest)
    assert "cache_bytes" not in json.loads(path.read_text())


def test_a_shard_answers_from_its_disk_what_it_answers_from_memory(made: Made) -> None:
    digest = made.release.shard("frozen").digest
    source = Source(made.store)
    with (
        open_shard(source, digest) as memory,
        open_disk_shard(source, digest, DiskOptions()) as disk,
    ):
        ids = [part.index for part in memory.shard.slices]
        held = [np.flatnonzero(index.local(np.arange(index.rows)) >= 0)[:300] for index in ids]
        lengths = np.array([[len(each)] for each in held], np.int32)
        values = np.concatenate(held)
        np.testing.assert_array_equal(
            disk.shard.pool(values, lengths), memory.shard.pool(values, lengths)
        )
        assert disk.shard.counts().rows_read == len(values)


def test_a_release_with_a_disk_tier_predicts_what_its_bundle_does(
    made: Made, running: Fleet
) -> None:
    monolith = Monolith.load(made.bundle)
    for seed in range(4):
        query = random_query(made.model, seed, 16)
        np.testing.assert_allclose(
            predict(running.gateway, made, query), monolith.predict(query), rtol=2e-2
        )
    cold = running.shards["cold"]
    assert cold.metric("erless_disk_rows_total") > 0
    assert cold.metric("erless_disk_reads_total") <= cold.metric("erless_disk_rows_total")
    assert cold.metric("erless_disk_cached_total") > 0
    assert cold.metric("erless_disk_faults_total") == 0
    assert running.shards["hot"].metric("erless_disk_rows_total") == 0


def test_a_function_says_how_it_reads(running: Fleet) -> None:
    cold = running.shards["cold"]
    facts = json.loads(cold.get("/v2/models/shard")[1])["parameters"]["disk"]
    assert facts["engine"] in ("io_uring", "pread")
    assert facts["cache_bytes"] == 20_000
    assert cold.event("ready")["disk"] == facts
    assert f'disk_engine="{facts["engine"]}"' in cold.get("/metrics")[1].decode()


@pytest.mark.parametrize("engine", ["pread", "io_uring"])
def test_an_engine_that_is_asked_for_is_had_or_refused(
    made: Made, tmp_path: Path, engine: str
) -> None:
    digest = made.release.shard("cold").digest
    function = Function(
        "sparse", tmp_path, ERLESS_STORE=made.store, ERLESS_SHARD=digest, ERLESS_DISK_ENGINE=engine
    )
    try:
        assert function.ready().event("ready")["disk"]["engine"] == engine
    except AssertionError:
        assert engine == "io_uring"
        assert "its disk cannot be read" in function.log.read_text()
    finally:
        function.stop()


def test_several_workers_share_the_cache_s_memory_and_count_together(
    made: Made, tmp_path: Path
) -> None:
    digest = made.release.shard("cold").digest
    function = Function(
        "sparse", tmp_path, ERLESS_STORE=made.store, ERLESS_SHARD=digest, ERLESS_WORKERS="2"
    ).ready()
    try:
        assert function.event("ready")["disk"]["cache_bytes"] == 10_000
        assert function.get("/v2/health/ready")[0] == 200
    finally:
        assert function.stop() == 0


def own_release(tmp_path: Path) -> Made:
    return make_release(tmp_path, model=default_model(20_000), tiers=DISK_TIERS)


def rows_file(made: Made, shard: str) -> Path:
    return Path(made.store) / manifest_of(made, shard).slices[0].file.path


def not_ready(function: Function) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        status, text = function.get("/v2/health/ready")
        if status == 503:
            return str(json.loads(text)["error"])
        time.sleep(0.05)
    raise AssertionError("it is ready still")


def test_rows_that_are_overwritten_become_an_error_and_end_the_function(tmp_path: Path) -> None:
    made = own_release(tmp_path)
    with Fleet(made, tmp_path / "logs", every={"ERLESS_SCRUB_BYTES_S": "0"}) as fleet:
        path = rows_file(made, "cold")
        info = TensorFile(path).info("rows")
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(info.begin)
            file.write(os.urandom(info.end - info.begin))
        status, answer = fleet.gateway.post(INFER, body_of(random_query(made.model, 1, 64)))
        assert status >= 500, answer
        assert "changed while they were served" in not_ready(fleet.shards["cold"])
        assert fleet.shards["cold"].metric("erless_disk_faults_total") > 0
        assert 'kind="disk"' in fleet.shards["cold"].get("/metrics")[1].decode()


def test_rows_that_are_cut_off_become_an_error(tmp_path: Path) -> None:
    made = own_release(tmp_path)
    with Fleet(made, tmp_path / "logs") as fleet:
        path = rows_file(made, "cold")
        path.chmod(0o600)
        os.truncate(path, TensorFile(path).info("rows").begin + 8192)
        status, answer = fleet.gateway.post(INFER, body_of(random_query(made.model, 1, 64)))
        assert status >= 500, answer
        assert path.name in not_ready(fleet.shards["cold"])


def test_more_than_the_disk_can_read_is_refused_and_the_rest_is_right(tmp_path: Path) -> None:
    """One read may wait: a client that asks ten at a time gets answers and 503s, nothing else."""
    from concurrent.futures import ThreadPoolExecutor

    made = own_release(tmp_path)
    digest = made.release.shard("cold").digest
    function = Function(
        "sparse",
        tmp_path,
        ERLESS_STORE=made.store,
        ERLESS_SHARD=digest,
        ERLESS_DISK_ENGINE="pread",
        ERLESS_DISK_DEPTH="1",
        ERLESS_DISK_WAITING="1",
    ).ready()
    with open_shard(Source(made.store), digest) as opened:
        shard = opened.shard
        held = [
            np.flatnonzero(part.index.local(np.arange(part.index.rows)) >= 0)
            for part in shard.slices
        ]

        def ask(seed: int) -> int:
            generator = np.random.default_rng(seed)
            values = np.concatenate([generator.choice(each, 500) for each in held])
            lengths = np.full((len(held), 10), 50, np.int32)
            inputs = [
                {"name": "values", "datatype": "INT64", "shape": [len(values)]}
                | {"data": values.tolist()},
                {"name": "lengths", "datatype": "INT32", "shape": list(lengths.shape)}
                | {"data": lengths.tolist()},
            ]
            status, answer = function.post(
                "/v2/models/shard/infer", json.dumps({"inputs": inputs}).encode()
            )
            if status == 200:
                found = np.array(answer["outputs"][0]["data"], np.float32)
                expected = shard.pool(values, lengths)
                np.testing.assert_array_equal(found.reshape(expected.shape), expected)
            else:
                assert "too many reads wait" in answer["error"]
            return status

        with ThreadPoolExecutor(10) as threads:
            statuses = list(threads.map(ask, range(60)))
    refused = function.metric("erless_disk_refused_total")
    function.stop()
    assert set(statuses) <= {200, 503}
    assert 200 in statuses
    assert statuses.count(503) == refused
