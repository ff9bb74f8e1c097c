"""Bring a graph into a form in which equal values are one node.

Nothing in a decomposed program happens in place, so a call that only hands its argument on may be
left out, and two equal calls may be one. Copies stay: they can change how a tensor lies in memory,
which views behind them rely on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from erless.importers.graph.program import Program

__all__ = ["simplify"]

_aten = torch.ops.aten
_HANDS_ON = {
    _aten.alias.default,
    _aten.detach.default,
    _aten._to_copy.default,
    _aten.to.dtype,
    _aten.to.device,
    _aten.to.other,
    _aten.slice.Tensor,
}


def simplify(program: Program) -> None:
    """Let equal weights, and equal calls, of `program` be one node each."""
    _merge_weights(program)
    first: dict[Any, Node] = {}
    for node in list(program.exported.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _HANDS_ON and _is_same(node, node.args[0]):
            program.replace(node, node.args[0])
            continue
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        if key in first:
            program.replace(node, first[key])
        else:
            first[key] = node


def _is_same(node: Node, argument: Any) -> bool:
    """Whether a call that can change dtype, place or size changes none."""
    if not isinstance(argument, Node) or node.kwargs.get("memory_format") is not None:
        return False
    result, source = node.meta["val"], argument.meta["val"]
    if result.dtype != source.dtype or result.device != source.device:
        return False
    if len(result.shape) != len(source.shape):
        return False
    return all(
        str(size) == str(source_size)
        for size, source_size in zip(result.shape, source.shape, strict=True)
    )


def _merge_weights(program: Program) -> None:
    """A weight that has two names is one."""
    first: dict[Any, Node] = {}
    for node in program.weights:
        tensor = program.weight(node)
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        key = _place(tensor)
        if key in first:
            node.replace_all_uses_with(first[key])
        first.setdefault(key, node)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage().data_ptr()
    return (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
