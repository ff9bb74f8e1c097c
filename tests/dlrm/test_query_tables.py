"""Queries that come as a table of samples, parquet or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from erless.dlrm.graph_queries import GraphQueryFile
from erless.dlrm.queries import QueryFile
from erless.dlrm.query_tables import QueryShape, convert_query_table
from erless.errors import QueryError
from erless.specs.features import NamedTensor

SHAPE = QueryShape(("user", "item"), dense=2)
CSV = "user_id,item,age,price,label\n7,3 5  9,0.5,1,1\n8,,0.25,2,0\n9, 4,1,3,1\n"
NAMED = {"user": ("user_id",), "dense": ("age", "price")}


def table(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_csv_and_parquet_are_the_same_queries(tmp_path: Path) -> None:
    text = tmp_path / "samples.csv"
    text.write_text(CSV)
    columns = table(
        tmp_path / "samples.parquet",
        user=[7, 8, 9],
        item=[[3, 5, 9], [], [4]],
        dense=[[0.5, 1], [0.25, 2], [1, 3]],
        labels=[1.0, 0, 1],
    )
    for path, named in ((text, NAMED), (columns, {})):
        convert_query_table(path, tmp_path / "made", SHAPE, named, batch=2)
        file = QueryFile(tmp_path / "made")
        assert (len(file), file.batch, file.samples) == (2, 2, 3)
        assert file.table_values(0).tolist() == [7, 8, 9]
        assert file.table_values(1).tolist() == [3, 5, 9, 4]
        assert file.lengths.tolist() == [[1, 1, 1], [3, 0, 1]]
        assert file[1].dense.tolist() == [[1, 3]]
        assert file.labels is not None and file.labels.tolist() == [1, 0, 1]


def test_inputs_of_a_graph(tmp_path: Path) -> None:
    inputs = (
        NamedTensor(name="user", datatype="INT64", shape=(-1,)),
        NamedTensor(name="clicked", datatype="INT32", shape=(-1,), per="entry"),
        NamedTensor(name="clicked.lengths", datatype="INT32", shape=(-1,)),
        NamedTensor(name="country", datatype="BYTES", shape=(-1,)),
    )
    path = table(tmp_path / "t.parquet", user=[1, 2], clicked=[[5], [6, 7]], country=["de", "fr"])
    convert_query_table(path, tmp_path / "made", QueryShape(inputs=inputs), {})
    first = GraphQueryFile(tmp_path / "made", inputs, 1)[1]
    assert first["clicked"].tolist() == [6, 7] and first["clicked.lengths"].tolist() == [2]
    assert first["country"].tolist() == [b"fr"] and first["user"].dtype == np.int64
    once = (NamedTensor(name="user", datatype="INT64", shape=(1,), per="request"),)
    with pytest.raises(QueryError, match="once per request"):
        convert_query_table(path, tmp_path / "made", QueryShape(inputs=once), {})


@pytest.mark.parametrize(
    ("columns", "named", "says"),
    [
        ({"user_id": [1]}, {}, "no column user for user.*nearest is user_id"),
        ({"user": [1], "item": [1.5], "dense": [[1, 2]]}, {}, "item is double"),
        ({"user": [1, None], "item": [1, 2]}, {}, "row 1: user is empty"),
        ({"user": [1], "item": [2], "dense": [[1.0]]}, {}, "1 dense features a sample.*takes 2"),
        ({"user": [1], "item": [2]}, {"price": ("p",)}, "--column price: the model has user, item"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, columns: dict[str, Any], named: dict[str, tuple[str, ...]], says: str
) -> None:
    path = table(tmp_path / "t.parquet", **columns)
    with pytest.raises(QueryError, match=says):
        convert_query_table(path, tmp_path / "made", SHAPE, named)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(QueryError, match=r"t\.parquet: "):
        convert_query_table(path, tmp_path / "made", SHAPE, {})
    weighted = QueryShape(("user",), weighted=("user",))
    with pytest.raises(QueryError, match="pools by weights"):
        convert_query_table(table(path, user=[1]), tmp_path / "made", weighted, {})
