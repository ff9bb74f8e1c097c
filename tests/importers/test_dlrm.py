"""Checkpoints made by the very module layouts of facebookresearch/dlrm and torchrec."""

import json
import pickle
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.errors import ArtifactError, CheckpointError, ConfigError, ErlessError, ModelError
from erless.importers.dlrm import import_dlrm
from erless.importers.options import ImportOptions
from erless.importers.poolings import Poolings
from erless.importers.torchrec import import_torchrec
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, Interaction, Pooling
from tests.conftest import Cli

MEAN = ImportOptions(Poolings(Pooling.MEAN))
DENSE, DIM, ROWS = 5, 4, (7, 11, 3)


class Dlrm(nn.Module):
    """The module layout of `dlrm_s_pytorch.py`: emb_l, bot_l, top_l."""

    def __init__(
        self, interaction: str = "dot", itself: bool = False, rows: tuple[int, ...] = ROWS
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.interaction, self.itself = interaction, itself
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(n, DIM, mode="sum") for n in rows)
        self.bot_l = nn.Sequential(nn.Linear(DENSE, 6), nn.ReLU(), nn.Linear(6, DIM), nn.ReLU())
        vectors = len(rows) + 1
        pairs = vectors * (vectors + 1) // 2 if itself else vectors * (vectors - 1) // 2
        width = DIM * vectors if interaction == "cat" else DIM + pairs
        self.top_l = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, dense: Tensor, bags: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = self.bot_l(dense)
        ly = [table(ids, offsets) for table, (ids, offsets) in zip(self.emb_l, bags, strict=True)]
        if self.interaction == "cat":
            return self._top(torch.cat([x, *ly], 1))
        vectors = torch.stack([x, *ly], 1)
        z = vectors @ vectors.transpose(1, 2)
        n, extra = vectors.shape[1], int(self.itself)
        flat = torch.stack([z[:, i, j] for i in range(n) for j in range(i + extra)], 1)
        return self._top(torch.cat([x, flat], 1))

    def _top(self, x: Tensor) -> Tensor:
        scores: Tensor = self.top_l(x)
        return scores


def queries(
    rows: tuple[int, ...] = ROWS, batch: int = 6
) -> tuple[Query, list[tuple[Tensor, Tensor]], Tensor]:
    generator = np.random.default_rng(3)
    lengths = generator.integers(0, 4, (len(rows), batch)).astype(np.int32)
    ids = [generator.integers(0, n, r.sum()) for n, r in zip(rows, lengths, strict=True)]
    dense = generator.standard_normal((batch, DENSE)).astype(np.float32)
    bags = [
        (torch.from_numpy(i), torch.from_numpy(np.cumsum(r) - r).long())
        for i, r in zip(ids, lengths, strict=True)
    ]
    return Query(dense, np.concatenate(ids), lengths), bags, torch.from_numpy(dense)


def save(path: Path, model: nn.Module, **more: object) -> Path:
    """As `--save-model` does: weights, optimizer, and numpy scalars of its metrics."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    document = {
        "nepochs": 1,
        "state_dict": model.state_dict(),
        "opt_state_dict": optimizer.state_dict(),
        "train_loss": np.float64(0.5),
        "test_acc": np.float64(0.78),
        "total_accu": np.int64(3),
        "iter": 1024,
    }
    torch.save(document | more, path)
    return path


@pytest.mark.parametrize(("interaction", "itself"), [("dot", False), ("dot", True), ("cat", False)])
def test_a_dlrm_checkpoint_predicts_the_same(
    tmp_path: Path, interaction: str, itself: bool
) -> None:
    model = Dlrm(interaction, itself)
    named = Interaction.DOT_ITSELF if itself else None  # never guessed
    manifest = import_dlrm(save(tmp_path / "c.pt", model), tmp_path / "m", interaction=named)
    expected = {("dot", False): "dot", ("dot", True): "dot_itself", ("cat", False): "cat"}
    tower = manifest.model.tower
    assert isinstance(tower, DlrmTower)
    assert tower.interaction == expected[interaction, itself]
    query, bags, dense = queries()
    found = Monolith.load(tmp_path / "m").predict(query)
    assert np.abs(found - model(dense, bags).detach().numpy()[:, 0]).max() <= 1e-6


def test_the_verb_passes_every_option_on(tmp_path: Path, cli: Cli) -> None:
    path = save(tmp_path / "c.pt", Dlrm(itself=True))
    run = cli(
        "import",
        "dlrm",
        path,
        "--out",
        tmp_path / "m",
        "--pooling",
        "table_1=mean",
        "--interaction",
        "dot_itself",
        "--logits",
        "-o",
        "json",
    )
    assert run.returncode == 0, run.stderr
    model = json.loads(run.stdout)["model"]
    assert [each["pooling"] for each in model["tables"]] == ["sum", "mean", "sum"]
    assert (model["tower"]["interaction"], model["tower"]["sigmoid"]) == ("dot_itself", False)
    run = cli("import", "torchrec", path, "--out", tmp_path / "n")
    assert run.returncode == 1
    assert "embedding_bags" in run.stderr


@pytest.mark.parametrize("form", ["ddp", "bare", "legacy", "safetensors", "half"])
def test_every_form_of_checkpoint(tmp_path: Path, form: str) -> None:
    model = Dlrm()
    path = tmp_path / ("c.safetensors" if form == "safetensors" else "c.pt")
    state = model.state_dict()
    if form == "ddp":
        torch.save(OrderedDict((f"module.{k}", v) for k, v in state.items()), path)
    elif form == "bare":
        torch.save(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        safetensors.torch.save_file(dict(state), path)
    else:
        model = model.bfloat16()
        torch.save(model.state_dict(), path)
        model = model.float()
    import_dlrm(path, tmp_path / "m")
    query, bags, dense = queries()
    found = Monolith.load(tmp_path / "m").predict(query)
    assert np.abs(found - model(dense, bags).detach().numpy()[:, 0]).max() <= 1e-6


def broken(**changes: Tensor | None) -> dict[str, Tensor]:
    state = dict(Dlrm().state_dict())
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    return state


NAN = torch.ones(11, DIM)
NAN[9, 2] = torch.nan


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"emb_l__1__weight": None}, CheckpointError, "emb_l.1.weight is missing"),
        ({"emb_l__2__weight": None}, CheckpointError, "2 tables .* a table is missing"),
        ({"emb_l__1__weight": torch.ones(11, 5)}, CheckpointError, "a table is missing"),
        ({"emb_l__1__weight": torch.ones(11)}, CheckpointError, r"table_1 has shape \(11,\)"),
        ({"emb_l__1__weight": NAN}, CheckpointError, "table_1, row 9, column 2: nan"),
        ({"emb_l__1__weight": torch.ones(11, 4).int()}, CheckpointError, "holds torch.int32"),
        ({"emb_l__0__embs__weight": torch.ones(1)}, CheckpointError, "only plain .* erless.export"),
        ({"bot_l__2__weight": None, "bot_l__2__bias": None}, CheckpointError, "top MLP takes"),
        ({"bot_l__2__bias": None}, CheckpointError, "the checkpoint has no bot_l.2.bias"),
        ({"bot_l__2__bias": torch.ones(3)}, CheckpointError, "3 biases for 4 outputs"),
        ({"top_l__2__weight": torch.ones(1, 9)}, CheckpointError, "takes 9 inputs, the layer"),
        (
            {"top_l__2__weight": torch.ones(2, 8), "top_l__2__bias": torch.ones(2)},
            ModelError,
            "the top MLP ends in 2 outputs",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, Tensor | None], error: type[ErlessError], message: str
) -> None:
    torch.save(broken(**changes), tmp_path / "c.pt")
    with pytest.raises(error, match=message):
        import_dlrm(tmp_path / "c.pt", tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_posing_as_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    torch.save(broken() | {"extra": Bomb(bomb)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"state_dict": Bomb(bomb)}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=rf"{name}: not a checkpoint of plain tensors"):
            import_dlrm(tmp_path / name, tmp_path / "m")
    assert not bomb.exists()


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(ArtifactError, match="does not exist"):
        import_dlrm(path, tmp_path / "m")
    whole = save(path, Dlrm()).read_bytes()
    for cut in (0, 10, 200, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"c\.pt: "):
            import_dlrm(path, tmp_path / "m")
    torch.save([torch.ones(1)], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        import_dlrm(path, tmp_path / "m")
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        import_dlrm(path, tmp_path / "m")
    bad = tmp_path / "c.safetensors"
    safetensors.torch.save_file(broken(), bad)
    bad.write_bytes(bad.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="truncated inside tensor .* ends at offset"):
        import_dlrm(bad, tmp_path / "m")


def test_an_ambiguous_width_asks(tmp_path: Path) -> None:
    # 7 tables of dim 4: cat has 32 inputs, and dot has 4 + 28 = 32
    rows = (3,) * 7
    torch.save(Dlrm("cat", rows=rows).state_dict(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="32 inputs fits dot and cat"):
        import_dlrm(tmp_path / "c.pt", tmp_path / "m")
    manifest = import_dlrm(tmp_path / "c.pt", tmp_path / "m", interaction=Interaction.CAT)
    tower = manifest.model.tower
    assert isinstance(tower, DlrmTower)
    assert tower.interaction == "cat"


def test_poolings(tmp_path: Path) -> None:
    torch.save(Dlrm().state_dict(), tmp_path / "c.pt")
    poolings = Poolings.parse(["mean", "table_2=max"])
    manifest = import_dlrm(tmp_path / "c.pt", tmp_path / "m", ImportOptions(poolings))
    assert [t.pooling for t in manifest.model.tables] == ["mean", "mean", "max"]
    with pytest.raises(ConfigError, match="pooling 'average': must be one of sum, mean"):
        Poolings.parse(["average"])
    with pytest.raises(ConfigError, match="did you mean table_2"):
        Poolings(Pooling.SUM, {"tabel_2": Pooling.MAX}).check(["table_1x", "table_2"])


class Perceptron(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self._linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self._linear(x))


class Mlp(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self._mlp = nn.Sequential(*(Perceptron(a, b) for a, b in pairwise(sizes)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._mlp(x)
        return out


class Holder(nn.Module):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class TorchrecDlrm(nn.Module):
    """The names that torchrec's DLRM gives its parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        bags = nn.ModuleDict(
            {
                f"t_{name}": nn.EmbeddingBag(n, DIM, mode="mean")
                for name, n in zip("xyz", ROWS, strict=True)
            }
        )
        self.sparse_arch = Holder(embedding_bag_collection=Holder(embedding_bags=bags))
        self.dense_arch = Holder(model=Mlp(DENSE, 6, DIM))
        self.over_arch = Holder(model=nn.Sequential(Mlp(DIM + 6, 8, 5), nn.Linear(5, 1)))

    def forward(self, dense: Tensor, bags: list[tuple[Tensor, Tensor]]) -> Tensor:
        x: Tensor = self.get_submodule("dense_arch.model")(dense)
        tables = self.get_submodule(
            "sparse_arch.embedding_bag_collection.embedding_bags"
        ).children()
        ly = [table(ids, offsets) for table, (ids, offsets) in zip(tables, bags, strict=True)]
        vectors = torch.stack([x, *ly], 1)
        row, column = torch.triu_indices(4, 4, offset=1)
        z = (vectors @ vectors.transpose(1, 2))[:, row, column]
        scores: Tensor = self.get_submodule("over_arch.model")(torch.cat([x, z], 1))
        return scores


@pytest.mark.parametrize("sigmoid", [True, False])
def test_a_torchrec_state_dict_predicts_the_same(tmp_path: Path, sigmoid: bool) -> None:
    model = TorchrecDlrm()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    manifest = import_torchrec(tmp_path / "c.pt", tmp_path / "m", MEAN, sigmoid=sigmoid)
    assert [table.name for table in manifest.model.tables] == ["t_x", "t_y", "t_z"]
    assert BundleManifest.open(tmp_path / "m") == manifest
    query, bags, dense = queries()
    expected = model(dense, bags).detach()
    expected = torch.sigmoid(expected) if sigmoid else expected
    found = Monolith.load(tmp_path / "m").predict(query)
    assert np.abs(found - expected.numpy()[:, 0]).max() <= 1e-6


def test_torchrec_variants_that_need_an_exported_tower(tmp_path: Path) -> None:
    state = TorchrecDlrm().state_dict()
    torch.save(state | {"inter_arch.crossnet.bias.0": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="inter_arch.crossnet.bias.0 belongs to an inter"):
        import_torchrec(tmp_path / "c.pt", tmp_path / "m", MEAN)
    torch.save(Dlrm().state_dict(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="no tensor named …"):
        import_torchrec(tmp_path / "c.pt", tmp_path / "m", MEAN)
    torch.save(TorchrecDlrm().state_dict(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="no tensor named emb_l.0.weight"):
        import_dlrm(tmp_path / "c.pt", tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("v_W_l.0", torch.ones(7)),
        ("top_l.2.weight_g", torch.ones(1)),
        ("position_weights", torch.ones(3)),
    ],
)
def test_a_tensor_that_nothing_computes_with_is_refused(
    tmp_path: Path, name: str, tensor: Tensor
) -> None:
    torch.save({**Dlrm().state_dict(), name: tensor}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=f"tensor {name} belongs to nothing .* erless.export"):
        import_dlrm(tmp_path / "c.pt", tmp_path / "m")


def test_averaged_and_wrapped_models_import(tmp_path: Path) -> None:
    model = Dlrm()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save({"model": averaged.state_dict()}, tmp_path / "a.pt")
    import_dlrm(tmp_path / "a.pt", tmp_path / "a")
    inner = {name.replace("bot_l.", "bot_l.module."): t for name, t in model.state_dict().items()}
    torch.save({"state_dict": inner}, tmp_path / "b.pt")
    import_dlrm(tmp_path / "b.pt", tmp_path / "b")
    assert BundleManifest.open(tmp_path / "a").digest == BundleManifest.open(tmp_path / "b").digest


def test_an_interaction_that_hides_a_lost_table_is_never_proposed(tmp_path: Path) -> None:
    state = Dlrm().state_dict()
    del state["emb_l.2.weight"]
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="shared by several features") as error:
        import_dlrm(tmp_path / "c.pt", tmp_path / "m")
    assert "dot_itself" not in str(error.value)
