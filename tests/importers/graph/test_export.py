from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import erless
from erless.dlrm.graph_archives import from_numpy, to_numpy
from erless.dlrm.whole_graph import WholeGraph
from erless.errors import ModelError
from erless.importers.archives.whole_model import import_archive
from erless.specs.features import Pooling
from tests.importers.graph.models import HistoryModel, history_inputs


def predict(bundle: Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the bundle's functions compute of `inputs`."""
    found = WholeGraph(bundle).predict({name: to_numpy(value) for name, value in inputs.items()})
    return {name: from_numpy(array) for name, array in found.items()}


def test_a_hand_written_model_predicts_as_it_did(tmp_path: Path) -> None:
    model = HistoryModel()
    manifest = erless.export(
        model, history_inputs(4), tmp_path / "m", dynamic={"history": [0, 1]}, small_rows=0
    )
    features = {each.name: (each.table, each.pooling, each.ids) for each in manifest.model.features}
    assert features == {
        "items.history": ("items", Pooling.NONE, "history"),
        "items.target": ("items", Pooling.NONE, "target"),
        "tags.tags": ("tags", Pooling.MEAN, "tags"),
        "words.words": ("words", Pooling.WEIGHTED_SUM, "words"),
    }
    assert model.training
    assert not (tmp_path / "m" / "front.pt2").exists()
    per = {tensor.name: tensor.per for tensor in manifest.model.inputs}
    assert {name for name, kind in per.items() if kind == "entry"} == {
        "words",
        "offsets",
        "weights",
    }
    model.eval()
    for batch, length in ((1, 2), (9, 20)):
        inputs = history_inputs(batch, length, seed=batch)
        found, expected = predict(tmp_path / "m", inputs), model(**inputs)
        assert list(found) == list(expected)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values.detach(), rtol=1e-5, atol=1e-6)


def test_a_model_saved_by_torch_is_cut_alike(tmp_path: Path) -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(50, 4)
            self.out = nn.Linear(4, 1)

        def forward(self, history: Tensor, target: Tensor) -> dict[str, Tensor]:
            return {"score": self.out(self.items(history).mean(1) * self.items(target % 50))}

    model = Towers().eval()
    example = (torch.randint(0, 50, (4, 3)), torch.randint(0, 900, (4,)))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "model.pt2")
    manifest = import_archive(tmp_path / "model.pt2", tmp_path / "m", small_rows=0)
    assert [(table.name, table.rows) for table in manifest.model.tables] == [("items", 50)]
    found = predict(tmp_path / "m", dict(zip(("history", "target"), example, strict=True)))
    torch.testing.assert_close(found["score"], model(*example)["score"].detach())


class Renormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4, max_norm=1.0)

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.table(ids)
        return vectors.sum(1)


class Branching(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return ids + 1 if ids.sum() > 3 else ids


class Plain(nn.Module):
    """Two tables; `between` is what is done to the ids, or with the first one's vectors."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(30, 4), nn.Embedding(30, 4)
        self.branch = Branching()
        self.bias = nn.Parameter(torch.zeros(4, 4))
        self.between = between

    def forward(self, ids: Tensor) -> Tensor:
        match self.between:
            case "branch":
                ids = self.branch(ids)
            case "vectors":
                ids = self.first(ids).argmax(-1)
            case "batch":
                return torch.add(self.second(ids).sum(1), self.bias)
            case "both":
                return torch.cat([self.first.weight, self.second.weight])[ids].sum(1)
            case "normal":
                return nn.functional.normalize(self.first.weight)[ids].sum(1)
            case "fft":
                spectrum: Tensor = torch.fft.rfft(self.second(ids).sum(1))
                return spectrum.abs()
            case "tied":
                return torch.matmul(self.first(ids).sum(1), self.first.weight.t())
        vectors: Tensor = self.second(ids)
        return vectors.sum(1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Renormed(), "changes table.weight when it predicts (max_norm"),
        (Plain("branch"), "branch (Branching) cannot be exported: it branches on a value"),
        (Plain("vectors"), "ids of second (Embedding) depend on vectors of first (Embedding)"),
        (Plain("batch"), "computes with a size of 4, which is that of the example"),
        (Plain("both"), "looks up rows of first.weight, second.weight, put together"),
        (Plain("normal"), "looks up rows of a table that is computed from first.weight"),
        (Plain("fft"), "the model (Plain) computes with operator fft_rfft.default"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(
    model: nn.Module, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as refused:
        erless.export(model, torch.randint(0, 30, (4, 5)), tmp_path / "m", small_rows=0)
    assert reason in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 5
    assert not (tmp_path / "m").exists()


def test_a_table_that_the_output_layer_shares_is_told(tmp_path: Path) -> None:
    ids = torch.randint(0, 30, (4, 5))
    model = Plain("tied").eval()
    with pytest.warns(UserWarning, match="table first .* is kept in the tower too"):
        erless.export(model, ids, tmp_path / "m", small_rows=0)
    found = predict(tmp_path / "m", {"ids": ids[:2]})["output"]
    torch.testing.assert_close(found, model(ids[:2]).detach())


def test_small_tables_stay_in_the_tower(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no table that is large enough"):
        erless.export(Plain("none"), torch.randint(0, 30, (4, 5)), tmp_path / "m")


def test_a_small_bag_is_cut_and_a_small_table_stays(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tags = nn.EmbeddingBag(9, 4, mode="sum")
            self.place = nn.Embedding(9, 4)

        def forward(self, tags: Tensor, place: Tensor) -> Tensor:
            product: Tensor = self.tags(tags) * self.place(place)
            return product.sum(1)

    model, example = Small().eval(), (torch.randint(0, 9, (4, 3)), torch.randint(0, 9, (4,)))
    manifest = erless.export(model, example, tmp_path / "m")
    assert [table.name for table in manifest.model.tables] == ["tags"]
    inputs = dict(zip(("tags", "place"), example, strict=True))
    (found,) = predict(tmp_path / "m", inputs).values()
    torch.testing.assert_close(found, model(*example).detach())


def test_recurrent_layers_and_assignments_are_taken(tmp_path: Path) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(50, 4)
            self.gru = nn.GRU(4, 4, batch_first=True)
            self.lstm = nn.LSTM(4, 4, batch_first=True)
            self.cell = nn.GRUCell(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            vectors = self.items(ids)
            vectors[:, 0] = 1.0
            steps: Tensor = self.gru(vectors)[0] * self.lstm(vectors)[0]
            last: Tensor = self.cell(steps[:, -1], vectors[:, -1])
            return last

    model, ids = Steps().eval(), torch.randint(0, 50, (4, 3))
    erless.export(model, ids, tmp_path / "m", small_rows=0)
    found = predict(tmp_path / "m", {"ids": ids[:2]})["output"]
    torch.testing.assert_close(found, model(ids[:2]).detach())


class Users(nn.Module):
    """A user's vector times each candidate's; `mixed`: candidates are compared with each other."""

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(30, 4), nn.Embedding(30, 4)
        self.mixed = mixed

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        places = (user + (user == 0).cumsum(0)) % 30 if self.mixed else user % 30
        product: Tensor = self.users(places) * self.items(item)
        return product.sum(1)


def test_what_comes_once_per_request_is_looked_up_once(tmp_path: Path) -> None:
    model = Users().eval()
    example = (torch.tensor([33]), torch.arange(4))
    manifest = erless.export(model, example, tmp_path / "m", request=["user"], small_rows=0)
    assert [(f.name, f.per) for f in manifest.model.features] == [
        ("users", "request"),
        ("items", "sample"),
    ]
    assert (tmp_path / "m" / "request_front.pt2").exists()
    found = predict(tmp_path / "m", {"user": torch.tensor([31]), "item": torch.arange(9)})
    expected = model(torch.full((9,), 31), torch.arange(9)).detach()
    torch.testing.assert_close(found["output"], expected)


@pytest.mark.parametrize(
    ("model", "request_", "reason"),
    [
        (Users(), ["usr"], "request names usr; the inputs are user, item"),
        (Users(), ["user", "item"], "request names all inputs"),
        (Users(mixed=True), ["user"], "differs from the model's"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    model: nn.Module, request_: list[str], reason: str, tmp_path: Path
) -> None:
    example = (torch.zeros(4, dtype=torch.int64), torch.arange(4))
    with pytest.raises(ModelError, match=reason):
        erless.export(model, example, tmp_path / "m", request=request_, small_rows=0)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("way", ["indexed", "index_select", "functional"])
def test_rows_are_found_however_they_are_read(way: str, tmp_path: Path) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(40, 4))

        def forward(self, ids: Tensor) -> Tensor:
            match way:
                case "indexed":
                    return self.table[ids].sum(1)
                case "index_select":
                    return self.table.index_select(0, ids.flatten()).reshape(-1, 3, 4).sum(1)
                case _:
                    return nn.functional.embedding(ids, self.table).sum(1)

    model, ids = Reads().eval(), torch.randint(0, 40, (4, 3))
    manifest = erless.export(model, ids, tmp_path / "m", small_rows=0)
    assert [(table.name, table.rows) for table in manifest.model.tables] == [("table", 40)]
    torch.testing.assert_close(predict(tmp_path / "m", {"ids": ids})["output"], model(ids).detach())
