import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm.queries import Query, QueryFile, check_query, write_queries
from erless.errors import ArtifactError, QueryError
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


def query(**changes: Any) -> Query:
    fields: dict[str, Any] = {
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
def test_a_bad_query_names_the_place(changes: dict[str, np.ndarray], message: str) -> None:
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
def test_a_file_cut_into_any_batches_holds_the_same_bags(
    tmp_path_factory: pytest.TempPathFactory, whole: Query, batch: int
) -> None:
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
        labels = [piece.labels for piece in pieces if piece.labels is not None]
        assert np.array_equal(np.concatenate(labels), whole.labels)
    if whole.weights is not None:
        weights = QueryFile(path, whole.batch)[0].weights
        assert weights is not None
        assert weights.tolist() == whole.weights.tolist()
    with pytest.raises(IndexError):
        file[len(file)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros(4, np.int32)}, "lengths sum to 5, but values has 4 ids"),
        ({"values": np.zeros(5, np.float32)}, "values is F32, expected int32 or other integers"),
        ({"dense": np.zeros(3, np.float32)}, r"dense has shape \(3,\), expected 2 dimensions"),
        ({"dense": np.zeros((2, 2), np.float32)}, "dense has 2 samples, lengths 3"),
        ({"labels": np.zeros(2, np.float32)}, "labels has 2 samples, lengths 3"),
        ({"weights": np.zeros(2, np.float32)}, "2 weights for 5 values"),
        (
            {"lengths": np.array([[9, 2, 0], [0, -7, 1]], np.int32)},
            r"lengths\[1, 1\] is -7: negative",
        ),
    ],
)
def test_a_contradictory_file(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    good = query()
    tensors = {"dense": good.dense, "values": good.values, "lengths": good.lengths} | changes
    write_tensors(tmp_path / "q", tensors, {"tables": json.dumps(["users", "items"])})
    with pytest.raises(QueryError, match=message):
        QueryFile(tmp_path / "q")


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    write_queries(tmp_path / "q", query(), ["users", "films"], 2)
    file = QueryFile(tmp_path / "q")
    with pytest.raises(QueryError, match="has no ids for table items of the model"):
        file.in_order_of(["users", "items"])
    with pytest.raises(QueryError, match="has ids for table films, the model has none"):
        file.in_order_of(["users"])


def test_tables_in_another_order_are_found_by_name(tmp_path: Path) -> None:
    write_queries(tmp_path / "q", query(), ["items", "users"], 2)
    file = QueryFile(tmp_path / "q").in_order_of(["users", "items"])
    assert file.lengths.tolist() == [[0, 1, 1], [1, 2, 0]]
    assert [file.table_values(table).tolist() for table in (0, 1)] == [[40, 50], [1, 2, 3]]
    assert [piece.values.tolist() for piece in file] == [[40, 1, 2, 3], [50]]
    back = file.in_order_of(["items", "users"])
    assert bags(QueryFile(tmp_path / "q")[0]) == bags(back[0])


def test_a_file_without_names_has_to_have_as_many_tables(tmp_path: Path) -> None:
    tensors = {"dense": query().dense, "values": query().values, "lengths": query().lengths}
    write_tensors(tmp_path / "q", tensors)
    file = QueryFile(tmp_path / "q")
    assert file.in_order_of(["users", "items"]) is file
    with pytest.raises(QueryError, match="lengths has 2 rows, the model 1 tables"):
        file.in_order_of(["users"])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("lengths", np.array([[2.0, 1.5]]), "lengths is F64, expected int32 or other integers"),
        ("lengths", np.array([[2**32 + 3, 1]]), r"lengths\[0, 0\] is 4294967299"),
        ("lengths", np.array([[np.nan, 1]], np.float32), "lengths is F32, expected int32"),
        ("values", np.array([1, 2**63], np.uint64), r"values\[1\] is 9223372036854775808"),
        ("dense", np.array([[0.5], [0.1]]), r"dense\[1, 0\] is 0.1, which float32 does not hold"),
        ("weights", np.array([1, 1e300]), r"weights\[1\] is 1e\+300"),
        ("labels", np.array([True, False]), "labels is BOOL"),
        ("label", np.zeros(2, np.float32), "has a tensor 'label'; a query file has dense, lengths"),
    ],
)
def test_numbers_are_taken_exactly_or_refused(
    tmp_path: Path, name: str, array: np.ndarray, message: str
) -> None:
    tensors = {
        "dense": np.zeros((2, 1), np.float32),
        "lengths": np.array([[1, 1]], np.int32),
        "values": np.array([1, 2], np.int32),
    }
    write_tensors(tmp_path / "q", tensors | {name: array})
    with pytest.raises(QueryError, match=message):
        QueryFile(tmp_path / "q")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"table_names": "[]"}, "has metadata 'table_names'; a query file has tables, batch"),
        ({"tables": '["a", "a"]'}, "metadata tables names a twice"),
        ({"tables": '["a"]'}, "lengths has 2 rows for 1 tables"),
        ({"tables": '{"a": 0}'}, "metadata tables is .* not a JSON list of names"),
        ({"tables": "[" * 100_000}, "metadata tables is .* not a JSON list of names"),
        ({"batch": "1.5"}, "metadata batch is '1.5', not a number of samples"),
        ({"batch": "-2"}, "metadata batch is '-2', not a number of samples"),
        ({"batch": "0"}, "batch is 0, must be at least 1"),
    ],
)
def test_metadata_is_used_or_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    tensors = {"dense": query().dense, "values": query().values, "lengths": query().lengths}
    write_tensors(tmp_path / "q", tensors, metadata)
    with pytest.raises(QueryError, match=message):
        QueryFile(tmp_path / "q")


def test_weights_of_tables_that_use_none_have_to_be_one() -> None:
    tables = (MODEL.tables[0], TableSpec(name="w", rows=100, dim=2, pooling="weighted_sum"))
    mixed = MODEL.model_copy(update={"tables": tables})
    weights = np.array([1, 1, 1, 0.5, 7], np.float32)
    check_query(query(weights=weights), mixed)
    for model in (MODEL, mixed):
        weights[2] = 0.25
        message = r"table users, sample 1: weights\[2\] is 0.25, but the table pools by sum"
        with pytest.raises(QueryError, match=message):
            check_query(query(weights=weights), model)
    weights[2] = 1
    with pytest.raises(QueryError, match=r"table items, sample 1: .* the table pools by mean"):
        check_query(query(weights=weights), MODEL)


QueryParts = tuple[dict[str, np.ndarray], dict[str, str]]  # tensors and metadata of a file


@st.composite
def changed_files(draw: st.DrawFn) -> QueryParts:
    """A good file's tensors and metadata, in which one thing was changed."""
    whole = draw(samples())
    names = [f"t{index}" for index in range(len(whole.lengths))]
    tensors = {"dense": whole.dense, "lengths": whole.lengths, "values": whole.values}
    if whole.weights is not None:
        tensors["weights"] = whole.weights
    if whole.labels is not None:
        tensors["labels"] = whole.labels
    metadata = {"tables": json.dumps(names), "batch": "3"}
    name = draw(st.sampled_from(sorted(tensors)))
    what = draw(st.sampled_from(["rename", "add", "retype", "reorder", "metadata", "number"]))
    if what == "rename":
        tensors[draw(st.sampled_from(["x", name.upper(), name + "s"]))] = tensors.pop(name)
    elif what == "add":
        tensors[draw(st.text("abc", min_size=1))] = tensors[name]
    elif what == "retype":
        dtype = draw(st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u8", "?"]))
        with np.errstate(all="ignore"):
            tensors[name] = tensors[name].astype(dtype)
    elif what == "reorder":
        metadata["tables"] = json.dumps(draw(st.permutations(names)))
    elif what == "metadata":
        key = draw(st.sampled_from(["tables", "batch"]))
        metadata[draw(st.sampled_from([key, key.upper(), key + "_"]))] = metadata.pop(key)
    elif tensors[name].size:
        array = tensors[name] = tensors[name].astype(
            "i8" if name in ("lengths", "values") else "f8"
        )
        position = draw(st.integers(0, array.size - 1))
        array.reshape(-1)[position] = draw(
            st.sampled_from([-1, 2**31, 2**32 + 1, 2**62] if array.dtype == "i8" else [0.1, 1e300])
        )
    return tensors, metadata


@given(changed_files())
def test_a_changed_file_is_read_as_it_says_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changed: QueryParts
) -> None:
    """What is read is compared with the safetensors package's reading, number by number."""
    from safetensors.numpy import load_file

    path = tmp_path_factory.mktemp("q") / "q.safetensors"
    tensors, metadata = changed
    write_tensors(path, tensors, metadata)
    ordered = sorted(json.loads(metadata.get("tables", "[]")))
    try:
        file = QueryFile(path)
        file = file.in_order_of(ordered or file.table_names)
        read = list(file)
    except (QueryError, ArtifactError) as error:
        assert str(path) in str(error)
        return
    raw = load_file(path)
    assert set(raw) <= {"dense", "lengths", "values", "weights", "labels"}
    named = json.loads(metadata["tables"]) if "tables" in metadata else None
    assert file.batch == int(metadata.get("batch", 32))
    starts = np.concatenate([[0], np.cumsum(raw["lengths"].sum(axis=1, dtype=np.int64))])
    for place, name in enumerate(ordered or range(len(raw["lengths"]))):
        row = named.index(name) if named else place
        assert file.lengths[place].tolist() == raw["lengths"][row].tolist()
        values = raw["values"][starts[row] : starts[row + 1]].tolist()
        assert [one for piece in read for bag in bags(piece)[place] for one in bag] == values
    for name in ("dense", "labels"):
        if name in raw:
            pieces = [getattr(piece, name) for piece in read]
            assert np.concatenate(pieces).tolist() == raw[name].tolist()
    if "weights" in raw:
        flat = np.concatenate([piece.weights for piece in read])
        assert sorted(flat.tolist()) == sorted(raw["weights"].tolist())
