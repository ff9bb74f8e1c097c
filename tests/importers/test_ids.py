"""A bundle's ids become rows by vocabularies, hashes and modulo; unknown ones as was said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from erless.dlrm.hashing import xxh64_strings
from erless.dlrm.whole_graph import WholeGraph
from erless.errors import CheckpointError, ErlessError, ModelError, OptionError, QueryError
from erless.importers.ids import IdOptions, set_ids
from erless.importers.vocabularies import MAPPING, SORTED, read_vocabulary
from erless.specs.bundle import BundleManifest
from tests.bundles import write_bundle
from tests.conftest import Cli
from tests.graphs import TAGS, USERS, Ranker, ranker_inputs, ranker_spec, write_ranker
from tests.releases import default_model

BATCH = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranker") / "model"
    write_ranker(folder, Ranker().eval(), ranker_spec())
    return folder


def names(path: Path, ids: list[object], rows: list[int], kind: pa.DataType) -> Path:
    """A vocabulary in parquet."""
    pq.write_table(pa.table({"id": pa.array(ids, kind), "row": pa.array(rows, pa.int32())}), path)
    return path


def predict(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return WholeGraph(folder).predict(inputs)["ctr"]


def test_strings_of_a_parquet_file_are_rows(bundle: Path, tmp_path: Path) -> None:
    texts = [f"user {row}" for row in range(USERS)]
    file = names(tmp_path / "u.parquet", list(reversed(texts)), list(range(USERS)), pa.string())
    options = IdOptions.parse([f"f_user=vocabulary:{file}"], ["f_user=zero"])
    made = set_ids(bundle, tmp_path / "out", options)
    made.verify(tmp_path / "out")
    assert [t.datatype for t in made.model.inputs if t.name == "user"] == ["BYTES"]
    inputs = ranker_inputs(BATCH, 4)
    wanted = predict(bundle, inputs)
    named = inputs | {
        "user": np.array([f"user {USERS - 1 - row}".encode() for row in inputs["user"]], object)
    }
    np.testing.assert_array_equal(predict(tmp_path / "out", named), wanted)


def test_an_unknown_id_stands_for_the_mean_row(bundle: Path, tmp_path: Path) -> None:
    file = names(tmp_path / "u.parquet", [-7, 10**15], [3, 4], pa.int64())
    options = IdOptions.parse([f"users=vocabulary:{file}"], ["users=default"])
    made = set_ids(bundle, tmp_path / "out", options)
    assert made.model.table("users").rows == USERS + 1
    inputs = ranker_inputs(4, 4) | {"user": np.array([-7, 10**15, 0, 3])}
    graph = WholeGraph(tmp_path / "out")
    query = graph.lookup.open(inputs, 10)
    assert query.unknown == {"f_user": 2}
    model = Ranker().eval()
    with torch.no_grad():
        model.users.weight[0] = model.users.weight[3]
        model.users.weight[1] = model.users.weight[4]
        model.users.weight[2] = Ranker().users.weight.mean(0)
        own = inputs | {"user": np.array([0, 1, 2, 2])}
        wanted, _ = model(**{name: torch.from_numpy(array) for name, array in own.items()})
    found = graph.predict(inputs)["ctr"]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-7)


def test_exact_ids_do_not_reach_the_row_of_unknown_ones(bundle: Path, tmp_path: Path) -> None:
    made = set_ids(bundle, tmp_path / "out", IdOptions.parse([], ["f_target=default"]))
    items = made.model.table("items").rows - 1
    graph = WholeGraph(tmp_path / "out")
    inputs = ranker_inputs(BATCH, 4)
    inputs["target"][2] = items
    assert graph.lookup.open(inputs, 10).unknown == {"f_target": 1}
    assert {f.name: f.unknown for f in made.model.features}["f_history"] == "reject"
    shut = set_ids(bundle, tmp_path / "shut", IdOptions.parse([], ["users=default"]))
    assert shut.model.table("items").rows == items
    inputs = ranker_inputs(BATCH, 4)
    inputs["target"][2] = items
    with pytest.raises(QueryError, match=f"id {items} is outside 0 … {items - 1}"):
        WholeGraph(tmp_path / "shut").predict(inputs)


def test_hashes_and_modulo(bundle: Path, tmp_path: Path) -> None:
    options = IdOptions.parse(["f_user=hash:xxh64:7", "tags=modulo"], [])
    set_ids(bundle, tmp_path / "out", options)
    inputs = ranker_inputs(BATCH, 4)
    hashed = xxh64_strings(
        np.array([int(n).to_bytes(8, "little") for n in inputs["user"]], object), 7
    )
    rows = inputs | {
        "user": (hashed % np.uint64(USERS)).astype(np.int64),
        "tags": inputs["tags"] % TAGS,
    }
    far = inputs | {"tags": inputs["tags"] + TAGS * (inputs["tags"] > 0)}
    np.testing.assert_array_equal(predict(tmp_path / "out", far), predict(bundle, rows))


def test_managed_collisions_of_torchrec(bundle: Path, tmp_path: Path) -> None:
    """Its sorted ids, their rows, empty places at the end; other ids are the last row."""
    empty = np.iinfo(np.int64).max
    prefix = "mc._managed_collision_modules.users."
    state = {
        prefix + SORTED: torch.tensor([-5, 40, 7_000_000_000, empty, empty]),
        prefix + MAPPING: torch.tensor([2, 0, 3, 1, 4]),
        "other.weight": torch.ones(2),
    }
    torch.save(state, tmp_path / "mch.pt")
    known = read_vocabulary(str(tmp_path / "mch.pt"))
    assert (known.ids.tolist(), known.rows.tolist()) == ([-5, 40, 7_000_000_000], [2, 0, 3])
    options = IdOptions.parse([f"f_user=vocabulary:{tmp_path / 'mch.pt'}#users"], [])
    set_ids(bundle, tmp_path / "out", options)
    inputs = ranker_inputs(4, 3) | {"user": np.array([40, 7_000_000_000, 41, -5])}
    rows = inputs | {"user": np.array([0, 3, 4, 2])}
    np.testing.assert_array_equal(predict(tmp_path / "out", inputs), predict(bundle, rows))


@pytest.mark.parametrize(
    ("rules", "unknown", "error", "words"),
    [
        (["nobody=modulo"], [], OptionError, "nobody is neither a feature nor a table"),
        (["f_user=crc32"], [], OptionError, "must be exact, modulo, hash:xxh64:SEED"),
        ([], ["f_user=900"], OptionError, "must be reject, zero, default or a row, 0 … 899"),
        (["f_user"], [], OptionError, "must be NAME=VALUE"),
        (["f_user=vocabulary:{0}/none.parquet"], [], ErlessError, "none.parquet"),
        (
            ["f_user=vocabulary:{0}/high.parquet"],
            [],
            ErlessError,
            "has row 900, table users has 900",
        ),
        (["f_user=vocabulary:{0}/twice.parquet"], [], ModelError, "has 5 twice"),
        (["f_user=vocabulary:{0}/null.parquet"], [], CheckpointError, "an id or a row is null"),
        (["f_history=vocabulary:{0}/text.parquet"], [], ModelError, "cannot be strings"),
    ],
)
def test_what_does_not_fit_is_refused(
    bundle: Path,
    tmp_path: Path,
    rules: list[str],
    unknown: list[str],
    error: type[ErlessError],
    words: str,
) -> None:
    names(tmp_path / "high.parquet", [1], [USERS], pa.int64())
    names(tmp_path / "twice.parquet", [5, 5], [1, 2], pa.int64())
    names(tmp_path / "null.parquet", [5, None], [1, 2], pa.int64())
    names(tmp_path / "text.parquet", ["a"], [1], pa.string())
    with pytest.raises(error, match=words):
        set_ids(
            bundle,
            tmp_path / "out",
            IdOptions.parse([rule.format(tmp_path) for rule in rules], unknown),
        )
    assert not (tmp_path / "out").exists()


def test_ids_of_a_keyed_jagged_tensor_are_rows(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", default_model(), 0)
    with pytest.raises(ModelError, match="takes a KeyedJaggedTensor, whose ids are rows"):
        set_ids(tmp_path / "model", tmp_path / "out", IdOptions.parse(["user=modulo"], []))


def test_the_verb_keeps_what_was_said_before(bundle: Path, tmp_path: Path, cli: Cli) -> None:
    file = names(tmp_path / "u.parquet", [5], [1], pa.int64())
    rule, first, second = f"f_user=vocabulary:{file}", tmp_path / "first", tmp_path / "second"
    done = cli("bundle", "ids", bundle, "--rule", rule, "--unknown", "f_user=0", "--out", first)
    assert done.returncode == 0, done.stderr
    done = cli("bundle", "ids", first, "--unknown", "f_target=zero", "--out", second)
    assert done.returncode == 0, done.stderr
    made = BundleManifest.open(second)
    made.verify(second)
    features = {feature.name: feature for feature in made.model.features}
    assert (features["f_user"].unknown, features["f_target"].unknown) == (0, "zero")
    assert features["f_user"].rule.kind == "vocabulary"
