"""Precisions chosen by what the user's queries lose."""

import json
from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.queries import write_queries
from erless.pack.accuracy import AccuracyBudget, measure_precisions
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.serve.files import Source, open_shard
from erless.specs.features import POOLED
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Plan, Precision
from erless.specs.stored import load_shard
from erless.storage.stores import open_store
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
    found = measure_precisions(mixed.bundle, mixed.queries, ALL, WIDE)
    names = [table.name for table in mixed.model.tables]
    assert [each.table for each in found.losses] == ["", *names] * 3
    whole = {each.precision: each.loss for each in found.losses if not each.table}
    errors = [whole[kind].relative_error for kind in ALL[1:]]
    assert 0 < errors[0] < errors[1] < errors[2]
    for each in found.losses:
        assert each.loss.auc_loss is not None
        if each.table:
            assert each.loss.relative_error <= 3 * whole[each.precision].relative_error
    assert found.floors == dict.fromkeys(names, Precision.INT4)
    assert found.allowed == ALL[-1:]
    assert found.together == whole[Precision.INT4]
    assert measure_precisions(mixed.bundle, mixed.queries, ALL, WIDE) == found


def test_a_budget_that_nothing_meets_leaves_all_rows_exact(mixed: Made) -> None:
    found = measure_precisions(mixed.bundle, mixed.queries, ALL, NONE)
    assert set(found.floors.values()) == {Precision.FP32}
    assert found.allowed == () and found.together is None
    *told, last = found.notes()
    assert len(told) == 3 and all(line.endswith(": over the budget") for line in told)
    assert "rows stay fp32" in last


def unlabelled(made: Made, path: Path) -> Path:
    query = random_query(made.model, 5, 20)
    names = [table.name for table in made.model.tables]
    bare = type(query)(query.dense, query.values, query.lengths, query.weights, None)
    write_queries(path, bare, names, 10)
    return path


def test_without_labels_the_error_counts(mixed: Made, tmp_path: Path) -> None:
    queries = unlabelled(mixed, tmp_path / "q.safetensors")
    loss = measure_precisions(mixed.bundle, queries, [Precision.INT4], NONE).losses[0].loss
    assert loss.auc_loss is None
    assert "no labels" in str(loss)
    limit = np.nextafter(loss.relative_error, 1)
    assert loss.within(AccuracyBudget(0.0, float(limit)))
    assert not loss.within(AccuracyBudget(1.0, loss.relative_error / 2))


def test_tables_go_as_low_as_they_bear_together(mixed: Made, tmp_path: Path) -> None:
    queries = unlabelled(mixed, tmp_path / "q.safetensors")
    whole = measure_precisions(mixed.bundle, queries, [Precision.INT4], NONE).losses[0].loss
    budget = AccuracyBudget(0.0, whole.relative_error * 0.6)
    found = measure_precisions(mixed.bundle, queries, ALL, budget)
    assert found.together is not None and found.together.within(budget)
    kinds = set(found.floors.values())
    assert len(kinds) > 1 and Precision.INT4 in kinds
    assert any("tables differ in what they bear" in line for line in found.notes())


def test_a_release_stores_each_table_as_exactly_as_it_must(
    mixed: Made, cli: Cli, tmp_path: Path
) -> None:
    queries = unlabelled(mixed, tmp_path / "q.safetensors")
    whole = measure_precisions(mixed.bundle, queries, [Precision.INT4], NONE).losses[0].loss
    (tmp_path / "erless.yaml").write_text(
        f"model: {mixed.bundle}\nprofile: {mixed.profile}\n"
        f"precision: {{queries: {queries}, max_relative_error: {whole.relative_error * 0.6}}}\n"
    )
    shape = ("--shards", "2", "--objective", "memory")
    run = cli("plan", *shape, "--out", "p.json", "-o", "json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    plan = Plan.load(tmp_path / "p.json")
    exact = {name: kind for shard in plan.shards for name, kind in shard.exact.items()}
    assert exact, "no table is kept more exact than the others"
    (told,) = [note for note in plan.notes if note.startswith("as planned: ")]
    assert "over the budget" not in told
    assert any(note.startswith("cold rows alone: ") for note in plan.notes)
    store = open_store(str(tmp_path / "store"), create=True)
    release = (
        Packer(PackInputs(mixed.bundle, mixed.profile, tmp_path / "p.json"), store).pack().release
    )
    assert release is not None
    tables = {table.name: table for table in mixed.model.tables}
    for packed, planned in zip(release.shards, plan.shards, strict=True):
        manifest = load_shard(store, packed.digest)
        assert packed.exact == planned.exact
        for part in manifest.slices:
            kind = planned.precision_of(part.table)
            assert manifest.precision_of(part) is kind
            size = part.rows * kind.row_bytes(tables[part.table].dim)
            assert size <= part.file.size_bytes < size + 100_000
        source = Source(str(tmp_path / "store"), cache=tmp_path / "cache")
        with open_shard(source, packed.digest) as opened:
            assert sum(stored.index.stored for stored in opened.shard.slices) == packed.rows


def test_auto_says_what_to_do_where_nothing_keeps_to_the_budget(
    mixed: Made, cli: Cli, tmp_path: Path
) -> None:
    queries = unlabelled(mixed, tmp_path / "q.safetensors")
    (tmp_path / "erless.yaml").write_text("precision: {max_relative_error: 0.0}\n")
    asked = ("plan", "--model", mixed.bundle, "--profile", mixed.profile, "--queries", queries)
    run = cli(*asked, "--precision", "auto", cwd=tmp_path)
    assert run.returncode != 0
    for words in (
        "nothing below fp32 keeps to the accuracy budget",
        "int8: predictions",
        "--exact",
    ):
        assert words in " ".join(run.stderr.split())
    exact = cli(*asked, "--exact", "-o", "json", cwd=tmp_path)
    assert exact.returncode == 0, exact.stderr
    assert {shard["precision"] for shard in json.loads(exact.stdout)["shards"]} == {"fp32"}
    both = cli(*asked, "--exact", "--precision", "int8", cwd=tmp_path)
    assert "leave out --precision int8" in both.stderr


def test_model_wise_has_the_same_precisions(mixed: Made, cli: Cli, tmp_path: Path) -> None:
    asked = ("plan", "--model", mixed.bundle, "--profile", mixed.profile, "--compare")
    (tmp_path / "erless.yaml").write_text("precision: {max_auc_loss: 1.0}\n")
    run = cli(*asked, "--queries", mixed.queries, "-o", "json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    rows = {each["policy"]: each for each in json.loads(run.stdout)["policies"]}
    assert rows["elasticrec"]["precisions"] == ["fp32"]
    assert rows["joint"]["usd_per_month"] <= rows["model-wise"]["usd_per_month"]


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
