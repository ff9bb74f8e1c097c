import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.dlrm.workload import WORKLOADS, PowerLaw, RowOrder
from erless.importers.synthetic import make_example
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower
from erless.storage.digests import digest_file

SMALL = dataclasses.replace(WORKLOADS["rm1"], rows=5000, tables=3)


@given(st.integers(1, 5000), st.integers(0, 2**32))
def test_a_row_order_is_a_bijection(rows: int, seed: int) -> None:
    order = RowOrder.seeded(rows, np.random.default_rng(seed))
    assert np.array_equal(np.sort(order.ids(np.arange(rows))), np.arange(rows))


def test_a_row_order_at_full_scale_does_not_overflow() -> None:
    rows = 3_000_000_000
    order = RowOrder.seeded(rows, np.random.default_rng(0))
    ranks = np.array([0, 1, rows - 1])
    expected = [(int(rank) * order.stride + order.start) % rows for rank in ranks]
    assert order.ids(ranks).tolist() == expected


@pytest.mark.parametrize("locality", [0.1, 0.5, 0.9])
def test_samples_follow_the_law(locality: float) -> None:
    law = PowerLaw(100_000, locality)
    ranks = law.sample(np.random.default_rng(0), 200_000)
    assert ranks.min() >= 0
    assert ranks.max() < law.rows
    for share in (0.001, 0.01, 0.1, 0.5):
        found = (ranks < share * law.rows).mean()
        assert abs(found - law.cdf(share * law.rows)) < 0.005


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_example(SMALL, tmp_path / name, queries=4, log_samples=600, seed=seed)
    for file in ("model.json", "queries.safetensors", "access.parquet"):
        a, b, c = (digest_file(tmp_path / name / file) for name in "abc")
        assert a == b != c


def test_the_log_and_the_queries_touch_the_same_hot_rows(tmp_path: Path) -> None:
    make_example(SMALL, tmp_path / "m", queries=16, log_samples=1000)
    log = pq.read_table(tmp_path / "m" / "access.parquet")
    assert log.num_rows == 1000
    assert log.column_names == [f"table_{i}" for i in range(3)]
    file = QueryFile(tmp_path / "m" / "queries.safetensors")
    for index in range(3):
        ids = log.column(index).combine_chunks().flatten().to_numpy()
        assert len(ids) == 1000 * 128
        hottest = np.argsort(-np.bincount(ids, minlength=5000), kind="stable")[:500]
        queried = file.values[index * 512 * 128 : (index + 1) * 512 * 128]
        assert abs(np.isin(queried, hottest).mean() - 0.9) < 0.01


def test_the_model_is_the_papers() -> None:
    model = WORKLOADS["rm3"].model()
    assert model.dense_features == 2560
    assert isinstance(model.tower, DlrmTower)
    assert model.tower.bottom_mlp == (1024, 256, 32)
    assert model.embedding_bytes == 10 * 20_000_000 * 128


def test_a_tower_of_a_manifest_round_trips(tmp_path: Path) -> None:
    made = make_example(SMALL, tmp_path / "m", queries=1, log_samples=1)
    assert BundleManifest.open(tmp_path / "m") == made
    assert json.loads((tmp_path / "m" / "model.json").read_text())["digest"] == made.digest


def test_mlperfs_model_has_its_sizes_and_bags(tmp_path: Path) -> None:
    whole = WORKLOADS["dlrmv2"].model()
    assert len(whole.tables) == 26
    assert sum(table.rows for table in whole.tables) == 204_184_588
    assert sum(pooling for _, pooling in WORKLOADS["dlrmv2"].table_sizes) == 214
    small = dataclasses.replace(WORKLOADS["dlrmv2"].scaled(1e-5), batch=4)
    assert {table.rows for table in small.model().tables} >= {3, 4, 1000}
    model = make_example(small, tmp_path / "m", queries=2, log_samples=8).model
    assert isinstance(model.tower, DlrmTower)
    assert model.tower.cross is not None
    query = QueryFile(tmp_path / "m" / "queries.safetensors")[0]
    assert query.lengths[:, 0].tolist() == [pooling for _, pooling in small.table_sizes]
    predictions = Monolith.load(tmp_path / "m").predict(query)
    assert predictions.std() > 0.02
