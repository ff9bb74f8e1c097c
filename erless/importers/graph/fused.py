"""fbgemm's fused lookups, as torchrec's `FusedEmbeddingBagCollection` or a model itself has them.

Such a module hands all tables to one operator that no graph can be cut at. While the model is
exported each looks up every table for itself, by torch's own operators on the same memory; whoever
calls it otherwise gets fbgemm's answer. Neither package is imported here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from erless.errors import ModelError

__all__ = ["fused_as_plain"]

_MODES = ("sum", "mean")  # fbgemm's PoolingMode; behind them NONE
_TABLE = "plain_table"
Forward = Callable[..., Any]


@contextmanager
def fused_as_plain(model: nn.Module) -> Iterator[None]:
    """Let the fused modules of `model` look up table by table while they are traced.

    Raises:
        ModelError: a module has several features, whose ids lie in one tensor.
    """
    with ExitStack() as undo:
        for name, module in list(model.named_modules()):
            plain = _plain_forward(name, module, undo)
            if plain is not None:
                _replace(module, plain, undo)
        yield


def _plain_forward(name: str, module: nn.Module, undo: ExitStack) -> Forward | None:
    """What `module` does while it is traced; None: what it always does."""
    kind = type(module)
    package = kind.__module__.partition(".")[0]
    if package == "torchrec" and kind.__name__ == "FusedEmbeddingBagCollection":
        return functools.partial(_bags, module)
    if package == "fbgemm_gpu" and kind.__name__.endswith("TableBatchedEmbeddingBagsCodegen"):
        return _one_feature(name, module, undo)
    return None


def _replace(module: nn.Module, plain: Forward, undo: ExitStack) -> None:
    fused = module.forward

    @functools.wraps(fused)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (plain if _traced(*args, **kwargs) else fused)(*args, **kwargs)

    own = module.__dict__.get("forward")
    module.forward = forward
    undo.callback(module.__dict__.pop, "forward")
    if own is not None:
        undo.callback(setattr, module, "forward", own)


def _traced(first: Any, *_: Any, **__: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(first, FakeTensor)
    return any(isinstance(part.values(), FakeTensor) for part in first.to_dict().values())


def _bags(collection: Any, features: Any) -> Any:
    """As `FusedEmbeddingBagCollection.forward`: pooled vectors of all features, side by side."""
    parts, tables = features.to_dict(), collection.embedding_bag_configs()
    vectors = [
        functional.embedding_bag(
            parts[feature].values(),
            collection.embedding_bags[table.name].weight,
            parts[feature].offsets(),
            mode=table.pooling.value.lower(),
            per_sample_weights=parts[feature].weights() if collection.is_weighted() else None,
            include_last_offset=True,
        )
        for table in _grouped(tables, lambda table: (table.pooling, table.data_type))
        for feature in table.feature_names
    ]
    pairs = [(table, feature) for table in tables for feature in table.feature_names]
    names = [feature for _, feature in pairs]  # torchrec names shared ones with their table
    keyed = sys.modules[type(collection).__module__].KeyedTensor
    return keyed(
        keys=[f"{f}@{table.name}" if names.count(f) > 1 else f for table, f in pairs],
        values=torch.cat(vectors, dim=1),
        length_per_key=[table.embedding_dim for table, _ in pairs],
    )


def _grouped(tables: Sequence[Any], key: Callable[[Any], Any]) -> list[Any]:
    """`tables`, those of one key side by side, keys as they first come."""
    groups: dict[Any, list[Any]] = {}
    for table in tables:
        groups.setdefault(key(table), []).append(table)
    return [table for group in groups.values() for table in group]


def _one_feature(name: str, module: Any, undo: ExitStack) -> Forward:
    """As an fbgemm module with one feature: ids and offsets → pooled vectors, or one an id."""
    if len(module.feature_table_map) != 1:
        raise ModelError(
            f"{name or 'the model'} ({type(module).__name__}) has {len(module.feature_table_map)} "
            "features, whose ids lie in one tensor, which a graph cannot be cut at: give each a "
            "module, or use torchrec's FusedEmbeddingBagCollection"
        )
    (table,) = module.split_embedding_weights()
    module.register_parameter(_TABLE, nn.Parameter(table, requires_grad=False))
    undo.callback(delattr, module, _TABLE)

    def forward(
        indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, *_: Any
    ) -> Tensor:
        rows, mode = getattr(module, _TABLE), int(module.pooling_mode.value)
        if mode >= len(_MODES):
            return functional.embedding(indices, rows)
        return functional.embedding_bag(
            indices,
            rows,
            offsets.to(indices.dtype),
            mode=_MODES[mode],
            per_sample_weights=per_sample_weights,
            include_last_offset=True,
        )

    return forward
