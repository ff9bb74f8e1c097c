from pathlib import Path

import torch

import erless
from erless.dlrm.graph_model import GraphModel
from erless.specs.features import Pooling
from tests.importers.graph.models import HistoryModel, history_inputs


def test_a_hand_written_model_predicts_as_it_did(tmp_path: Path) -> None:
    model = HistoryModel()
    manifest = erless.export(
        model, history_inputs(4), tmp_path / "m", dynamic={"history": [0, 1]}, small_rows=0
    )
    features = {each.name: (each.table, each.pooling, each.ids) for each in manifest.model.features}
    assert features == {
        "items.history": ("items", Pooling.NONE, "history"),
        "items.target": ("items", Pooling.NONE, "target"),
        "tags.lookup": ("tags", Pooling.MEAN, "tags.lookup.ids"),
        "words.words": ("words", Pooling.WEIGHTED_SUM, "words"),
    }
    assert model.training
    bundle = GraphModel.load(tmp_path / "m")
    model.eval()
    for batch, length in ((1, 2), (9, 20)):
        inputs = history_inputs(batch, length, seed=batch)
        found, expected = bundle.predict(inputs), model(**inputs)
        assert list(found) == list(expected)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values.detach(), rtol=1e-5, atol=1e-6)
