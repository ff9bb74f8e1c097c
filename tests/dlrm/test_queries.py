import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm.queries import Query, QueryFile, check_query, check_tables, write_queries
from erless.errors import QueryError
from erless.specs.model import DlrmTower, Interaction, ModelSpec, Pooling, TableSpec
from erless.storage.tensors import write_tensors

MODEL = ModelSpec(
    dense_features=2,
    tables=(
        TableSpec(name="users", rows=10, dim=4),
        TableSpec(name="items", rows=100, dim=2, pooling=Pooling.MEAN),
    ),
    tower=DlrmTower(bottom_mlp=(4,), top_mlp=(1,), interaction=Interaction.CAT),
)


def query(**changes: object) -> Query:
    fields = {
        "dense": np.zeros((3, 2), np.float32),
        "values": np.array([1, 2, 3, 40, 50], np.int32),
        "lengths": np.array([[1, 2, 0], [0, 1, 1]], np.int32),
    }
    return Query(**(fields | changes))


def test_a_good_query_passes() -> None:
    check_query(query(), MODEL)


def nan(row: int, column: int, value: float) -> np.ndarray:
    dense = np.zeros((3, 2), np.float32)
    dense[row, column] = value
    return dense


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense": np.zeros((3, 5), np.float32)}, r"dense has shape \(3, 5\), expected \(3, 2\)"),
        ({"dense": nan(2, 1, np.nan)}, r"dense\[2, 1\] is nan"),
        ({"dense": nan(0, 0, np.inf)}, r"dense\[0, 0\] is inf"),
        ({"lengths": np.zeros((3, 3), np.int32)}, "lengths has 3 rows, the model 2 tables"),
        (
            {"lengths": np.array([[1, 2, 0], [0, 1, 2]], np.int32)},
            "lengths sum to 6, but values has 5 ids",
        ),
        (
            {"lengths": np.array([[1, 3, 0], [0, -1, 2]], np.int32)},
            "table items, sample 1: length -1 is negative",
        ),
        (
            {"values": np.array([1, 2, 10, 40, 50], np.int32)},
            r"table users, sample 1: row id 10 at values\[2\] is outside 0 … 9",
        ),
        (
            {"values": np.array([1, 2, 3, 40, -7], np.int64)},
            r"table items, sample 2: row id -7 at values\[4\] is outside 0 … 99",
        ),
        ({"weights": np.ones(4, np.float32)}, "4 weights for 5 values"),
        ({"weights": np.full(5, np.nan, np.float32)}, r"weights\[0\] is nan"),
    ],
)
def test_a_bad_query_names_the_place(changes: dict, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        check_query(query(**changes), MODEL)


def test_weighted_sum_needs_weights() -> None:
    tables = (MODEL.tables[0], TableSpec(name="w", rows=100, dim=2, pooling="weighted_sum"))
    model = MODEL.model_copy(update={"tables": tables})
    with pytest.raises(QueryError, match="table w pools by weighted sum"):
        check_query(query(), model)
    check_query(query(weights=np.ones(5, np.float32)), model)


@st.composite
def samples(draw: st.DrawFn) -> Query:
    tables, count = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = generator.integers(0, 4, (tables, count)).astype(np.int32)
    total = int(lengths.sum())
    return Query(
        dense=generator.standard_normal((count, 3)).astype(np.float32),
        values=generator.integers(0, 1000, total).astype(draw(st.sampled_from(["i4", "i8"]))),
        lengths=lengths,
        weights=draw(st.sampled_from([None, generator.random(total, np.float32)])),
        labels=draw(st.sampled_from([None, generator.random(count, np.float32)])),
    )


def bags(query: Query) -> list[list[list[int]]]:
    """Ids by table and sample, the slow way."""
    ids, result = iter(query.values.tolist()), []
    for row in query.lengths.tolist():
        result.append([[next(ids) for _ in range(length)] for length in row])
    return result


@given(samples(), st.integers(1, 7))
def test_a_file_cut_into_any_batches_holds_the_same_bags(tmp_path_factory, whole, batch) -> None:
    path = tmp_path_factory.mktemp("q") / "q.safetensors"
    names = [f"t{index}" for index in range(len(whole.lengths))]
    write_queries(path, whole, names, batch)
    file = QueryFile(path)
    assert (file.batch, file.samples, file.table_names) == (batch, whole.batch, names)
    pieces = list(file)
    assert len(pieces) == len(file)
    assert all(piece.batch == batch for piece in pieces[:-1])
    for table, expected in enumerate(bags(whole)):
        assert [bag for piece in pieces for bag in bags(piece)[table]] == expected
    assert np.array_equal(np.concatenate([piece.dense for piece in pieces]), whole.dense)
    if whole.labels is not None:
        assert np.array_equal(np.concatenate([piece.labels for piece in pieces]), whole.labels)
    if whole.weights is not None:
        assert QueryFile(path, whole.batch)[0].weights.tolist() == whole.weights.tolist()
    with pytest.raises(IndexError):
        file[len(file)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros(4, np.int32)}, "lengths sum to 5, but values has 4 ids"),
        ({"values": np.zeros(5, np.float32)}, "values must be a vector of int32 or int64"),
        ({"dense": np.zeros(3, np.float32)}, "must have two dimensions"),
        ({"dense": np.zeros((2, 2), np.float32)}, "dense has 2 samples, lengths 3"),
        ({"labels": np.zeros(2, np.float32)}, "labels has 2 samples, lengths 3"),
        ({"weights": np.zeros(2, np.float32)}, "weights and values differ"),
        ({"lengths": np.array([[9, 2, 0], [0, -7, 1]], np.int32)}, r"lengths\[1, 1\] is negative"),
    ],
)
def test_a_contradictory_file(tmp_path: Path, changes: dict, message: str) -> None:
    good = query()
    tensors = {"dense": good.dense, "values": good.values, "lengths": good.lengths} | changes
    write_tensors(tmp_path / "q", tensors, {"tables": json.dumps(["users", "items"])})
    with pytest.raises(QueryError, match=message):
        QueryFile(tmp_path / "q")


def test_a_file_for_another_model(tmp_path: Path) -> None:
    write_queries(tmp_path / "q", query(), ["users", "films"], 2)
    with pytest.raises(QueryError, match="for table films where the model has items"):
        check_tables(QueryFile(tmp_path / "q"), MODEL)
    write_queries(tmp_path / "q", query(), ["users", "items"], 2)
    check_tables(QueryFile(tmp_path / "q"), MODEL)
