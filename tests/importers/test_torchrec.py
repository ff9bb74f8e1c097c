"""What torchrec's checkpoints do not tell: features that share a table, precision, pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.errors import CheckpointError, ErlessError, ModelError, OptionError
from erless.importers.options import ImportOptions, Quantization, parse_features
from erless.importers.poolings import Poolings
from erless.importers.torchrec import import_torchrec
from erless.specs.model import CrossNet, DlrmTower, Interaction, Pooling
from tests.conftest import Cli

State = dict[str, Tensor]
DENSE, DIM, ROWS = 5, 4, {"a": 7, "b": 11}
READ = {"a": ["a1", "a2"], "b": ["b"]}
SHARED = ImportOptions(Poolings(Pooling.SUM), tables=["a", "b"], features=READ)
VECTORS = DIM * 4  # of the bottom MLP and three features


def state(cross: int = 0, rank: int = 3) -> State:
    """The tensors of a DLRM with two tables and three features, under torchrec's names."""
    torch.manual_seed(4)
    width = VECTORS if cross else DIM + 6
    tensors = {
        f"sparse_arch.embedding_bag_collection.embedding_bags.{name}.weight": torch.randn(rows, DIM)
        for name, rows in ROWS.items()
    }
    for layer in range(cross):
        tensors[f"inter_arch.crossnet.W_kernels.{layer}"] = torch.randn(VECTORS, rank) * 0.2
        tensors[f"inter_arch.crossnet.V_kernels.{layer}"] = torch.randn(rank, VECTORS) * 0.2
        tensors[f"inter_arch.crossnet.bias.{layer}"] = torch.randn(VECTORS)
    for name, shape in (
        ("dense_arch.model._mlp.0._linear", (DIM, DENSE)),
        ("over_arch.model.0._mlp.0._linear", (6, width)),
        ("over_arch.model.1", (1, 6)),
    ):
        tensors[f"{name}.weight"] = torch.randn(shape) * 0.2
        tensors[f"{name}.bias"] = torch.randn(shape[0])
    return tensors


def query(batch: int = 9) -> Query:
    generator = np.random.default_rng(5)
    lengths = generator.integers(0, 4, (3, batch)).astype(np.int32)
    rows = [ROWS["a"], ROWS["a"], ROWS["b"]]
    ids = [generator.integers(0, n, bags.sum()) for n, bags in zip(rows, lengths, strict=True)]
    dense = generator.standard_normal((batch, DENSE)).astype(np.float32)
    return Query(dense, np.concatenate(ids), lengths)


def predicted(tensors: State, asked: Query) -> np.ndarray:
    """What torchrec's DLRM or DLRM_DCN computes of these tensors."""
    tables = [tensors[name] for name in tensors if "embedding_bags" in name]
    x = torch.from_numpy(asked.dense)
    x = torch.relu(
        torch.nn.functional.linear(
            x,
            tensors["dense_arch.model._mlp.0._linear.weight"],
            tensors["dense_arch.model._mlp.0._linear.bias"],
        )
    )
    ids = iter(asked.values.tolist())
    vectors = [x]
    for table, lengths in zip([tables[0], tables[0], tables[1]], asked.lengths, strict=True):
        bags = [[next(ids) for _ in range(length)] for length in lengths]
        vectors.append(torch.stack([table[bag].sum(0) for bag in bags]))
    stacked = torch.stack(vectors, 1)
    if "inter_arch.crossnet.bias.0" in tensors:
        first = z = stacked.flatten(1)
        for layer in range(2):
            net = "inter_arch.crossnet"
            down = z @ tensors[f"{net}.V_kernels.{layer}"].T
            up = down @ tensors[f"{net}.W_kernels.{layer}"].T
            z = first * (up + tensors[f"{net}.bias.{layer}"]) + z
    else:
        row, column = torch.triu_indices(4, 4, offset=1)
        z = torch.cat([x, (stacked @ stacked.transpose(1, 2))[:, row, column]], 1)
    name = "over_arch.model.0._mlp.0._linear"
    z = torch.relu(z @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"])
    logits = z @ tensors["over_arch.model.1.weight"].T + tensors["over_arch.model.1.bias"]
    return torch.sigmoid(logits)[:, 0].numpy()


def assert_imports(checkpoint: Path, target: Path, tensors: State, options: ImportOptions) -> None:
    """The bundle of `checkpoint` predicts what torchrec computes of `tensors`."""
    import_torchrec(checkpoint, target, options)
    asked = query()
    found = Monolith.load(target).predict(asked)
    np.testing.assert_allclose(found, predicted(tensors, asked), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cross", [0, 2])
def test_features_share_a_table(tmp_path: Path, cross: int) -> None:
    tensors = state(cross)
    torch.save(tensors, tmp_path / "c.pt")
    assert_imports(tmp_path / "c.pt", tmp_path / "m", tensors, SHARED)
    model = Monolith.load(tmp_path / "m").model
    assert [(each.name, each.table) for each in model.features] == [
        ("a1", "a"),
        ("a2", "a"),
        ("b", "b"),
    ]
    assert isinstance(model.tower, DlrmTower)
    assert model.tower.cross == (CrossNet(layers=2, rank=3) if cross else None)


def test_one_feature_of_its_table_s_name_is_none_to_speak_of(tmp_path: Path) -> None:
    tensors = state()
    torch.save(tensors, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="10 inputs; 2 tables .* shared by several") as error:
        import_torchrec(tmp_path / "c.pt", tmp_path / "m", replace(SHARED, features={}))
    assert "dot_itself" not in str(error.value)
    for wrong in (Interaction.DOT_ITSELF, Interaction.DOT, Interaction.CAT):
        with pytest.raises(OptionError, match="torchrec's interaction is dot_upper here"):
            import_torchrec(tmp_path / "c.pt", tmp_path / "m", SHARED, interaction=wrong)
    tensors["over_arch.model.0._mlp.0._linear.weight"] = torch.ones(6, DIM + 3)
    torch.save(tensors, tmp_path / "c.pt")
    own = replace(SHARED, features={"a": ["a"], "b": ["b"]})
    assert import_torchrec(tmp_path / "c.pt", tmp_path / "m", own).model.plain


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ({"c": ["x"]}, OptionError, "features of table c: the model has tables a, b"),
        ({"a": ["x", "x"]}, ModelError, "feature x is listed twice"),
        ({"a": ["x y"]}, OptionError, "a feature's name has letters"),
        ({"a": ["x", "y", "z"]}, CheckpointError, "10 inputs; 4 tables"),
    ],
)
def test_features_that_do_not_fit(
    tmp_path: Path, features: dict[str, list[str]], error: type[ErlessError], message: str
) -> None:
    torch.save(state(), tmp_path / "c.pt")
    with pytest.raises(error, match=message):
        import_torchrec(tmp_path / "c.pt", tmp_path / "m", replace(SHARED, features=features))


@pytest.mark.parametrize("text", ["a", "=x", "a=", "a=x,,y"])
def test_features_have_a_form(text: str) -> None:
    with pytest.raises(OptionError, match="features"):
        parse_features([text] if text != "=x" else ["a=x", "a=y"])


def quantized(rows: Tensor, kind: Quantization, alignment: int) -> tuple[Tensor, Tensor]:
    """The bytes of rows as fbgemm keeps them, and the rows that these stand for."""
    if kind is Quantization.FP16:
        halves = rows.half()
        packed, back = halves.view(torch.uint8), halves.float()
    else:
        most = 255 if kind is Quantization.INT8 else 15
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        scale, bias = ((high - low) / most).half(), low.half()
        numbers = ((rows - bias.float()) / scale.float()).round().clamp(0, most).to(torch.uint8)
        back = numbers.float() * scale.float() + bias.float()
        if kind is Quantization.INT4:
            numbers = numbers[:, 0::2] | (numbers[:, 1::2] << 4)
        packed = torch.cat([scale.view(torch.uint8), bias.view(torch.uint8), numbers], 1)
    fill = -packed.shape[1] % alignment
    return torch.nn.functional.pad(packed, (0, fill)), back


@pytest.mark.parametrize("kind", Quantization)
@pytest.mark.parametrize("alignment", [1, 16])
def test_quantized_rows(tmp_path: Path, kind: Quantization, alignment: int) -> None:
    tensors, packed = state(), state()
    for name in tensors:
        if "embedding_bags" in name:
            packed[name], tensors[name] = quantized(tensors[name], kind, alignment)
    packed["sparse_arch.embedding_bag_collection.tbes.0.D_offsets"] = torch.zeros(4)
    torch.save(packed, tmp_path / "c.pt")
    options = replace(SHARED, quantized=kind)
    assert_imports(tmp_path / "c.pt", tmp_path / "m", tensors, options)


def test_bytes_are_never_guessed(tmp_path: Path) -> None:
    tensors = state()
    for name in tensors:
        if "embedding_bags" in name:
            tensors[name] = torch.ones(7, 9, dtype=torch.uint8)
    torch.save(tensors, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="not of which precision: it is one of int8, int4"):
        import_torchrec(tmp_path / "c.pt", tmp_path / "m", SHARED)
    with pytest.raises(CheckpointError, match="a row of 4 in int8 has 8 bytes"):
        import_torchrec(
            tmp_path / "c.pt", tmp_path / "m", replace(SHARED, quantized=Quantization.INT8)
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inter_arch.crossnet.kernels.0", "kernels.0 belongs to an interaction that the built-in"),
        ("inter_arch.crossnet.bias.7", "belongs to an interaction that the built-in tower lacks"),
        ("x._managed_collision_modules.a._mch_sorted_raw_ids", "managed collision module"),
        ("sparse_arch.tbes.0.weights_tys", "belongs to nothing"),
    ],
)
def test_what_the_tower_does_not_compute_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    torch.save(state(2) | {name: torch.ones(3)}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=message):
        import_torchrec(tmp_path / "c.pt", tmp_path / "m", SHARED)


def test_the_verb_passes_features_and_precision_on(tmp_path: Path, cli: Cli) -> None:
    tensors = state()
    for name in tensors:
        if "embedding_bags" in name:
            tensors[name], _ = quantized(tensors[name], Quantization.INT4, 16)
    torch.save(tensors, tmp_path / "c.pt")
    out = tmp_path / "m"
    options = ["--features", "a=a1,a2", "--quantized", "int4", "--pooling", "sum"]
    run = cli(
        "import",
        "torchrec",
        tmp_path / "c.pt",
        "--out",
        out,
        *options,
        "--tables",
        "a,b",
        "-o",
        "json",
    )
    assert run.returncode == 0, run.stderr
    model = json.loads((out / "model.json").read_text())["model"]
    assert [feature["name"] for feature in model["features"]] == ["a1", "a2", "b"]
