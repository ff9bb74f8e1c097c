"""What `--evaluate` tells is what the packed shards really predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from erless.dlrm.queries import QueryFile, write_queries
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import load_tower_file
from erless.errors import QueryError
from erless.pack.evaluate import AS_PLANNED, evaluate
from erless.pack.inputs import PackInputs
from erless.serve.files import Source, open_tower
from erless.specs.features import POOLED
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Precision
from tests.conftest import Cli
from tests.releases import TIERS, Made, make_release, random_query
from tests.sharded import sharded_pool

MIXED = [
    TIERS[0],
    TIERS[1]._replace(precision=Precision.FP16),
    TIERS[2]._replace(precision=Precision.INT8),
    TIERS[3]._replace(precision=Precision.INT4),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every precision in one plan, every pooling in one model."""
    model = ModelSpec(
        dense_features=3,
        tables=tuple(
            TableSpec(name=pooling.value, rows=2000, dim=16, pooling=pooling) for pooling in POOLED
        ),
        tower=DlrmTower(bottom_mlp=(8, 16), top_mlp=(8, 1)),
    )
    return make_release(tmp_path_factory.mktemp("mixed"), model=model, tiers=MIXED)


def test_it_is_what_the_shards_predict(mixed: Made) -> None:
    found = {
        e.precision: e
        for e in evaluate(PackInputs(mixed.bundle, mixed.profile, mixed.plan), mixed.queries)
    }
    source = Source(mixed.store)
    monolith = Monolith.load(mixed.bundle)
    with open_tower(source, mixed.release.digest) as opened:
        tower = load_tower_file(opened.path, opened.model)
        errors, scale = [], []
        for query in QueryFile(mixed.queries):
            pooled = torch.from_numpy(sharded_pool(source, mixed.release, query))
            served = tower(torch.from_numpy(query.dense), list(pooled.unbind(1))).numpy()
            exact = monolith.predict(query).astype(np.float64)
            errors.append(np.abs(served - exact))
            scale.append(np.abs(exact))
    error = np.concatenate(errors)
    assert found[AS_PLANNED].max_error == pytest.approx(error.max(), abs=2e-6)
    assert found[AS_PLANNED].mean_error == pytest.approx(error.mean(), abs=1e-6)
    relative = (error / np.concatenate(scale)).max()
    assert found[AS_PLANNED].relative_error == pytest.approx(relative, rel=1e-2)
    assert found[AS_PLANNED].row_bytes == sum(each.row_bytes for each in mixed.release.shards)


def test_fewer_bits_err_more(mixed: Made) -> None:
    inputs = PackInputs(mixed.bundle, mixed.profile, mixed.plan)
    found = {each.precision: each for each in evaluate(inputs, mixed.queries, batch=7)}
    assert found["fp32"].max_error == 0 == found["fp32"].auc_loss
    assert 0 < found["fp16"].mean_error < found["int8"].mean_error < found["int4"].mean_error
    assert found["fp32"].row_bytes > found["fp16"].row_bytes > found["int8"].row_bytes
    for each in found.values():
        assert each.auc_after is not None
        assert 0 <= each.auc_after <= 1
    whole = {each.precision: each for each in evaluate(inputs, mixed.queries)}
    assert whole["int4"].max_error == pytest.approx(found["int4"].max_error, abs=1e-6)


def test_without_labels_of_both_kinds_there_is_no_auc(mixed: Made, tmp_path: Path) -> None:
    query = random_query(mixed.model, 5, 20)
    names = [table.name for table in mixed.model.tables]
    inputs = PackInputs(mixed.bundle, mixed.profile, mixed.plan)
    for labels in (None, np.ones(20, np.float32)):
        path = tmp_path / "queries.safetensors"
        one = type(query)(query.dense, query.values, query.lengths, query.weights, labels)
        write_queries(path, one, names, 10)
        for each in evaluate(inputs, path):
            assert each.auc_before is each.auc_after is each.auc_loss is None


def test_queries_of_another_model_are_told(mixed: Made, packed_release: Made) -> None:
    inputs = PackInputs(mixed.bundle, mixed.profile, mixed.plan)
    with pytest.raises(QueryError, match="has no ids for table sum of the model"):
        evaluate(inputs, packed_release.queries)


def test_the_verb_tells_it(mixed: Made, cli: Cli, tmp_path: Path) -> None:
    arguments = (
        "pack",
        "--model",
        mixed.bundle,
        "--profile",
        mixed.profile,
        "--plan",
        mixed.plan,
        "--store",
        mixed.store,
        "--evaluate",
        mixed.queries,
    )
    (tmp_path / "erless.yaml").write_text("precision: {max_auc_loss: 0.0}\n")
    run = cli(*arguments, "-o", "json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)["evaluation"]
    assert [each["precision"] for each in told["precisions"]] == [
        AS_PLANNED,
        "fp32",
        "fp16",
        "int8",
        "int4",
    ]
    loss = told["precisions"][0]["auc_loss"]
    assert ("warning: the plan's precisions lose" in run.stderr) == (loss > 0)
    drawn = cli(*arguments)
    assert drawn.returncode == 0, drawn.stderr
    for word in ("as planned", "int4", "max error", "AUC loss"):
        assert word in drawn.stdout
