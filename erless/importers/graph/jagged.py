"""torchrec's `KeyedJaggedTensor` among a model's arguments, as tensors by name.

Each key becomes inputs `KEY` (ids of all samples), `KEY.lengths` (samples,) and, where it has them,
`KEY.weights`. While the model is exported it gets a stand-in that hands out the keys' own tensors:
slicing them out of one tensor depends on values, which no graph may. Otherwise it gets a real one.
torchrec is never imported here; the classes are those of the example.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from erless.errors import ModelError
from erless.importers.graph.program import Example

__all__ = ["keys_as_inputs"]


@contextmanager
def keys_as_inputs(model: nn.Module, example: Example) -> Iterator[Example]:
    """Let `model` take a dictionary of tensors in place of each `KeyedJaggedTensor` of `example`.

    Yields:
        The example so.

    Raises:
        ModelError: one lies inside another argument, or its keys have samples of their own number.
    """
    args = {
        place: _dictionary(value) for place, value in enumerate(example.args) if _is_keyed(value)
    }
    kwargs = {
        name: _dictionary(value) for name, value in example.kwargs.items() if _is_keyed(value)
    }
    _refuse_nested(example)
    if not args and not kwargs:
        yield example
        return
    first = next(value for value in (*example.args, *example.kwargs.values()) if _is_keyed(value))
    jagged = type(first[first.keys()[0]])
    forward = model.forward

    @functools.wraps(forward)
    def adapted(*given: Any, **named: Any) -> Any:
        return forward(
            *(_keyed(type(first), jagged, v) if n in args else v for n, v in enumerate(given)),
            **{n: _keyed(type(first), jagged, v) if n in kwargs else v for n, v in named.items()},
        )

    padded, jagged.to_padded_dense = jagged.to_padded_dense, _to_padded_dense
    own = model.__dict__.get("forward")
    model.forward = adapted
    try:
        yield Example(
            tuple(args.get(n, value) for n, value in enumerate(example.args)),
            {**example.kwargs, **kwargs},
        )
    finally:
        jagged.to_padded_dense = padded
        if own is None:
            del model.forward
        else:
            model.forward = own


def _is_keyed(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ == "KeyedJaggedTensor" and kind.__module__.startswith("torchrec.")


def _refuse_nested(example: Example) -> None:
    leaves = pytree.tree_leaves((example.args, example.kwargs), is_leaf=_is_keyed)
    found = sum(map(_is_keyed, leaves))
    if found != sum(map(_is_keyed, (*example.args, *example.kwargs.values()))):
        raise ModelError("a KeyedJaggedTensor is an argument of forward itself, not a part of one")


def _dictionary(keyed: Any) -> dict[str, Tensor]:
    if keyed.variable_stride_per_key() or keyed.inverse_indices_or_none() is not None:
        raise ModelError("keys of a KeyedJaggedTensor have as many samples each, without inverse")
    found: dict[str, Tensor] = {}
    for key in keyed.keys():  # noqa: SIM118 - it is no dictionary
        part = keyed[key]
        found[key], found[f"{key}.lengths"] = part.values(), part.lengths()
        if part.weights_or_none() is not None:
            found[f"{key}.weights"] = part.weights()
    return found


def _keyed(kind: Any, jagged: Any, tensors: dict[str, Tensor]) -> Any:
    """A real one of `tensors`, or the stand-in while they are traced."""
    lengths = {
        name.removesuffix(".lengths"): tensor
        for name, tensor in tensors.items()
        if name.endswith(".lengths")
    }
    if any(isinstance(tensor, FakeTensor) for tensor in lengths.values()):
        return _Keys(
            {
                key: jagged(
                    values=tensors[key],
                    lengths=length,
                    offsets=torch.cat([length.new_zeros(1), length.cumsum(0)]),
                    weights=tensors.get(f"{key}.weights"),
                )
                for key, length in lengths.items()
            }
        )
    weights = [tensors[f"{key}.weights"] for key in lengths if f"{key}.weights" in tensors]
    return kind(
        keys=list(lengths),
        values=torch.cat([tensors[key] for key in lengths]),
        lengths=torch.cat(list(lengths.values())),
        weights=torch.cat(weights) if weights else None,
    )


class _Keys:
    """What torchrec's collections ask of a `KeyedJaggedTensor`."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self._parts = parts

    def keys(self) -> list[str]:
        return list(self._parts)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._parts)

    def __getitem__(self, key: str) -> Any:
        return self._parts[key]

    def inverse_indices_or_none(self) -> None:
        return None


def _to_padded_dense(
    jagged: Any, desired_length: int | None = None, padding_value: float = 0.0
) -> Tensor:
    """`JaggedTensor.to_padded_dense` in operators of every tower: (samples, length, …)."""
    lengths, values = jagged.lengths(), jagged.values()
    if desired_length is None:
        raise ModelError("to_padded_dense needs a desired_length: else its shape depends on values")
    offsets = lengths.cumsum(0) - lengths
    places = torch.arange(desired_length, device=lengths.device)
    pad = torch.full((1, *values.shape[1:]), padding_value, dtype=values.dtype)
    found = torch.cat([values, pad])
    rows = torch.where(
        places < lengths.unsqueeze(1), offsets.unsqueeze(1) + places, values.shape[0]
    )
    return found[rows]
