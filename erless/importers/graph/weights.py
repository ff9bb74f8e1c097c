"""Weights of a model that lie elsewhere: in a checkpoint that is mapped, or in tensors of a caller.

A model on the meta device has shapes alone. For the time of an export its parameters and buffers
are those of a checkpoint, mapped, so that tables go from file to file and never into memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from erless.errors import ModelError
from erless.importers.checkpoint import open_checkpoint
from erless.importers.lazy import LazyTensor

__all__ = ["Weights", "with_weights"]

Weights = str | os.PathLike[str] | Mapping[str, Tensor]


@contextmanager
def with_weights(model: nn.Module, weights: Weights | None) -> Iterator[None]:
    """Let `model` have `weights` meanwhile, and what it had afterwards.

    Args:
        weights: a checkpoint (see `open_checkpoint`), or tensors by the names of `state_dict()`.

    Raises:
        ModelError: a weight lies on the meta device and is not given, or has another shape.
        CheckpointError: the file is no checkpoint.
    """
    found = {} if weights is None else _opened(weights)
    places = list(_places(model))
    known = {name for name, *_ in places}
    strange = sorted(set(found) - known)
    if strange and known:
        raise ModelError(
            f"weights name {strange[0]}, which the model lacks: it has {', '.join(sorted(known))}"[
                :300
            ]
        )
    before: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    try:
        fitted: dict[int, Tensor] = {}  # tied weights are one, and stay so
        for name, _, _, old in places:
            if name in found:
                fitted.setdefault(id(old), _fitted(name, old, found[name]))
        for name, held, key, old in places:
            new = fitted.get(id(old))
            if new is not None:
                before.append((held, key, old))
                held[key] = new
            elif old.device.type == "meta":
                raise ModelError(
                    f"{name} lies on the meta device, so it has no values: give weights=, a "
                    "checkpoint or tensors by name"
                )
        yield
    finally:
        for held, key, old in before:
            held[key] = old


def _opened(weights: Weights) -> dict[str, Tensor]:
    if isinstance(weights, Mapping):
        return dict(weights)
    path = Path(weights)
    tensors = {}
    for name, stored in open_checkpoint(path).tensors.items():
        if isinstance(stored, LazyTensor):
            raise ModelError(
                f"{path}: {name} lies in pieces; save the state dict as one file "
                "(torch.save or safetensors)"
            )
        tensors[name] = stored
    return tensors


def _places(
    model: nn.Module,
) -> Iterator[tuple[str, dict[str, Tensor | None], str, Tensor]]:
    """Of each parameter and buffer: name, the dictionary and key that hold it, itself."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    yield f"{prefix}.{key}".lstrip("."), held, key, tensor


def _fitted(name: str, old: Tensor, new: Tensor) -> Tensor:
    if old.shape != new.shape:
        raise ModelError(f"{name} has shape {list(old.shape)}, given is {list(new.shape)}")
    return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
