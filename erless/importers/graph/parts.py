"""Make a part of a program a program of its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from erless.importers.graph.program import Program, slice_of

__all__ = ["part_of", "save_part"]


def part_of(
    program: Program,
    takes: Sequence[Node],
    gives: Sequence[Node],
    instead: Mapping[Node, tuple[Node, int]] | None = None,
) -> ExportedProgram:
    """The part of `program` that computes `gives` from `takes` and weights.

    Args:
        instead: sizes of inputs → the value of `takes` and its dimension that has the same size.
    """
    instead = instead or {}
    needed = slice_of(gives, frozenset((*takes, *instead)))
    graph = Graph()
    weights = [node for node in program.weights if node in needed]
    copies = {node: _placeholder(graph, node.name, node) for node in weights}
    specs, state, constants = _weight_specs(program, weights)
    for place, node in enumerate(takes):
        copies[node] = _placeholder(graph, f"value_{place}", node)
        specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(f"value_{place}"), None))
    for node in program.exported.graph.nodes:
        if node not in needed or node in copies:
            continue
        if node in instead:
            source, dimension = instead[node]
            copies[node] = graph.call_function(
                torch.ops.aten.sym_size.int, (copies[source], dimension)
            )
        else:
            copies[node] = graph.node_copy(node, lambda argument: copies[argument])
        copies[node].meta = {"val": node.meta["val"]}
    graph.output(tuple(copies[node] for node in gives))
    results = [TensorArgument(copies[node].name) for node in gives]
    return ExportedProgram(
        root=torch.nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(
            specs, [OutputSpec(OutputKind.USER_OUTPUT, result, None) for result in results]
        ),
        state_dict=state,
        range_constraints=program.exported.range_constraints,
        module_call_graph=[_call_entry(len(takes), results)],
        constants=constants,
    )


def _weight_specs(
    program: Program, weights: Sequence[Node]
) -> tuple[list[InputSpec], dict[str, Any], dict[str, Any]]:
    """Input specs of `weights`, and their tensors by name: those of the state, and constants."""
    originals = {
        spec.arg.name: spec
        for spec in program.exported.graph_signature.input_specs
        if isinstance(spec.arg, TensorArgument)
    }
    specs: list[InputSpec] = []
    state: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for node in weights:
        name, spec = program.weights[node], originals[node.name]
        specs.append(InputSpec(spec.kind, TensorArgument(node.name), name, spec.persistent))
        tensors = constants if _is_constant(spec) else state
        tensors[name] = program.weight(node)
    return specs, state, constants


def save_part(part: ExportedProgram, path: Path) -> None:
    """Write `part` as an archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own functions
        torch.export.save(part, path)


def _placeholder(graph: Graph, name: str, node: Node) -> Node:
    copy = graph.placeholder(name)
    copy.meta = {"val": node.meta["val"]}
    return copy


def _is_constant(spec: InputSpec) -> bool:
    return spec.kind is InputKind.CONSTANT_TENSOR or (
        spec.kind is InputKind.BUFFER and spec.persistent is False
    )


def _call_entry(takes: int, results: list[TensorArgument]) -> ModuleCallEntry:
    """How arguments and results nest: not at all."""
    names = [f"value_{place}" for place in range(takes)]
    _, inputs = pytree.tree_flatten((tuple(names), {}))
    _, outputs = pytree.tree_flatten(tuple(result.name for result in results))
    signature = ModuleCallSignature(
        inputs=[TensorArgument(name) for name in names],
        outputs=list(results),
        in_spec=inputs,
        out_spec=outputs,
        forward_arg_names=names,
    )
    return ModuleCallEntry("", signature)
