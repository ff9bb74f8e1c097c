"""Know again the common ways in which offsets of bags are computed, so that no front computes them.

`EmbeddingBag` makes offsets 0, L, 2L, … of ids (bags, L); jagged ids have lengths, of which people
take the cumulative sum.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.fx import Node

__all__ = ["lengths_behind", "rectangle_behind"]

_aten = torch.ops.aten


def rectangle_behind(
    ids: Node, offsets: Node, weights: Node | None
) -> tuple[Node, Node | None] | None:
    """Ids and weights, (bags, L), of which flat `ids` and `weights` are the view; else None."""
    square = _flattened(ids)
    if square is None or offsets.target is not _aten.arange.start_step:
        return None
    begin, end, step = offsets.args[:3]
    width = square.meta["val"].shape[1]
    if begin != 0 or _size(step) != str(width) or _size(end) != str(ids.meta["val"].shape[0]):
        return None
    if weights is None:
        return square, None
    squared = _flattened(weights)
    return None if squared is None else (square, squared)


def lengths_behind(offsets: Node) -> Node | None:
    """The lengths, (bags,), of which `offsets` are zero and the cumulative sum; else None."""
    if offsets.target is not _aten.cat.default:
        return None
    pieces = cast("list[Node]", offsets.args[0])
    if len(pieces) != 2 or not _is_zero(pieces[0]):
        return None
    total = pieces[1]
    while total.target is _aten._to_copy.default:
        total = cast(Node, total.args[0])
    if total.target is not _aten.cumsum.default:
        return None
    lengths = cast(Node, total.args[0])
    return lengths if lengths.meta["val"].dim() == 1 else None


def _is_zero(node: Node) -> bool:
    """Whether it is one zero."""
    if node.target is _aten.zeros.default:
        return node.args[0] == [1]
    if node.target is _aten.new_zeros.default:
        return node.args[1] == [1]
    return node.target is _aten.full.default and node.args[:2] == ([1], 0)


def _flattened(node: Node) -> Node | None:
    """What has two dimensions and is viewed as one."""
    if node.target not in (_aten.view.default, _aten.reshape.default):
        return None
    source = cast(Node, node.args[0])
    value: Any = source.meta["val"]
    return source if value.dim() == 2 and node.meta["val"].dim() == 1 else None


def _size(argument: Any) -> str:
    return str(argument.meta["val"] if isinstance(argument, Node) else argument)
