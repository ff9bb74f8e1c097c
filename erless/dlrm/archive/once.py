"""Layers over joined vectors of which some come once per request: their share is computed once.

    linear(cat([u, i], 1), W, b)  →  addmm(linear(u[:1], W_u, b), i, W_iᵀ)

`u` has one sample that stands for all of them, W_u and W_i are the columns of W that meet it and
the others. The sum is the same up to its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import groupby

import torch
from torch.fx import GraphModule, Node

__all__ = ["compute_once"]

_ATEN = torch.ops.aten


def compute_once(module: GraphModule, once: Set[int], widths: Mapping[int, int]) -> set[int]:
    """Split the layers of `module` that join what comes once with what does not.

    Args:
        module: is changed.
        once: numbers of its inputs (B, width) of equal samples.
        widths: number → width of all inputs (B, width) that are known to be so.

    Returns:
        those of `once` of which it now takes one sample, (1, width).
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    known = {inputs[number]: width for number, width in widths.items()}
    shared = {inputs[number] for number in once}
    layers = [node for node in module.graph.nodes if node.target is _ATEN.linear.default]
    for layer in layers:
        _split(module, layer, known, shared)
    module.graph.eliminate_dead_code()
    single = {number for number in once if _only_first(inputs[number])}
    for number in single:
        for first in list(inputs[number].users):
            first.replace_all_uses_with(inputs[number])
            module.graph.erase_node(first)
    module.recompile()
    return single


def _only_first(node: Node) -> bool:
    """Whether nothing but the first sample of an input is used."""
    return bool(node.users) and all(
        user.target is _ATEN.slice.Tensor and user.args[1:] == (0, 0, 1) for user in node.users
    )


def _split(module: GraphModule, layer: Node, known: Mapping[Node, int], shared: set[Node]) -> None:
    """Split `layer` where it is a join of both kinds."""
    join, weight, bias = (*layer.args, None)[:3]
    if not (isinstance(join, Node) and join.target is _ATEN.cat.default):
        return
    if not (isinstance(weight, Node) and weight.op == "get_attr"):
        return
    parts = list(join.args[0])  # type: ignore[arg-type]
    dim = join.args[1] if len(join.args) > 1 else 0
    if dim not in (1, -1) or not shared.intersection(parts) or shared.issuperset(parts):
        return
    matrix = getattr(module, str(weight.target))
    columns = _columns(parts, known, matrix.shape[1])
    if columns is None:
        return
    graph = module.graph
    with graph.inserting_before(layer):
        sides = []
        for own in (True, False):
            picked = [part for part in parts if (part in shared) is own]
            places = torch.cat([columns[part] for part in parts if (part in shared) is own])
            name = f"{weight.target}_{'once' if own else 'each'}_{layer.name}"
            module.register_buffer(name, matrix[:, places].contiguous())
            if own:
                picked = [graph.call_function(_ATEN.slice.Tensor, (p, 0, 0, 1)) for p in picked]
            sides.append((graph.call_function(_ATEN.cat.default, (picked, 1)), name))
        (user, user_name), (item, item_name) = sides
        first = graph.call_function(_ATEN.linear.default, (user, graph.get_attr(user_name), bias))
        turned = graph.call_function(_ATEN.t.default, (graph.get_attr(item_name),))
        whole = graph.call_function(_ATEN.addmm.default, (first, item, turned))
    layer.replace_all_uses_with(whole)


def _columns(
    parts: list[Node], known: Mapping[Node, int], total: int
) -> dict[Node, torch.Tensor] | None:
    """The columns of each part; None where they are not known, or a part stands twice.

    The width of one run of parts may be unknown: it is what the others leave.
    """
    if len(set(parts)) != len(parts):
        return None
    runs = [(there, list(run)) for there, run in groupby(parts, key=lambda part: part in known)]
    if sum(not there for there, _ in runs) > 1:
        return None
    rest = total - sum(known.get(part, 0) for part in parts)
    columns: dict[Node, torch.Tensor] = {}
    at = 0
    for there, run in runs:
        if not there:
            columns |= dict.fromkeys(run, torch.empty(0, dtype=torch.int64))
            columns[run[0]] = torch.arange(at, at + rest)
            at += rest
            continue
        for part in run:
            columns[part] = torch.arange(at, at + known[part])
            at += known[part]
    return columns
