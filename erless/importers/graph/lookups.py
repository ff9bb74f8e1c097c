"""Find where a graph reads rows of its tables."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import Graph, Node

from erless.errors import ModelError
from erless.importers.graph.bags import lengths_behind, rectangle_behind
from erless.importers.graph.program import Program, slice_of
from erless.specs.features import Pooling

__all__ = ["TableLookup", "find_lookups", "module_of"]

_aten = torch.ops.aten
_BAGS = (_aten.embedding_bag.padding_idx, _aten.embedding_bag.default, _aten._embedding_bag.default)
_ID_DTYPES = (torch.int64, torch.int32)
_POOLINGS = {0: Pooling.SUM, 1: Pooling.MEAN, 2: Pooling.MAX}


@dataclass(frozen=True, slots=True)
class TableLookup:
    """Rows of one table, read by one node of the graph.

    Args:
        node: its value are the vectors, float32.
        table: placeholder of the table.
        ids: its value are row ids.
        offsets: where each bag begins, and the end of the last: (bags + 1,).
        lengths: instead, how many ids each bag has: (bags,).
    """

    node: Node
    table: Node
    ids: Node
    pooling: Pooling
    offsets: Node | None = None
    weights: Node | None = None
    padding_idx: int | None = None
    lengths: Node | None = None

    @property
    def sources(self) -> tuple[Node, ...]:
        """The nodes whose values the lookup takes."""
        nodes = (self.ids, self.offsets, self.weights, self.lengths)
        return tuple(node for node in nodes if node is not None)


def module_of(node: Node) -> str:
    """Name and class of the module that a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "the model"
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return f"{path or 'the model'} ({kind.rpartition('.')[2]})"


def find_lookups(program: Program, small_rows: int) -> list[TableLookup]:
    """The bags, and the lookups into tables of at least `small_rows` rows, in the graph's order.

    Each is brought into the form that a feature has: offsets end with the number of ids, and
    vectors are float32.

    Raises:
        ModelError: a table is read in a way that no feature has.
    """
    lookups: dict[Any, TableLookup] = {}
    for node in list(program.exported.graph.nodes):
        lookup = _lookup(node)
        if lookup is None:
            continue
        if lookup.table not in program.weights:
            _check_table(program, lookup, small_rows)
            continue
        shape = lookup.table.meta["val"].shape
        cut = shape[0] >= small_rows or node.target in _BAGS  # of which a tower has none
        if len(shape) == 2 and shape[1] > 0 and cut:
            lookups[lookup.node] = _in_float32(program, lookup)
    return list(lookups.values())


def _check_table(program: Program, lookup: TableLookup, small_rows: int) -> None:
    """Refuse rows of a table that is computed from large tables, and from nothing else."""
    before = slice_of([lookup.table], frozenset())
    inputs = set(program.inputs.values())
    tables = [program.name_of(node) for node in before if _is_large(program, node, small_rows)]
    if tables and not before & inputs:
        source = f"a table that is computed from {', '.join(sorted(tables))}"
        if lookup.table.target is _aten.cat.default:
            source = f"{', '.join(sorted(tables))}, put together"
        raise ModelError(
            f"{module_of(lookup.node)} looks up rows of {source}: erless serves tables as they are"
        )


def _is_large(program: Program, node: Node, small_rows: int) -> bool:
    if node not in program.weights:
        return False
    shape = node.meta["val"].shape
    return len(shape) == 2 and shape[0] >= small_rows


def _in_float32(program: Program, lookup: TableLookup) -> TableLookup:
    """Vectors come as float32; the graph goes on in the table's own dtype."""
    value = lookup.node.meta["val"]
    if value.dtype == torch.float32:
        return lookup
    graph = lookup.node.graph
    lookup.node.meta["val"] = value.float()
    with graph.inserting_after(lookup.node):
        cast_back = call(graph, _aten._to_copy.default, lookup.node, dtype=value.dtype)
    program.replace(lookup.node, cast_back)
    return lookup


def _lookup(node: Node) -> TableLookup | None:
    if node.op != "call_function":
        return None
    if node.target is _aten.embedding.default:
        return TableLookup(node, _node(node, 0), _node(node, 1), Pooling.NONE)
    if node.target in _BAGS:
        return _bag(node)
    if node.target is _aten.index_select.default and node.args[1] == 0:
        return TableLookup(node, _node(node, 0), _node(node, 2), Pooling.NONE)
    if node.target is _aten.index.Tensor:
        return _indexed(node)
    return None


def _indexed(node: Node) -> TableLookup | None:
    """`table[ids]`, where ids are whole numbers."""
    indices = cast(Sequence[Node | None], node.args[1])
    ids = indices[0]
    if len(indices) != 1 or ids is None or ids.meta["val"].dtype not in _ID_DTYPES:
        return None
    return TableLookup(node, _node(node, 0), ids, Pooling.NONE)


def _bag(node: Node) -> TableLookup:
    arguments = _arguments(node)
    vectors = [user for user in node.users if user.target is operator.getitem]
    if len(vectors) != 1 or vectors[0].args[1] != 0:
        raise ModelError(f"{module_of(node)} uses more of an embedding bag than its vectors")
    weights = arguments["per_sample_weights"]
    padding = arguments.get("padding_idx")
    rows = arguments["weight"].meta["val"].shape[0]
    if padding is not None and padding < 0:
        padding = padding + rows if node.target is not _aten._embedding_bag.default else None
    ids, offsets, lengths = arguments["indices"], arguments["offsets"], None
    ends = arguments["include_last_offset"]
    square = None if ends else rectangle_behind(ids, offsets, weights)
    if square is not None:
        (ids, weights), offsets = square, None
    elif not ends:
        offsets = _with_end(node, ids, offsets)
    else:
        lengths = lengths_behind(offsets)
        offsets = offsets if lengths is None else None
    return TableLookup(
        vectors[0],
        arguments["weight"],
        ids,
        _POOLINGS[arguments["mode"]] if weights is None else Pooling.WEIGHTED_SUM,
        offsets,
        weights,
        padding,
        lengths,
    )


def _with_end(node: Node, ids: Node, offsets: Node) -> Node:
    """`offsets` and the number of ids behind them."""
    graph = node.graph
    with graph.inserting_before(node):
        count = call(graph, _aten.sym_size.int, ids, 0)
        dtype = offsets.meta["val"].dtype
        end = call(graph, _aten.full.default, [1], count, dtype=dtype)
        return call(graph, _aten.cat.default, [offsets, end])


def call(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Add a call whose result's shape and dtype are known."""
    node = graph.call_function(target, args, kwargs)
    values = torch.fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
    node.meta["val"] = target(*values[0], **values[1])
    return node


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by their names, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    by_name = dict(node.kwargs)
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args):
            by_name[argument.name] = node.args[place]
        elif argument.name not in by_name:
            by_name[argument.name] = argument.default_value
    return by_name


def _node(node: Node, place: int) -> Node:
    return cast(Node, node.args[place])
