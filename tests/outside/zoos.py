"""The models of the zoos, and random inputs that they take."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A model, and what makes the arguments of its `forward` for a batch.
Case = Callable[[], tuple[nn.Module, Callable[[int], tuple[Any, ...]]]]
Cases = Iterator[tuple[str, Case]]


def deepctr(_: Path | None = None) -> Cases:
    """DeepCTR-Torch: https://github.com/shenweichen/DeepCTR-Torch."""
    models = importlib.import_module("deepctr_torch.models")
    plain = "WDL DeepFM xDeepFM AFM DIFM IFM AutoInt DCN DCNMix FiBiNET NFM MLR ONN PNN CCPM AFN"
    for name in plain.split():
        yield name, _deepctr_plain(getattr(models, name))
    for name in ("DIN", "DIEN"):
        yield name, _deepctr_sequences(getattr(models, name))
    for name in ("SharedBottom", "ESMM", "MMOE", "PLE"):
        yield name, _deepctr_tasks(getattr(models, name))


def _deepctr_columns(sequences: bool) -> Any:
    inputs = importlib.import_module("deepctr_torch.inputs")
    columns = [
        inputs.SparseFeat("user", 200, 8),
        inputs.SparseFeat("item_id", 500, 8, embedding_name="item_id"),
        inputs.SparseFeat("cate_id", 50, 8, embedding_name="cate_id"),
        inputs.DenseFeat("age", 1),
        inputs.DenseFeat("scores", 3),
    ]
    if not sequences:
        words = inputs.SparseFeat("words", 300, 8)
        return [*columns, inputs.VarLenSparseFeat(words, maxlen=4, combiner="mean")]
    for prefix in ("hist_", "neg_hist_"):
        for name, rows in (("item_id", 500), ("cate_id", 50)):
            feature = inputs.SparseFeat(prefix + name, rows, 8, embedding_name=name)
            columns.append(inputs.VarLenSparseFeat(feature, maxlen=6, length_name="seq_length"))
    return columns


def _deepctr_inputs(columns: Any, batch: int) -> Tensor:
    """One float32 column per number, as the library itself feeds them."""
    index = importlib.import_module("deepctr_torch.inputs").build_input_features(columns)
    x = torch.zeros(batch, max(end for _, end in index.values()))
    rows = {}
    for column in columns:
        feature = getattr(column, "sparsefeat", column)
        rows[column.name] = getattr(feature, "vocabulary_size", 0)
    for name, (begin, end) in index.items():
        if name == "seq_length":
            x[:, begin] = torch.randint(1, 7, (batch,)).float()
        elif rows[name]:
            x[:, begin:end] = torch.randint(0, rows[name], (batch, end - begin)).float()
        else:
            x[:, begin:end] = torch.rand(batch, end - begin)
    return x


def _deepctr_plain(kind: Any) -> Case:
    def case() -> Any:
        columns = _deepctr_columns(sequences=False)
        if kind.__name__ in {"MLR", "PNN"}:
            model = kind(columns)
        elif kind.__name__ == "AFM":
            model = kind(columns, columns[:3])
        elif kind.__name__ == "CCPM":
            model = kind(columns, columns[:3], conv_kernel_width=(3, 2), conv_filters=(2, 1))
        else:
            model = kind(columns, columns)
        return model, lambda batch: (_deepctr_inputs(columns, batch),)

    return case


def _deepctr_sequences(kind: Any) -> Case:
    def case() -> Any:
        columns = _deepctr_columns(sequences=True)
        if kind.__name__ == "DIN":
            columns = [column for column in columns if not column.name.startswith("neg_")]
            model = kind(columns, ["item_id", "cate_id"], att_weight_normalization=True)
        else:
            model = kind(columns, ["item_id", "cate_id"], use_negsampling=True)
        return model, lambda batch: (_deepctr_inputs(columns, batch),)

    return case


def _deepctr_tasks(kind: Any) -> Case:
    def case() -> Any:
        columns = _deepctr_columns(sequences=False)
        model = kind(columns, task_types=["binary", "binary"], task_names=["ctr", "ctcvr"])
        return model, lambda batch: (_deepctr_inputs(columns, batch),)

    return case


def fuxictr(checkout: Path | None = None) -> Cases:
    """FuxiCTR's model zoo with its own test settings: https://github.com/reczoo/FuxiCTR."""
    if checkout is None:
        raise SystemExit("give --fuxictr CHECKOUT, a clone of https://github.com/reczoo/FuxiCTR")
    import yaml

    sys.path.insert(0, str(checkout))
    for path in sorted((checkout / "model_zoo").rglob("config/model_config.yaml")):
        if path.parent.parent.name.endswith("_tf"):
            continue
        settings = yaml.safe_load(path.read_text())
        for name, own in settings.items():
            if name.endswith("_test") and isinstance(own, dict):
                data = yaml.safe_load(path.with_name("dataset_config.yaml").read_text())
                given = {**settings.get("Base", {}), **own}
                label = name.removesuffix("_test")
                yield label, _fuxictr_case(checkout, path.parent.parent, given, data)


def _fuxictr_case(checkout: Path, folder: Path, given: dict[str, Any], data: Any) -> Case:
    def case() -> Any:
        features = importlib.import_module("fuxictr.features")
        dataset = given["dataset_id"]
        described = dataset if (checkout / "data" / dataset / "feature_map.json").exists() else ""
        known = described or "tiny_npz"
        feature_map = features.FeatureMap(known, str(checkout / "data" / known))
        with contextlib.redirect_stdout(io.StringIO()):
            feature_map.load(str(checkout / "data" / known / "feature_map.json"), given)
        if dataset == "tiny_mtl":
            feature_map.labels = ["click", "like"]
            given["num_tasks"], given["task"] = 2, ["binary_classification"] * 2
        source = importlib.util.spec_from_file_location(
            f"zoo_{folder.name}_src", folder / "src" / "__init__.py"
        )
        assert source is not None
        assert source.loader is not None
        for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        module = importlib.import_module("src")
        sys.path.remove(str(folder))
        kind = getattr(module, given["model"])
        arguments = {**given, "gpu": -1, "verbose": 0, "model_root": "/tmp/none"}
        with contextlib.redirect_stdout(io.StringIO()):
            model = kind(feature_map, **arguments)
        model.device = torch.device("cpu")
        return model, lambda batch: (_fuxictr_inputs(feature_map, batch),)

    return case


def _fuxictr_inputs(feature_map: Any, batch: int) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    for name, spec in feature_map.features.items():
        if spec["type"] == "meta":
            continue
        if spec["type"] == "numeric":
            inputs[name] = torch.rand(batch)
        else:
            shape = (batch, spec["max_len"]) if spec["type"] == "sequence" else (batch,)
            inputs[name] = torch.randint(0, spec["vocab_size"], shape)
            if spec["type"] == "sequence":  # padded in front, as the zoo does
                lengths = torch.randint(1, spec["max_len"] + 1, (batch, 1))
                places = torch.arange(spec["max_len"]).flip(0)
                inputs[name] = torch.where(places < lengths, inputs[name].clamp(min=1), 0)
    return inputs


def _tensor(value: Any) -> Tensor:
    scores: Tensor = value
    return scores


class Scores(nn.Module):
    """A RecBole model as a module of tensors: what `predict` makes of its interaction."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        scores: Tensor = self.model.full_sort_predict(dict(zip(self.names, tensors, strict=True)))
        return scores


def recbole(_: Path | None = None) -> Cases:
    """RecBole: https://github.com/RUCAIBox/RecBole."""
    yield "SASRec", _recbole_sasrec
    yield "BPR", _recbole_bpr
    yield "DeepFM", _recbole_deepfm


def _recbole_config(model: str, **given: Any) -> Any:
    for name in ("float_", "complex_", "unicode_"):  # RecBole 1.2 was written for NumPy 1
        if not hasattr(np, name):
            setattr(np, name, getattr(np, {"unicode_": "str_"}.get(name, f"{name[:-1]}64")))
    configurator = importlib.import_module("recbole.config")
    with contextlib.redirect_stdout(io.StringIO()):
        given = {"data_path": "/tmp/none", "device": "cpu", "use_gpu": False, **given}
        argv, sys.argv = sys.argv, sys.argv[:1]
        try:
            return configurator.Config(model=model, dataset="ml-100k", config_dict=given)
        finally:
            sys.argv = argv


class _Dataset:
    """What RecBole's models ask of a data set."""

    def __init__(self, rows: dict[str, int], config: Any = None) -> None:
        self.rows, self.config = rows, config
        self.field2type: dict[str, Any] = {}

    def num(self, name: str) -> int:
        return self.rows[name]


def _recbole_sasrec() -> Any:
    models = importlib.import_module("recbole.model.sequential_recommender")
    config = _recbole_config("SASRec", MAX_ITEM_LIST_LENGTH=10, train_neg_sample_args=None)
    model = models.SASRec(config, _Dataset({"user_id": 100, "item_id": 700}))
    names = ["item_id_list", "item_length"]

    def make(batch: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(1, 11, (batch,))
        ids = torch.randint(1, 700, (batch, 10)) * (torch.arange(10) < lengths[:, None])
        return ids, lengths

    return Scores(model, names), make


def _recbole_bpr() -> Any:
    models = importlib.import_module("recbole.model.general_recommender")
    model = models.BPR(_recbole_config("BPR"), _Dataset({"user_id": 300, "item_id": 700}))

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, user_id: Tensor, item_id: Tensor) -> Tensor:
            return _tensor(self.model.predict({"user_id": user_id, "item_id": item_id}))

    return Pair(), lambda batch: (
        torch.randint(0, 300, (batch,)),
        torch.randint(0, 700, (batch,)),
    )


def _recbole_deepfm() -> Any:
    models = importlib.import_module("recbole.model.context_aware_recommender")
    utils = importlib.import_module("recbole.utils")
    rows = {"user_id": 300, "item_id": 700, "gender": 3}

    class Dataset(_Dataset):
        def fields(self, *_: Any, **__: Any) -> list[str]:
            return list(rows)

    dataset = Dataset(rows)
    dataset.field2type = dict.fromkeys(rows, utils.FeatureType.TOKEN)
    model = models.DeepFM(_recbole_config("DeepFM", numerical_features=[]), dataset)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, user_id: Tensor, item_id: Tensor, gender: Tensor) -> Tensor:
            return _tensor(
                self.model.predict({"user_id": user_id, "item_id": item_id, "gender": gender})
            )

    return Named(), lambda batch: tuple(
        torch.randint(0, count, (batch,)) for count in rows.values()
    )


class QrEmbeddingBag(nn.Module):
    """facebookresearch/dlrm's quotient-remainder trick (tricks/qr_embedding_bag.py), mult."""

    def __init__(self, rows: int, dim: int, collisions: int) -> None:
        super().__init__()
        self.collisions = collisions
        self.weight_q = nn.Parameter(torch.randn(-(-rows // collisions), dim))
        self.weight_r = nn.Parameter(torch.randn(collisions, dim))

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        quotients = (ids / self.collisions).long()
        remainders = torch.remainder(ids, self.collisions).long()
        q = nn.functional.embedding_bag(quotients, self.weight_q, offsets, mode="sum")
        r = nn.functional.embedding_bag(remainders, self.weight_r, offsets, mode="sum")
        return q * r


def own(_: Path | None = None) -> Cases:
    """Shapes that have no zoo."""

    def case() -> Any:
        def make(batch: int) -> tuple[Tensor, Tensor]:
            lengths = torch.from_numpy(np.random.default_rng(batch).integers(1, 4, batch))
            ids = torch.randint(0, 1000, (int(lengths.sum()),))
            return ids, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])

        return QrEmbeddingBag(1000, 8, 7), make

    yield "QR", case


class Bags(nn.Module):
    """facebookresearch's model with the ids of each table as (samples, n)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, ids: list[Tensor]) -> Tensor:
        offsets = [torch.arange(each.shape[0]) * each.shape[1] for each in ids]
        return _tensor(self.model(dense, offsets, [each.flatten() for each in ids]))


def dlrm(checkout: Path | None = None) -> Cases:
    """The model of facebookresearch/dlrm's own script: https://github.com/facebookresearch/dlrm."""
    if checkout is None:
        raise SystemExit(
            "give --dlrm CHECKOUT, a clone of https://github.com/facebookresearch/dlrm"
        )
    sys.path.insert(0, str(checkout))
    yield "dot", _dlrm_case({}, 14)
    yield "dot_itself", _dlrm_case({"arch_interaction_itself": True}, 18)
    yield "cat", _dlrm_case({"arch_interaction_op": "cat"}, 32)
    yield "weighted", _dlrm_case({"weighted_pooling": "learned"}, 14)
    yield "QR", _dlrm_case({"qr_flag": True, "qr_collisions": 4}, 14)
    yield "MD", _dlrm_case({"md_flag": True}, 14)


def _dlrm_case(given: dict[str, Any], width: int) -> Case:
    """Three tables of dimension 8; `width` is how many numbers the interaction gives."""

    def case() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            script = importlib.import_module("dlrm_s_pytorch")
        np.random.seed(0)  # the script draws the weights of its layers there
        rows = np.array([1000, 400, 300])
        dims = np.array([4, 8, 2]) if "md_flag" in given else 8
        bottom, top = np.array([5, 16, 8]), np.array([width, 16, 1])
        settings = {"arch_interaction_op": "dot", "sigmoid_top": 1, **given}
        model = script.DLRM_Net(dims, rows, bottom, top, **settings)
        for weights in model.emb_l.parameters():
            weights.data.normal_(0, 0.5)
        for weights in filter(torch.is_tensor, model.v_W_l):
            weights.data.uniform_(0.5, 2)
        return Bags(model), lambda batch: (
            torch.rand(batch, 5),
            [torch.randint(0, int(count), (batch, 3)) for count in rows],
        )

    return case


ZOOS: dict[str, Callable[[Path | None], Cases]] = {
    "deepctr": deepctr,
    "fuxictr": fuxictr,
    "recbole": recbole,
    "dlrm": dlrm,
    "own": own,
}
