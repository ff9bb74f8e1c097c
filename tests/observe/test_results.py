"""Result directories: written whole, read back the same, damage is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from erless.errors import ArtifactError
from erless.observe.queries import QueryOutcomes, latency_of, timeline_of, totals_of
from erless.observe.results import read_result
from tests.observe.conftest import DURATION_S, query_log, write_small


def test_a_result_reads_back(tmp_path: Path) -> None:
    stored = read_result(write_small(tmp_path / "r"))
    expected = timeline_of(query_log(), DURATION_S, 5.0, 12.0)
    for name, column in expected.items():
        np.testing.assert_allclose(stored.timeline[name], column, err_msg=name)
    assert stored.document.queries == 3000
    assert stored.document.failures == {"deadline": 10}
    assert stored.document.memory_reduction == 4
    assert [each.kind for each in stored.events] == ["cold start"]
    assert stored.of_function("hot-0")["ready"].tolist() == [2] * 30


@pytest.mark.parametrize("name", ["timeline.parquet", "functions.parquet", "events.parquet"])
def test_a_table_cut_short_is_told(tmp_path: Path, name: str) -> None:
    path = write_small(tmp_path / "r") / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=rf"{name}: cut short or altered"):
        read_result(tmp_path / "r")
    path.unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        read_result(tmp_path / "r")


def test_no_result_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        read_result(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"result.json does not exist"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a erless result"):
        read_result(tmp_path)


def test_steps_count_queries_where_they_were_due() -> None:
    due = np.array([0.5, 1.5, 1.6, 9.9])
    log = QueryOutcomes(
        due,
        np.array([0.01, 3.0, np.nan, 0.02]),
        ["", "", "down", ""],
        np.zeros(4, bool),
        np.zeros(4, bool),
    )
    columns = timeline_of(log, 10.0, 1.0, 100.0)
    assert columns["offered_qps"].tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert columns["served_qps"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert columns["late"].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert columns["p95_ms"][1] == pytest.approx(3000)
    assert np.isnan(columns["p95_ms"][2])
    totals = totals_of(log, 100.0)
    assert (totals["queries"], totals["answered"], totals["late_share"]) == (4, 3, 0.5)


def test_nothing_answered_has_no_latency() -> None:
    assert latency_of(np.array([np.nan, np.nan])).p95_ms is None
    empty = QueryOutcomes(np.empty(0), np.empty(0), [], np.empty(0, bool), np.empty(0, bool))
    assert timeline_of(empty, 3.0, 1.0, None)["offered_qps"].tolist() == [0, 0, 0]
    assert totals_of(empty, None)["late_share"] == 0
