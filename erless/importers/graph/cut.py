"""Cut a program at its lookups: what is computed before them, and what behind."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.fx import Node

from erless.dlrm.archive.operators import OPERATORS
from erless.errors import ModelError
from erless.importers.graph.lookups import TableLookup, module_of
from erless.importers.graph.once import comes_once
from erless.importers.graph.program import Program, readable, slice_of
from erless.specs.features import FeatureSpec

__all__ = ["GraphCut", "cut_program"]


@dataclass(frozen=True, slots=True)
class GraphCut:
    """Where a program is cut.

    Args:
        tables: name → placeholder.
        features: each with its lookup.
        values: name → node, of all that front, lookups and tower hand to each other.
        front_takes: names of inputs.
        front_gives: names of what the front computes.
        request_front_takes, request_front_gives: likewise of what comes once per request.
        takes: names of what the tower takes.
        sizes: sizes of inputs that the tower reads off its vectors: see `part_of`.
    """

    tables: dict[str, Node]
    features: tuple[tuple[FeatureSpec, TableLookup], ...]
    values: dict[str, Node]
    front_takes: tuple[str, ...]
    front_gives: tuple[str, ...]
    request_front_takes: tuple[str, ...]
    request_front_gives: tuple[str, ...]
    takes: tuple[str, ...]
    sizes: dict[Node, tuple[Node, int]]


def cut_program(program: Program, lookups: Sequence[TableLookup]) -> GraphCut:
    """Divide `program` at `lookups`.

    Raises:
        ModelError: there are none, or one's ids depend on another's vectors.
    """
    nodes = {lookup.node: lookup for lookup in lookups}
    _check_order(nodes)
    names = _Names(program.inputs)
    tables = {
        names.table(program.name_of(lookup.table)): lookup.table
        for lookup in {each.table: each for each in lookups}.values()
    }
    fronts = _Fronts(program, names)
    features = tuple(
        (_feature(program, lookup, tables, lookups, fronts), lookup) for lookup in lookups
    )
    vectors = {feature.name: lookup.node for feature, lookup in features}
    values = program.inputs | fronts.gives["sample"] | fronts.gives["request"] | vectors
    results = list(program.outputs.values())
    read = slice_of(results, frozenset(nodes))
    sizes = _sizes(program, [node for node in vectors.values() if node in read])
    tower = slice_of(results, frozenset((*nodes, *sizes)))
    tower |= {place[0] for size, place in sizes.items() if size in tower}
    front, request_front = fronts.slice("sample"), fronts.slice("request")
    _check_operators([*front, *request_front, *(tower - set(nodes))])
    _tell_kept(program, tables, tower)

    def taken(part: set[Node], given: Mapping[str, Node]) -> tuple[str, ...]:
        return tuple(name for name, node in given.items() if node in part)

    return GraphCut(
        tables=tables,
        features=features,
        values=values,
        front_takes=taken(front, program.inputs),
        front_gives=tuple(fronts.gives["sample"]),
        request_front_takes=taken(request_front, program.inputs),
        request_front_gives=tuple(fronts.gives["request"]),
        takes=(*taken(tower, program.inputs), *taken(tower, vectors)),
        sizes={size: place for size, place in sizes.items() if size in tower and place[0] in tower},
    )


class _Fronts:
    """What is computed before the lookups, for each sample and once per request."""

    def __init__(self, program: Program, names: _Names) -> None:
        self.gives: dict[str, dict[str, Node]] = {"sample": {}, "request": {}}
        self.unique = names.unique
        self._inputs = {node: name for name, node in program.inputs.items()}
        self._given: dict[tuple[str, Node], str] = {}

    def value(self, per: str, node: Node | None, name: str) -> str | None:
        """The name of a feature's ids, offsets, lengths or weights; `name` where it has none."""
        if node is None or node in self._inputs:
            return None if node is None else self._inputs[node]
        if (per, node) not in self._given:
            given = self.unique(name)
            self._given[per, node] = given
            self.gives[per][given] = node
        return self._given[per, node]

    def slice(self, per: str) -> set[Node]:
        """The nodes that compute what is given."""
        return slice_of(list(self.gives[per].values()), frozenset())


def _feature(
    program: Program,
    lookup: TableLookup,
    tables: Mapping[str, Node],
    lookups: Sequence[TableLookup],
    fronts: _Fronts,
) -> FeatureSpec:
    """The feature that `lookup` reads for."""
    table = next(name for name, node in tables.items() if node is lookup.table)
    shared = table in program.inputs or sum(each.table is lookup.table for each in lookups) > 1
    source = next((name for name, node in program.inputs.items() if node is lookup.ids), "lookup")
    name = fronts.unique(f"{table}.{source}" if shared else table)
    per: Literal["sample", "request"] = "request" if comes_once(program, lookup) else "sample"
    return FeatureSpec(
        name=name,
        table=table,
        pooling=lookup.pooling,
        padding_idx=lookup.padding_idx,
        per=per,
        ids=fronts.value(per, lookup.ids, f"{name}.ids"),
        offsets=fronts.value(per, lookup.offsets, f"{name}.offsets"),
        weights=fronts.value(per, lookup.weights, f"{name}.weights"),
        lengths=fronts.value(per, lookup.lengths, f"{name}.lengths"),
    )


def _tell_kept(program: Program, tables: Mapping[str, Node], tower: set[Node]) -> None:
    """Warn of tables that the tower computes with as a whole: they are held twice."""
    for name, node in tables.items():
        if node in tower:
            size = program.weight(node).numel() * 4
            user = next(user for user in node.users if user in tower)
            warnings.warn(
                f"table {name} ({size / 1e6:,.1f} MB) is kept in the tower too: "
                f"{module_of(user)} computes with all of its rows",
                stacklevel=4,
            )


def _check_operators(nodes: Iterable[Node]) -> None:
    """Refuse what no front or tower computes."""
    for node in nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            name = str(node.target).removeprefix("aten.")
            if name not in OPERATORS:
                raise ModelError(
                    f"{module_of(node)} computes with operator {name}, which is not on erless' list"
                )


def _check_order(nodes: dict[Node, TableLookup]) -> None:
    if not nodes:
        raise ModelError("the model looks up no table that is large enough to be served apart")
    for lookup in nodes.values():
        before = [node for node in slice_of(lookup.sources, frozenset()) if node in nodes]
        if before:
            raise ModelError(
                f"ids of {module_of(lookup.node)} depend on vectors of {module_of(before[0])}: "
                "erless looks all rows up at once"
            )


def _sizes(program: Program, vectors: Iterable[Node]) -> dict[Node, tuple[Node, int]]:
    """Sizes of inputs that vectors have too: so the tower need not take those inputs."""
    places: dict[str, tuple[Node, int]] = {}
    for node in vectors:
        for dimension, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                places.setdefault(str(size.node.expr), (node, dimension))
    return {
        node: places[str(node.meta["val"].node.expr)]
        for node in program.exported.graph.nodes
        if node.target is torch.ops.aten.sym_size.int
        and isinstance(node.meta["val"], torch.SymInt)
        and str(node.meta["val"].node.expr) in places
    }


class _Names:
    """Names that are each given once."""

    def __init__(self, taken: object) -> None:
        self._taken = set(taken)  # type: ignore[call-overload]

    def table(self, weight: str) -> str:
        return readable(weight.removesuffix(".weight"))

    def unique(self, name: str) -> str:
        name = readable(name)
        count, result = 1, name
        while result in self._taken:
            count += 1
            result = f"{name[:95]}_{count}"
        self._taken.add(result)
        return result
