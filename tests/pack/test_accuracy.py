"""Precisions chosen by what the user's queries lose."""

import json
from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.queries import write_queries
from erless.pack.accuracy import AccuracyBudget, measure_precisions
from erless.specs.features import POOLED
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Plan, Precision
from tests.conftest import Cli
from tests.releases import Made, make_release, random_query

ALL = tuple(Precision)
WIDE, NONE = AccuracyBudget(1.0, 1.0), AccuracyBudget(-1.0, -1.0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every pooling in one model."""
    model = ModelSpec(
        dense_features=3,
        tables=tuple(
            TableSpec(name=pooling.value, rows=2000, dim=16, pooling=pooling) for pooling in POOLED
        ),
        tower=DlrmTower(bottom_mlp=(8, 16), top_mlp=(8, 1)),
    )
    return make_release(tmp_path_factory.mktemp("accuracy"), model=model)


def test_all_rows_and_each_table_alone(mixed: Made) -> None:
    losses = measure_precisions(mixed.bundle, mixed.queries, ALL, WIDE)
    names = [table.name for table in mixed.model.tables]
    assert [loss.table for loss in losses] == ["", *names] * 3
    whole = {loss.precision: loss for loss in losses if not loss.table}
    errors = [whole[kind].relative_error for kind in ALL[1:]]
    assert 0 < errors[0] < errors[1] < errors[2]
    for loss in losses:
        assert loss.auc_loss is not None
        if loss.table:
            assert loss.relative_error <= 3 * whole[loss.precision].relative_error
    assert measure_precisions(mixed.bundle, mixed.queries, ALL, WIDE) == losses


def test_what_is_over_the_budget_is_not_told_table_by_table(mixed: Made) -> None:
    losses = measure_precisions(mixed.bundle, mixed.queries, ALL, NONE)
    assert [loss.table for loss in losses] == ["", "", ""]
    assert not any(loss.within(NONE) for loss in losses)


def test_without_labels_the_error_counts(mixed: Made, tmp_path: Path) -> None:
    query = random_query(mixed.model, 5, 20)
    names = [table.name for table in mixed.model.tables]
    bare = type(query)(query.dense, query.values, query.lengths, query.weights, None)
    write_queries(tmp_path / "q.safetensors", bare, names, 10)
    (loss,) = measure_precisions(mixed.bundle, tmp_path / "q.safetensors", [Precision.INT4], NONE)
    assert loss.auc_loss is None
    assert "no labels" in str(loss)
    limit = np.nextafter(loss.relative_error, 1)
    assert loss.within(AccuracyBudget(0.0, float(limit)))
    assert not loss.within(AccuracyBudget(1.0, loss.relative_error / 2))


@pytest.mark.parametrize("budget", [0.5, 0.0])
def test_the_plan_takes_what_the_queries_allow(
    mixed: Made, cli: Cli, tmp_path: Path, budget: float
) -> None:
    (tmp_path / "erless.yaml").write_text(
        f"precision: {{queries: {mixed.queries}, max_auc_loss: {budget}}}\n"
    )
    asked = ("plan", "--model", mixed.bundle, "--profile", mixed.profile, "--shards", "2")
    run = cli(*asked, "--objective", "memory", "--out", "p.json", "-o", "json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    plan = Plan.load(tmp_path / "p.json")
    told = [note for note in plan.notes if " of AUC" in note]
    assert any(note.startswith("all rows in int4") for note in told)
    kinds = {shard.precision for shard in plan.shards}
    if budget:
        assert Precision.INT4 in kinds
        assert any(note.startswith(f"{mixed.model.tables[0].name} in int4") for note in told)
    exact = cli(*asked, "--precision", "fp32", "--out", "e.json", "-o", "json", cwd=tmp_path)
    assert exact.returncode == 0, exact.stderr
    shards = json.loads(exact.stdout)["shards"]
    assert {shard["precision"] for shard in shards} == {"fp32"}


def test_auto_needs_queries(mixed: Made, cli: Cli) -> None:
    asked = ("plan", "--model", mixed.bundle, "--profile", mixed.profile, "--precision", "auto")
    run = cli(*asked)
    assert run.returncode != 0
    assert "--precision auto needs --queries" in run.stderr
    run = cli(*asked, "--precision", "int8", "--queries", mixed.queries)
    assert "names precisions itself" in run.stderr
