"""The monolith against programs that share no code with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from erless.dlrm.numpy_tower import NumpyTower
from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import load_tower
from erless.errors import ArtifactError, QueryError
from erless.specs.bundle import BundleManifest
from erless.specs.features import POOLED
from erless.specs.model import (
    CrossNet,
    DlrmTower,
    FeatureSpec,
    Interaction,
    ModelSpec,
    Pooling,
    TableSpec,
)
from tests.bundles import write_bundle
from tests.conftest import Cli


def independent(folder: Path, batch: int = 32) -> list[float]:
    """Predictions of an RM bundle's queries: torch and safetensors only."""
    model = json.loads((folder / "model.json").read_text())["model"]
    queries = load_file(folder / "queries.safetensors")
    tower = load_file(folder / "tower.safetensors")
    dense, lengths = queries["dense"], queries["lengths"].long()
    per_table = torch.split(queries["values"].long(), lengths.sum(1).tolist())
    pooled = []
    for table, values, bags in zip(model["tables"], per_table, lengths, strict=True):
        rows = load_file(folder / "tables" / f"{table['name']}.safetensors")["rows"]
        sample = torch.repeat_interleave(torch.arange(len(bags)), bags)
        pooled.append(torch.zeros(len(bags), table["dim"]).index_add_(0, sample, rows[values]))
    x = dense
    for i in range(len(model["tower"]["bottom_mlp"])):
        x = torch.relu(x @ tower[f"bottom.{i}.weight"].T + tower[f"bottom.{i}.bias"])
    vectors = torch.stack([x, *pooled], dim=1)
    products = torch.einsum("bid,bjd->bij", vectors, vectors)
    pairs = [products[:, i, j] for i in range(vectors.shape[1]) for j in range(i)]
    x = torch.cat([x, torch.stack(pairs, dim=1)], dim=1)
    for i in range(len(model["tower"]["top_mlp"])):
        x = torch.relu(x) if i else x
        x = x @ tower[f"top.{i}.weight"].T + tower[f"top.{i}.bias"]
    return torch.sigmoid(x).flatten().tolist()


@pytest.mark.parametrize("name", ["rm1", "rm2", "rm3"])
def test_predictions_equal_an_independent_program(tmp_path: Path, cli: Cli, name: str) -> None:
    out = tmp_path / "m"
    made = cli("example", name, "--rows", 2000, "--queries", 8, "--log-samples", 64, "--out", out)
    assert made.returncode == 0, made.stderr
    run = cli("predict", "--monolith", out, out / "queries.safetensors", "-o", "json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["queries"] == 8
    found, expected = np.array(document["predictions"]), np.array(independent(out))
    assert len(found) == 8 * 32
    assert np.abs(found - expected).max() <= 1e-5
    assert expected.std() > 0.02  # predictions that are all alike would hide any error


REDUCTIONS: dict[Pooling, Callable[..., Any]] = {Pooling.MAX: np.max, Pooling.MEAN: np.mean}


def by_hand(monolith: Monolith, query: Query) -> list[np.ndarray]:
    """Pooled vectors in float64, bag by bag."""
    ids = iter(range(len(query.values)))
    pooled = []
    model = monolith.model
    stored = {table.name: rows for table, rows in zip(model.tables, monolith.tables, strict=True)}
    for table, lookup, lengths in zip(
        model.feature_tables, model.lookups, query.lengths, strict=True
    ):
        rows = stored[lookup.table]
        out = np.zeros((query.batch, table.dim))
        for sample, length in enumerate(lengths):
            where = [next(ids) for _ in range(length)]
            if not where:
                continue
            bag = rows.numpy()[query.values[where]].astype(np.float64)
            if table.pooling is Pooling.WEIGHTED_SUM:
                assert query.weights is not None
                bag = bag * query.weights[where][:, None]
            reduce = REDUCTIONS.get(table.pooling, np.sum)
            out[sample] = reduce(bag, axis=0)
        pooled.append(out)
    return pooled


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    same = draw(st.booleans())
    dims = [draw(st.sampled_from([1, 3, 4, 8])) for _ in range(draw(st.integers(1, 4)))]
    dims = [dims[0]] * len(dims) if same else dims
    kinds = list(Interaction) if same else [Interaction.CAT, Interaction.DCN]
    kind = draw(st.sampled_from(kinds))
    tables = tuple(
        TableSpec(
            name=f"t{i}",
            rows=draw(st.integers(1, 30)),
            dim=dim,
            pooling=draw(st.sampled_from(POOLED)),
        )
        for i, dim in enumerate(dims)
    )
    readers = draw(st.permutations([*tables, *draw(st.sampled_from([(), tables]))]))
    features = [
        FeatureSpec(name=f"f{i}", table=table.name, pooling=table.pooling)
        for i, table in enumerate(readers)
    ]
    return ModelSpec(
        dense_features=draw(st.integers(0, 5)),
        tables=tables,
        features=tuple(features) if draw(st.booleans()) else (),
        tower=DlrmTower(
            bottom_mlp=(5, dims[0]),
            top_mlp=draw(st.sampled_from([(1,), (6, 1), (8, 4, 1)])),
            interaction=kind,
            sigmoid=draw(st.booleans()),
            cross=CrossNet(layers=2, rank=3) if kind is Interaction.DCN else None,
        ),
    )


def random_query(model: ModelSpec, seed: int, batch: int) -> Query:
    generator = np.random.default_rng(seed)
    tables = model.feature_tables
    lengths = generator.integers(0, 5, (len(tables), batch)).astype(np.int32)
    values = [
        generator.integers(0, table.rows, int(row.sum()))
        for table, row in zip(tables, lengths, strict=True)
    ]
    ids = np.concatenate(values).astype(generator.choice(["i4", "i8"]))
    weights = generator.standard_normal(len(ids)).astype(np.float32)
    unused = [table.pooling is not Pooling.WEIGHTED_SUM for table in tables]
    weights[np.repeat(unused, lengths.sum(axis=1))] = 1
    return Query(
        dense=generator.standard_normal((batch, model.dense_features)).astype(np.float32),
        values=ids,
        lengths=lengths,
        weights=weights,
    )


@given(models(), st.integers(0, 2**32), st.integers(1, 9), st.booleans())
def test_every_pooling_and_interaction(
    tmp_path_factory: pytest.TempPathFactory, model: ModelSpec, seed: int, batch: int, mapped: bool
) -> None:
    folder = tmp_path_factory.mktemp("m") / "m"
    write_bundle(folder, model, seed)
    monolith = Monolith.load(folder, mapped=mapped)
    query = random_query(model, seed, batch)
    expected = by_hand(monolith, query)
    for found, hand in zip(monolith.pool(query), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), hand, rtol=1e-4, atol=1e-5)
    tower = load_tower(folder, BundleManifest.open(folder))
    flat = torch.from_numpy(np.concatenate(expected, axis=1).astype(np.float32))
    predicted = monolith.predict(query)
    same = tower(torch.from_numpy(query.dense), [flat]).numpy()
    np.testing.assert_allclose(predicted, same, rtol=1e-3, atol=1e-4)
    widest = max(model.feature_dims)
    padded = [np.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in expected]
    without_torch = NumpyTower.load(folder / "tower.safetensors", model)
    again = without_torch(query.dense, np.stack(padded, axis=1).astype(np.float32))
    np.testing.assert_allclose(predicted, again, rtol=1e-3, atol=1e-4)


def test_a_cross_net_is_that_of_the_paper(tmp_path: Path) -> None:
    model = ModelSpec(
        dense_features=2,
        tables=(TableSpec(name="a", rows=9, dim=4), TableSpec(name="b", rows=5, dim=2)),
        tower=DlrmTower(
            bottom_mlp=(3,),
            top_mlp=(1,),
            interaction=Interaction.DCN,
            sigmoid=False,
            cross=CrossNet(layers=3, rank=2),
        ),
    )
    write_bundle(tmp_path / "m", model)
    monolith = Monolith.load(tmp_path / "m")
    query = random_query(model, 0, 7)
    tower = {
        name: tensor.double().numpy()
        for name, tensor in load_file(tmp_path / "m" / "tower.safetensors").items()
    }
    x = np.maximum(query.dense @ tower["bottom.0.weight"].T + tower["bottom.0.bias"], 0)
    x = first = np.concatenate([x, *by_hand(monolith, query)], axis=1)
    for i in range(3):
        full = tower[f"cross.{i}.up.weight"] @ tower[f"cross.{i}.down.weight"]  # W·V, (9, 9)
        x = first * (x @ full.T + tower[f"cross.{i}.up.bias"]) + x
    expected = x @ tower["top.0.weight"].T + tower["top.0.bias"]
    np.testing.assert_allclose(monolith.predict(query), expected[:, 0], rtol=1e-4, atol=1e-5)


Small = tuple[Path, ModelSpec]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    model = ModelSpec(
        dense_features=2,
        tables=tuple(
            TableSpec(name=n, rows=9, dim=4, pooling=p) for n, p in zip("abcd", POOLED, strict=True)
        ),
        tower=DlrmTower(bottom_mlp=(4,), top_mlp=(3, 1)),
    )
    write_bundle(tmp_path / "m", model)
    return tmp_path / "m", model


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
@pytest.mark.parametrize("table", [0, 1, 2, 3])
def test_a_bad_id_is_named_and_the_next_query_is_right(small: Small, bad: int, table: int) -> None:
    folder, model = small
    monolith = Monolith.load(folder)
    query = random_query(model, 5, 4)
    good = monolith.predict(query)
    values = query.values.copy()
    values[int(query.lengths[:table].sum())] = bad
    with pytest.raises(QueryError, match=rf"table {'abcd'[table]}, sample \d: row id {bad}"):
        monolith.predict(Query(query.dense, values, query.lengths, query.weights))
    assert np.array_equal(monolith.predict(query), good)


def test_other_bad_queries(small: Small) -> None:
    folder, model = small
    monolith = Monolith.load(folder)
    query = random_query(model, 5, 4)
    assert query.weights is not None
    for changed, message in (
        (
            Query(query.dense, query.values[:-1], query.lengths, query.weights[:-1]),
            "lengths sum to",
        ),
        (Query(query.dense[:3], query.values, query.lengths), "dense has shape"),
        (Query(query.dense * np.float32(np.nan), query.values, query.lengths), "is nan"),
        (Query(query.dense, query.values, query.lengths[:2]), "lengths has 2 rows"),
        (Query(query.dense, query.values, -query.lengths, query.weights), "is negative"),
        (Query(query.dense, query.values, query.lengths), "the query has no weights"),
    ):
        with pytest.raises(QueryError, match=message):
            monolith.predict(changed)


def test_an_empty_query(small: Small) -> None:
    folder, _ = small
    empty = Query(
        np.zeros((0, 2), np.float32),
        np.zeros(0, np.int32),
        np.zeros((4, 0), np.int32),
        np.zeros(0, np.float32),
    )
    assert Monolith.load(folder).predict(empty).shape == (0,)


def test_an_altered_table_is_refused(small: Small) -> None:
    folder, _ = small
    path = folder / "tables" / "b.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"b\.safetensors: altered"):
        Monolith.load(folder)
    Monolith.load(folder, verify=False)


def test_bf16_tower_is_close(small: Small) -> None:
    folder, model = small
    tower = load_tower(folder, BundleManifest.open(folder))
    dense, pooled = torch.randn(8, 2), [torch.randn(8, 16)]
    low = tower.to("cpu", torch.bfloat16)(dense, pooled)
    assert low.dtype == torch.float32
    assert F.l1_loss(low, tower(dense, pooled)) < 0.05
    assert len(model.tables) == 4
