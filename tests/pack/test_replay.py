"""Precision is evaluated for models cut from a graph, and where features share tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.graph_queries import write_graph_queries
from erless.dlrm.quantize import decode, encode
from erless.dlrm.queries import write_queries
from erless.dlrm.reference import Monolith
from erless.dlrm.whole_graph import WholeGraph
from erless.pack.accuracy import AccuracyBudget, measure_precisions
from erless.pack.evaluate import AS_PLANNED, evaluate
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.specs.bundle import BundleManifest
from erless.specs.features import FeatureSpec
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Precision
from erless.storage.stores import open_store
from erless.storage.tensors import TensorFile, write_tensors
from tests.graphs import Ranker, ranker_inputs, ranker_spec, write_ranker
from tests.releases import TIERS, Made, make_inputs, make_plan
from tests.serve.gateway.test_shared_tables import query

MIXED = [
    TIERS[0],
    TIERS[1]._replace(precision=Precision.FP16),
    TIERS[2]._replace(precision=Precision.INT8),
    TIERS[3]._replace(precision=Precision.INT4),
]
WIDE = AccuracyBudget(1.0, 1.0)
SAMPLES = 300


def pack(folder: Path, spec: ModelSpec) -> Made:
    bundle, profile = make_inputs(folder, spec)
    plan = folder / "plan.json"
    make_plan(bundle, profile, MIXED).save(plan)
    store = open_store(str(folder / "store"), create=True)
    release = Packer(PackInputs(bundle, profile, plan), store).pack().release
    assert release is not None
    return Made(str(folder / "store"), release, bundle, profile, plan, folder / "queries", spec)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A graph of two outputs, a front, a shared table; its queries have labels of the first."""
    folder = tmp_path_factory.mktemp("graph")
    write_ranker(folder / "model", Ranker().eval(), ranker_spec())
    made = pack(folder, ranker_spec())
    inputs = ranker_inputs(SAMPLES, 5, seed=4)
    labels = np.random.default_rng(0).integers(0, 2, SAMPLES).astype(np.float32)
    write_graph_queries(made.queries, inputs, batch=10, labels=labels)
    return made


def quantized(folder: Path, bundle: Path, precision: Precision) -> Path:
    """The bundle with every row encoded and decoded."""
    manifest = BundleManifest.open(bundle)
    for path in bundle.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(bundle)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for table in manifest.model.tables:
        rows = np.array(TensorFile(manifest.table_file(bundle, table)).map("rows"))
        back = decode(encode(rows, precision), precision, table.dim)
        write_tensors(manifest.table_file(folder, table), {"rows": back.astype(np.float32)})
    return folder


def test_a_graphs_losses_are_those_of_the_rows_quantized(ranker: Made, tmp_path: Path) -> None:
    losses = measure_precisions(ranker.bundle, ranker.queries, tuple(Precision), WIDE).losses
    tables = [table.name for table in ranker.model.tables]
    assert [loss.table for loss in losses] == ["", *tables] * 3
    inputs = ranker_inputs(SAMPLES, 5, seed=4)
    exact = WholeGraph(ranker.bundle).predict(inputs)["ctr"]
    whole = {each.precision: each.loss for each in losses if not each.table}
    for precision in (Precision.FP16, Precision.INT8, Precision.INT4):
        bundle = quantized(tmp_path / precision.value, ranker.bundle, precision)
        served = WholeGraph(bundle, verify=False).predict(inputs)["ctr"]
        moved = np.abs(served.astype(np.float64) - exact).mean() / np.abs(exact).mean()
        assert whole[precision].relative_error == pytest.approx(moved, rel=1e-3)
        assert whole[precision].auc_loss is not None


def test_a_graphs_plan_is_evaluated(ranker: Made) -> None:
    inputs = PackInputs(ranker.bundle, ranker.profile, ranker.plan)
    found = {each.precision: each for each in evaluate(inputs, ranker.queries, batch=7)}
    assert 0 < found["fp16"].max_error < found["int8"].max_error < found["int4"].max_error
    assert found["fp32"].max_error == 0
    assert found["fp16"].max_error < found[AS_PLANNED].max_error <= found["int4"].max_error
    assert found[AS_PLANNED].auc_loss is not None


def test_features_that_share_a_table_are_evaluated(tmp_path: Path) -> None:
    names = ("clicked", "user", "bought")
    spec = ModelSpec(
        name="shared",
        dense_features=5,
        tables=(TableSpec(name="user", rows=900, dim=8), TableSpec(name="item", rows=2000, dim=8)),
        features=tuple(
            FeatureSpec(name=name, table="user" if name == "user" else "item") for name in names
        ),
        tower=DlrmTower(bottom_mlp=(16, 8), top_mlp=(16, 1)),
    )
    made = pack(tmp_path, spec)
    asked = query(spec, SAMPLES, np.random.default_rng(3))
    write_queries(made.queries, asked, list(names), 20)
    whole = {
        each.precision: each.loss
        for each in measure_precisions(made.bundle, made.queries, tuple(Precision), WIDE).losses
        if not each.table
    }
    exact = Monolith.load(made.bundle).predict(asked)
    bundle = quantized(tmp_path / "int8", made.bundle, Precision.INT8)
    served = Monolith.load(bundle, verify=False).predict(asked)
    moved = np.abs(served.astype(np.float64) - exact).mean() / np.abs(exact).mean()
    assert whole[Precision.INT8].relative_error == pytest.approx(moved, rel=1e-3)
