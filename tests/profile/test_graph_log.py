"""What a graph's queries look up is counted by table: through front, rules and features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erless.dlrm.graph_queries import write_graph_queries
from erless.errors import LogError
from erless.profile.access import profile_access
from erless.profile.formats import LogSource
from erless.specs.features import ModuloIds
from erless.storage.tensors import TensorFile
from tests.graphs import ITEMS, TAGS, USERS, Ranker, ranker_inputs, ranker_spec, write_ranker


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    spec = ranker_spec(f_user={"rule": ModuloIds(rows=USERS)}, f_target={"unknown": "zero"})
    write_ranker(tmp_path / "model", Ranker().eval(), spec)
    return tmp_path / "model"


def counts(profile: Path, table: str, rows: int) -> list[int]:
    file = TensorFile(profile / "counts" / f"{table}.safetensors")
    found = np.zeros(rows, np.int64)
    found[file.read("ids")] = file.read("counts")
    return found.tolist()


def test_counts_are_those_of_the_rows_looked_up(bundle: Path, tmp_path: Path) -> None:
    inputs = ranker_inputs(50, 6)
    inputs["user"] += USERS * 3
    inputs["target"][7] = ITEMS + 5  # no row: counts for nothing
    write_graph_queries(tmp_path / "q.safetensors", inputs, 8)
    report = profile_access(
        bundle, [LogSource.parse(str(tmp_path / "q.safetensors"))], tmp_path / "p"
    )
    items = np.concatenate([inputs["history"].reshape(-1) % ITEMS, np.delete(inputs["target"], 7)])
    tags = inputs["tags"][inputs["tags"] != 0]
    for table, ids, rows in (
        ("items", items, ITEMS),
        ("tags", tags, TAGS),
        ("users", inputs["user"] % USERS, USERS),
    ):
        assert counts(tmp_path / "p", table, rows) == np.bincount(ids, minlength=rows).tolist()
    assert {table.access.samples for table in report.tables} == {50}


def test_parquet_may_have_a_column_for_each_feature(bundle: Path, tmp_path: Path) -> None:
    columns = {"f_user": [[USERS + 1], [2]], "f_target": [[5], [ITEMS]], "f_tags": [[1, 2], []]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    profile_access(bundle, [LogSource.parse(str(tmp_path / "log.parquet"))], tmp_path / "p")
    assert np.flatnonzero(counts(tmp_path / "p", "users", USERS)).tolist() == [1, 2]
    assert np.flatnonzero(counts(tmp_path / "p", "items", ITEMS)).tolist() == [5]
    pq.write_table(pa.table({"f_tags": [[TAGS]]}), tmp_path / "bad.parquet")
    with pytest.raises(LogError, match="id 300 is outside table tags"):
        profile_access(bundle, [LogSource.parse(str(tmp_path / "bad.parquet"))], tmp_path / "b")
