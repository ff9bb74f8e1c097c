"""Cut a program at its lookups: what is computed before them, and what behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from erless.errors import ModelError
from erless.importers.graph.lookups import Lookup, module_of
from erless.importers.graph.parts import slice_of
from erless.importers.graph.program import Program, readable
from erless.specs.features import FeatureSpec

__all__ = ["Cut", "cut_program"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a program is cut.

    Args:
        tables: name → placeholder.
        features: each with its lookup.
        values: name → node, of all that front, lookups and tower hand to each other.
        front_takes: names of inputs.
        front_gives: names of what the front computes.
        takes: names of what the tower takes.
        sizes: sizes of inputs that the tower reads off its vectors: see `part_of`.
    """

    tables: dict[str, Node]
    features: tuple[tuple[FeatureSpec, Lookup], ...]
    values: dict[str, Node]
    front_takes: tuple[str, ...]
    front_gives: tuple[str, ...]
    takes: tuple[str, ...]
    sizes: dict[Node, tuple[Node, int]]


def cut_program(program: Program, lookups: Sequence[Lookup]) -> Cut:
    """Divide `program` at `lookups`.

    Raises:
        ModelError: there are none, or one's ids depend on another's vectors.
    """
    nodes = {lookup.node: lookup for lookup in lookups}
    _check_order(nodes)
    names = _Names(program.inputs)
    tables = {
        names.table(program.weights[lookup.table]): lookup.table
        for lookup in {each.table: each for each in lookups}.values()
    }
    values = dict(program.inputs)
    named = {node: name for name, node in program.inputs.items()}
    gives: list[str] = []

    def value(node: Node | None, name: str) -> str | None:
        if node is None:
            return None
        if node not in named:
            named[node] = names.unique(name)
            values[named[node]] = node
            gives.append(named[node])
        return named[node]

    features = []
    for lookup in lookups:
        table = next(name for name, node in tables.items() if node is lookup.table)
        taken = table in program.inputs
        shared = taken or sum(each.table is lookup.table for each in lookups) > 1
        source = named.get(lookup.ids)
        name = names.unique(f"{table}.{source or 'lookup'}" if shared else table)
        feature = FeatureSpec(
            name=name,
            table=table,
            pooling=lookup.pooling,
            padding_idx=lookup.padding_idx,
            ids=value(lookup.ids, f"{name}.ids"),
            offsets=value(lookup.offsets, f"{name}.offsets"),
            weights=value(lookup.weights, f"{name}.weights"),
        )
        features.append((feature, lookup))
    vectors = {feature.name: lookup.node for feature, lookup in features}
    values |= vectors
    sizes = _sizes(program, vectors.values())
    tower = slice_of(list(program.outputs.values()), frozenset((*nodes, *sizes)))
    front = slice_of([values[name] for name in gives], frozenset())
    return Cut(
        tables,
        tuple(features),
        values,
        tuple(name for name, node in program.inputs.items() if node in front),
        tuple(gives),
        (
            *(name for name, node in program.inputs.items() if node in tower),
            *(name for name, node in vectors.items() if node in tower),
        ),
        {size: place for size, place in sizes.items() if size in tower and place[0] in tower},
    )


def _check_order(nodes: dict[Node, Lookup]) -> None:
    if not nodes:
        raise ModelError("the model looks up no table that is large enough to be served apart")
    for lookup in nodes.values():
        before = [node for node in slice_of(lookup.sources, frozenset()) if node in nodes]
        if before:
            raise ModelError(
                f"ids of {module_of(lookup.node)} depend on vectors of {module_of(before[0])}: "
                "erless looks all rows up at once"
            )


def _sizes(program: Program, vectors: object) -> dict[Node, tuple[Node, int]]:
    """Sizes of inputs that vectors have too: so the tower need not take those inputs."""
    return {}


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
