"""Export models of the real torchrec by `erless.export`, and compare what they predict.

Runs in torchrec's own environment (see `torchrec_imports.py`), where erless is installed too:

    torchrec/bin/python -m tests.outside.torchrec_exports

Each model must predict as torchrec does, within 1e-5, on batches of 1, 5 and 300; a fused
collection, whose lookups are fbgemm's, must be refused by its name.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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
FUSED = "collection (FusedEmbeddingBagCollection) cannot be exported"


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
    model, weighted = MODELS[name]().eval(), name == "weighted"
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
    """Why a fused collection is refused; nothing where it is taken."""
    tables = [
        EmbeddingBagConfig(name=f"t{n}", embedding_dim=DIM, num_embeddings=ROWS, feature_names=[f])
        for n, f in enumerate(("f1", "f2", "f3"))
    ]
    collection = FusedEmbeddingBagCollection(
        tables=tables, optimizer_type=torch.optim.SGD, optimizer_kwargs={"lr": 0.1}
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            erless.export(Pooled(collection).eval(), example(4, False), Path(folder) / "m")
        except ModelError as error:
            return str(error)
    return ""


def main() -> int:
    """Export each; 1 where one differs, or is taken that should not be."""
    results = {name: off_by(name) for name in MODELS}
    for name, worst in results.items():
        print(f"{name:20} off by {worst:.0e}")
    reason = refusal()
    print(f"{'fused':20} {reason or 'taken'}")
    return int(any(worst > 1e-5 for worst in results.values()) or FUSED not in reason)


if __name__ == "__main__":
    sys.exit(main())
