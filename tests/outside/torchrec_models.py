"""Models of the real torchrec, with what they predict: runs where torchrec is installed.

    python tests/outside/torchrec_models.py FOLDER

Writes `NAME.pt`, what `torch.save` makes of the model's state, and `NAME.npz`, a query with the
model's own predictions. Nothing of erless is imported: `torchrec_imports.py` reads what lies here.
"""

from __future__ import annotations

import copy
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torchrec
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.multiprocessing.spawn import spawn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.inference.modules import quantize_embeddings
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

BATCH, DENSE, DIM = 1024, 5, 8
# In no order of name, size or feature: a reader that sorts is found out.
TABLES = {"zebra": 70, "ant": 300, "mole": 11}
SHARED = {"ant": ["first", "second"], "zebra": ["z"], "mole": ["m"]}
SUM, MEAN = PoolingType.SUM, PoolingType.MEAN


def collection(
    poolings: dict[str, PoolingType],
    weighted: bool = False,
    features: dict[str, list[str]] | None = None,
) -> EmbeddingBagCollection:
    """Tables as in `TABLES`, each of one feature unless `features` says otherwise."""
    configs = [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=rows,
            embedding_dim=DIM,
            feature_names=(features or {}).get(name, [f"of_{name}"]),
            pooling=poolings.get(name, SUM),
        )
        for name, rows in TABLES.items()
    ]
    return EmbeddingBagCollection(tables=configs, is_weighted=weighted)


def dlrm(bags: EmbeddingBagCollection) -> nn.Module:
    """torchrec's DLRM over `bags`."""
    model: nn.Module = DLRM(bags, DENSE, [16, DIM], [12, 6, 1])
    return model


def projection(bags: EmbeddingBagCollection) -> nn.Module:
    """torchrec's DLRM with learned projections before its interaction."""
    model: nn.Module = DLRM_Projection(
        bags,
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[16, DIM],
        over_arch_layer_sizes=[12, 6, 1],
        interaction_branch1_layer_sizes=[2 * DIM],
        interaction_branch2_layer_sizes=[2 * DIM],
    )
    return model


def crossing(bags: EmbeddingBagCollection) -> nn.Module:
    """torchrec's DLRM_DCN, the one of MLPerf."""
    model: nn.Module = DLRM_DCN(
        bags,
        dense_in_features=DENSE,
        dense_arch_layer_sizes=[16, DIM],
        over_arch_layer_sizes=[12, 6, 1],
        dcn_num_layers=2,
        dcn_low_rank_dim=4,
    )
    return model


def query(model: nn.Module, bags: EmbeddingBagCollection) -> dict[str, np.ndarray]:
    """A query in the order of the model's features, with what the model predicts."""
    configs = bags.embedding_bag_configs()
    features = [(name, config) for config in configs for name in config.feature_names]
    generator = np.random.default_rng(1)
    lengths = generator.integers(0, 5, (len(features), BATCH)).astype(np.int32)
    values = np.concatenate(
        [
            generator.integers(0, config.num_embeddings, of_bags.sum())
            for (_, config), of_bags in zip(features, lengths, strict=True)
        ]
    )
    dense = generator.standard_normal((BATCH, DENSE)).astype(np.float32)
    arrays: dict[str, np.ndarray] = {
        "dense": dense,
        "lengths": lengths,
        "values": values.astype(np.int64),
    }
    if bags.is_weighted():
        arrays["weights"] = generator.standard_normal(len(values)).astype(np.float32)
    weights = torch.from_numpy(arrays["weights"]) if bags.is_weighted() else None
    keyed = KeyedJaggedTensor(
        keys=[name for name, _ in features],
        values=torch.from_numpy(arrays["values"]),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        weights=weights,
    )
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(dense), keyed)
    predictions: Tensor = torch.sigmoid(logits)
    shared = any(len(config.feature_names) > 1 for config in configs)
    tables = np.array([name if shared else config.name for name, config in features])
    return {**arrays, "tables": tables, "predictions": predictions.numpy().reshape(-1)}


Build = Callable[[EmbeddingBagCollection], nn.Module]

MODELS: dict[str, tuple[Build, Callable[[], EmbeddingBagCollection]]] = {
    "sum": (dlrm, lambda: collection({})),
    "mean": (dlrm, lambda: collection(dict.fromkeys(TABLES, MEAN))),
    "mixed": (dlrm, lambda: collection({"ant": MEAN})),
    "weighted": (dlrm, lambda: collection({}, weighted=True)),
    "shared": (dlrm, lambda: collection({}, features=SHARED)),
    "projection": (projection, lambda: collection({})),
    "crossing": (crossing, lambda: collection({"mole": MEAN}, features=SHARED)),
}
PRECISIONS = {"int8": torch.qint8, "int4": torch.quint4x2, "fp16": torch.half}


def main() -> None:
    """Write every model into the folder that is named."""
    folder = Path(sys.argv[1])
    print(f"torch {torch.__version__}, torchrec {torchrec.__version__}")
    for number, (name, (build, make)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        bags = make()
        model = build(bags)
        np.savez(folder / f"{name}.npz", allow_pickle=False, **query(model, bags))
        torch.save(model.state_dict(), folder / f"{name}.pt")
        if name == "sum":
            save_otherwise(model, folder)
        if name == "shared":
            save_quantized(model, bags, folder)
    spawn(save_parallel, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    bags = collection({}, features=SHARED)
    model = dlrm(bags)
    state = {"model": model.state_dict()}
    state_dict_loader.load(state, checkpoint_id=folder / "parallel_folder")
    np.savez(folder / "parallel.npz", allow_pickle=False, **query(model, bags))


def save_quantized(model: nn.Module, bags: EmbeddingBagCollection, folder: Path) -> None:
    """The model with tables of fewer bits, and what it predicts so."""
    for name, dtype in PRECISIONS.items():
        quantized = quantize_embeddings(copy.deepcopy(model), dtype, inplace=True)
        np.savez(folder / f"{name}.npz", allow_pickle=False, **query(quantized, bags))
        state = quantized.state_dict()
        torch.save(
            OrderedDict((key, plain(tensor)) for key, tensor in state.items()),
            folder / f"{name}.pt",
        )


def plain(tensor: Tensor) -> Tensor:
    """The bytes of a tensor of nibbles, which torch.save does not take; others as they are."""
    return tensor.view(torch.uint8) if tensor.dtype is torch.uint8 else tensor


def save_parallel(rank: int, folder: Path) -> None:
    """The model with its tables cut by rows, by columns and not at all, of two trainers."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/parallel", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    bags = collection({}, features=SHARED)
    sharder = EmbeddingBagCollectionSharder()
    cuts = {"zebra": row_wise(), "ant": column_wise(ranks=[0, 1]), "mole": table_wise(rank=1)}
    plan = construct_module_sharding_plan(
        bags, cuts, sharder, local_size=2, world_size=2, device_type="cpu"
    )
    parallel = DistributedModelParallel(
        dlrm(bags),
        device=torch.device("cpu"),
        plan=ShardingPlan({"sparse_arch.embedding_bag_collection": plan}),
        sharders=[sharder],
    )
    state = {"model": parallel.state_dict(), "epoch": 1, "optimizer": {"step": torch.ones(1)}}
    state_dict_saver.save(state, checkpoint_id=folder / "parallel_folder")
    torch.distributed.destroy_process_group()


def save_otherwise(model: nn.Module, folder: Path) -> None:
    """The same model as other scripts save it."""
    state = model.state_dict()
    torch.save(DLRMTrain(model).state_dict(), folder / "train.pt")
    torch.save({"model": state, "epoch": 1}, folder / "script.pt")
    more = {"feature_processor.of_ant.weight": torch.ones(4)}
    torch.save(OrderedDict(state) | more, folder / "unused.pt")
    spawn(save_shards, (state, folder), nprocs=2)  # type: ignore[no-untyped-call]
    dcp_to_torch_save(os.fspath(folder / "distributed"), folder / "merged.pt")


def save_shards(rank: int, state: dict[str, Tensor], folder: Path) -> None:
    """Save what one of two trainers holds: rank 0 the last tables and all layers."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    own = {name: tensor for name, tensor in state.items() if ("zebra" in name) == bool(rank)}
    state_dict_saver.save(own, checkpoint_id=folder / "distributed")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
