"""Export models of the real torchrec by `erless.export`, and compare what they predict.

Runs in torchrec's own environment (see `torchrec_imports.py`), where erless is installed too:

    torchrec/bin/python -m tests.outside.torchrec_exports

Each model must predict as torchrec does, within 1e-5, on batches of 1, 5 and 300, those among them
whose lookups are fbgemm's too; an fbgemm module of several features must be refused by its name.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType as OptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

import erless
from erless.dlrm.graph_archives import from_numpy, to_numpy
from erless.dlrm.whole_graph import WholeGraph
from erless.errors import ModelError

ROWS, DIM, DENSE = 400, 16, 5
SEVERAL = "lookup (SplitTableBatchedEmbeddingBagsCodegen) has 2 features"
SGD = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.1}}


def bags(weighted: bool = False, pooling: PoolingType = PoolingType.SUM) -> EmbeddingBagCollection:
    """Two tables, of which two features share the first."""
    tables = [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=DIM,
            num_embeddings=ROWS,
            feature_names=features,
            pooling=pooling,
        )
        for name, features in (("t1", ["f1", "f3"]), ("t2", ["f2"]))
    ]
    return EmbeddingBagCollection(tables=tables, is_weighted=weighted)


class Pooled(nn.Module):
    """A collection and one layer."""

    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.collection, self.out = collection, nn.Linear(3 * DIM, 1)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        score: Tensor = self.out(self.collection(features).values()).squeeze(1) + dense.sum(1)
        return score


def fused(collection: EmbeddingBagCollection, **more: bool) -> nn.Module:
    """A collection like it whose lookups are fbgemm's, with random rows."""
    made: nn.Module = FusedEmbeddingBagCollection(
        tables=collection.embedding_bag_configs(), **SGD, **more
    )
    for table in made.get_submodule("embedding_bags").children():
        nn.init.normal_(table.get_parameter("weight"))
    return made


class Lookup(nn.Module):
    """fbgemm's module of one table, and one layer."""

    def __init__(self, features: int = 1, mode: PoolingMode = PoolingMode.SUM) -> None:
        super().__init__()
        self.lookup = SplitTableBatchedEmbeddingBagsCodegen(
            [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)] * features,
            optimizer=OptimType.EXACT_SGD,
            pooling_mode=mode,
        )
        for table in self.lookup.split_embedding_weights():
            nn.init.normal_(table)
        self.out = nn.Linear(features * DIM, 1)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        score: Tensor = self.out(self.lookup(ids, offsets)).squeeze(1)
        return score


def offsets_of(batch: int) -> tuple[Tensor, Tensor]:
    """Random ids, and where each sample's begin."""
    lengths = torch.randint(0, 5, (batch,))
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.randint(0, ROWS, (int(offsets[-1]),)), offsets


class Sequences(nn.Module):
    """A collection that pools nothing, padded to sequences of four."""

    def __init__(self) -> None:
        super().__init__()
        tables = [
            EmbeddingConfig(
                name="t", embedding_dim=DIM, num_embeddings=ROWS, feature_names=["f1", "f3"]
            )
        ]
        self.collection, self.out = EmbeddingCollection(tables=tables), nn.Linear(4 * DIM, 1)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        parts = self.collection(features)
        product = parts["f1"].to_padded_dense(4) * parts["f3"].to_padded_dense(4)
        score: Tensor = self.out(product.flatten(1)).squeeze(1) + dense.sum(1)
        return score


MODELS: dict[str, Callable[[], nn.Module]] = {
    "shared, sum": lambda: Pooled(bags()),
    "shared, mean": lambda: Pooled(bags(pooling=PoolingType.MEAN)),
    "weighted": lambda: Pooled(bags(weighted=True)),
    "DLRM": lambda: DLRM(bags(), DENSE, [8, DIM], [8, 1]),
    "DLRM_DCN": lambda: DLRM_DCN(
        bags(), DENSE, [8, DIM], [8, 1], dcn_num_layers=2, dcn_low_rank_dim=4
    ),
    "EmbeddingCollection": Sequences,
    "fused, sum": lambda: Pooled(fused(bags())),
    "fused, mean": lambda: Pooled(fused(bags(pooling=PoolingType.MEAN))),
    "fused, weighted": lambda: Pooled(fused(bags(weighted=True), is_weighted=True)),
}


def example(batch: int, weighted: bool) -> tuple[Tensor, KeyedJaggedTensor]:
    """Random arguments."""
    lengths = torch.randint(0, 5, (3 * batch,))
    ids = torch.randint(0, ROWS, (int(lengths.sum()),))
    weights = torch.rand(len(ids)) if weighted else None
    keys = ["f1", "f2", "f3"]
    features = KeyedJaggedTensor(keys=keys, values=ids, lengths=lengths, weights=weights)
    return torch.rand(batch, DENSE), features


def by_name(dense: Tensor, features: KeyedJaggedTensor, names: list[str]) -> dict[str, Any]:
    """The arguments as a client of the gateway gives them."""
    found = {names[0]: dense}
    for key in features.keys():  # noqa: SIM118 - it is no dictionary
        found |= {key: features[key].values(), f"{key}.lengths": features[key].lengths()}
        if features.weights_or_none() is not None:
            found[f"{key}.weights"] = features[key].weights()
    return {name: to_numpy(found[name]) for name in names}


def off_by(name: str) -> float:
    """The largest difference, as a share of the largest prediction."""
    torch.manual_seed(0)
    model, weighted = MODELS[name]().eval(), "weighted" in name
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        erless.export(model, example(4, weighted), Path(folder) / "m", small_rows=0)
        bundle = WholeGraph(Path(folder) / "m")
        names = [tensor.name for tensor in bundle.model.inputs]
        for batch in (1, 5, 300):
            inputs = example(batch, weighted)
            expected = model(*inputs).detach()
            (found,) = bundle.predict(by_name(*inputs, names)).values()
            difference = (from_numpy(found) - expected).abs().max() / expected.abs().max()
            worst = max(worst, float(difference))
    return worst


def refusal() -> str:
    """Why an fbgemm module of two features is refused; nothing where it is taken."""
    lookup = Lookup(features=2)
    ids, offsets = torch.randint(0, ROWS, (12,)), torch.arange(0, 13, 3)
    with tempfile.TemporaryDirectory() as folder:
        try:
            erless.export(lookup.eval(), (ids, offsets), Path(folder) / "m")
        except ModelError as error:
            return str(error)
    return ""


def lookup_off_by(mode: PoolingMode) -> float:
    """`off_by` of fbgemm's own module, of one feature."""
    torch.manual_seed(0)
    model = Lookup(mode=mode).eval()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        erless.export(model, offsets_of(4), Path(folder) / "m", small_rows=0)
        bundle = WholeGraph(Path(folder) / "m")
        names = [tensor.name for tensor in bundle.model.inputs]
        for batch in (1, 5, 300):
            inputs = offsets_of(batch)
            expected = model(*inputs).detach()
            given = dict(zip(names, map(to_numpy, inputs), strict=True))
            (found,) = bundle.predict(given).values()
            difference = (from_numpy(found) - expected).abs().max() / expected.abs().max()
            worst = max(worst, float(difference))
    return worst


def main() -> int:
    """Export each; 1 where one differs, or is taken that should not be."""
    results = {name: off_by(name) for name in MODELS}
    for mode in (PoolingMode.SUM, PoolingMode.MEAN):
        results[f"fbgemm, {mode.name.lower()}"] = lookup_off_by(mode)
    for name, worst in results.items():
        print(f"{name:20} off by {worst:.0e}")
    reason = refusal()
    print(f"{'two features':20} {reason or 'taken'}")
    return int(any(worst > 1e-5 for worst in results.values()) or SEVERAL not in reason)


if __name__ == "__main__":
    sys.exit(main())
