"""The signature of a program: what goes in, what comes out, and what the graph's inputs stand for.

A graph takes one flat list of inputs: weights, constants and what the user gives. How the user's
own arguments nest is a tree that torch writes as JSON; of it only the leaves' order matters here,
and the keys of a dictionary of outputs, which name them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from erless.dlrm.archive.document import parse_json
from erless.dlrm.archive.expressions import (
    Constant,
    Expression,
    Operation,
    Symbol,
    parse_expression,
)
from erless.dlrm.archive.payload import DTYPES
from erless.dlrm.archive.schema import Argument, ExportedProgram, Graph, InputSpec
from erless.dlrm.archive.tensor_schema import SymBool, SymFloat, SymInt, TensorMeta
from erless.errors import ArtifactError

__all__ = ["Range", "Signature", "TensorValue", "read_signature"]

_DICTIONARIES = ("builtins.dict", "collections.OrderedDict")
_TREES = ("builtins.tuple", "builtins.list", *_DICTIONARIES)


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a size may take; None is without limit."""

    minimum: int
    maximum: int | None


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor that the user gives or gets.

    Args:
        name: the argument's name, or the output's key or place.
        node: the name that the graph knows it by.
    """

    name: str
    node: str
    dtype: torch.dtype
    shape: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a program in order.

    Args:
        inputs: the tensors that a caller gives. An argument that is a constant of the export
            (None, a number) is none of them.
        tensors: input of the graph → dotted name of the weight, buffer or constant behind it.
        buffers: inputs of the graph that are buffers of the module.
        ranges: symbol → the values that it may take.
    """

    inputs: tuple[TensorValue, ...]
    outputs: tuple[TensorValue, ...]
    tensors: dict[str, str]
    buffers: frozenset[str]
    ranges: dict[str, Range]

    def range_of(self, size: Expression) -> Range | None:
        """The values that `size` may take; None where it is computed from others."""
        match size:
            case Constant(value=value):
                return Range(int(value), int(value))
            case Symbol(name=name):
                return self.ranges.get(name, Range(0, None))
            case _:
                return None


def read_signature(program: ExportedProgram, where: str) -> Signature:
    """Check that inputs, outputs and their trees agree with the graph.

    Raises:
        ArtifactError: they do not, or something else than tensors goes in or comes out.
    """
    _check_expressions(program.graph_module.graph, where)
    reader = _Reader(program, where)
    inputs, tensors, buffers = reader.read_inputs()
    return Signature(inputs, reader.read_outputs(), tensors, buffers, reader.read_ranges())


class _Reader:
    def __init__(self, program: ExportedProgram, where: str) -> None:
        self._program, self._where = program, where
        self._graph = program.graph_module.graph
        self._signature = program.graph_module.signature
        self._call = program.graph_module.module_call_graph[0].signature

    def read_inputs(self) -> tuple[tuple[TensorValue, ...], dict[str, str], frozenset[str]]:
        specs = self._signature.input_specs
        if len(specs) != len(self._graph.inputs):
            raise self._error(f"{len(specs)} inputs are described, the graph takes others")
        user_names: list[str | None] = []
        tensors: dict[str, str] = {}
        buffers: set[str] = set()
        for spec, argument in zip(specs, self._graph.inputs, strict=True):
            self._read_input(spec, argument, user_names, tensors, buffers)
        names = [name for name in user_names if name is not None]
        if len({*names, *tensors}) != len(names) + len(tensors):
            raise self._error("two inputs of the graph have the same name")
        if self._call is not None:
            leaves = _leaves(self._call.in_spec, f"{self._where}: in_spec")
            if len(leaves) != len(user_names):
                raise self._error(f"{len(leaves)} arguments are described, the graph takes others")
        values = tuple(self._value(name, name) for name in names)
        return values, tensors, frozenset(buffers)

    def _read_input(
        self,
        spec: InputSpec,
        argument: Argument,
        user_names: list[str | None],
        tensors: dict[str, str],
        buffers: set[str],
    ) -> None:
        """Sort one input of the graph into what the user gives and what the archive holds."""
        if spec.constant_input is not None:
            user_names.append(None)
            return
        if spec.user_input is not None:
            if spec.user_input.arg.as_tensor is None:
                raise self._error(f"an argument is {spec.user_input.arg.kind}, not a tensor")
            name = spec.user_input.arg.as_tensor.name
            user_names.append(name)
        elif spec.parameter is not None:
            name = spec.parameter.arg.name
            tensors[name] = spec.parameter.parameter_name
        elif spec.buffer is not None:
            name = spec.buffer.arg.name
            tensors[name] = spec.buffer.buffer_name
            buffers.add(name)
        elif spec.tensor_constant is not None:
            name = spec.tensor_constant.arg.name
            tensors[name] = spec.tensor_constant.tensor_constant_name
        if argument.as_tensor is None or argument.as_tensor.name != name:
            raise self._error(f"input {name} is not the graph's input at its place")

    def read_outputs(self) -> tuple[TensorValue, ...]:
        specs = self._signature.output_specs
        changed = [spec.buffer_mutation for spec in specs if spec.buffer_mutation is not None]
        if changed:
            raise self._error(
                f"writes to its buffer {changed[0].buffer_name}: it was exported in training mode; "
                "call .eval() before torch.export.export"
            )
        nodes: list[str] = []
        for spec, argument in zip(specs, self._graph.outputs, strict=False):
            if spec.user_output is None or spec.user_output.arg.as_tensor is None:
                raise self._error("an output is no tensor")
            nodes.append(spec.user_output.arg.as_tensor.name)
            if argument.as_tensor is None or argument.as_tensor.name != nodes[-1]:
                raise self._error(f"output {nodes[-1]} is not the graph's output at its place")
        if not len(specs) == len(self._graph.outputs) == len(nodes):
            raise self._error(f"{len(specs)} outputs are described, the graph gives others")
        paths = [f"output_{place}" for place in range(len(nodes))]
        if self._call is not None:
            paths = _leaves(self._call.out_spec, f"{self._where}: out_spec")
        if len(paths) != len(nodes):
            raise self._error(f"{len(paths)} results are described, the graph gives others")
        return tuple(self._value(path, node) for path, node in zip(paths, nodes, strict=True))

    def read_ranges(self) -> dict[str, Range]:
        ranges = {}
        for text, limits in self._program.range_constraints.items():
            match parse_expression(text):
                case Symbol(name=name):
                    minimum = max(0, limits.min_val or 0)
                    if limits.max_val is not None and limits.max_val < minimum:
                        raise self._error(f"size {name} has no value between its limits")
                    ranges[name] = Range(minimum, limits.max_val)
                case Operation():
                    continue  # limits of a size computed from others follow from theirs
                case _:
                    raise self._error(f"range constraint {text[:100]!r} limits no size")
        return ranges

    def _value(self, name: str, node: str) -> TensorValue:
        meta = self._graph.tensor_values.get(node)
        if meta is None or meta.dtype not in DTYPES:
            raise self._error(f"the shape or dtype of {node} is not known")
        shape = tuple(_size(size) for size in meta.sizes)
        return TensorValue(name, node, DTYPES[meta.dtype], shape)

    def _error(self, reason: str) -> ArtifactError:
        return ArtifactError(f"{self._where}: {reason}")


def _size(size: SymInt) -> Expression:
    if size.as_expr is None:
        return Constant(size.as_int or 0)
    return parse_expression(size.as_expr.expr_str)


def _check_expressions(graph: Graph, where: str) -> None:
    """Every expression of the graph must be in the grammar, also those that nothing here uses."""
    texts: set[str] = set()
    for meta in graph.tensor_values.values():
        texts.update(_texts(meta))
    values: list[SymInt | SymFloat | SymBool] = [
        *graph.sym_int_values.values(),
        *graph.sym_float_values.values(),
        *graph.sym_bool_values.values(),
    ]
    texts.update(value.as_expr.expr_str for value in values if value.as_expr is not None)
    for text in texts:
        try:
            parse_expression(text)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error}") from error


def _texts(meta: TensorMeta) -> list[str]:
    sizes = (*meta.sizes, *meta.strides, meta.storage_offset)
    return [size.as_expr.expr_str for size in sizes if size.as_expr is not None]


def _leaves(text: str, where: str) -> list[str]:
    """A name per leaf of the tree `text`: the keys and places on the way to it.

    Raises:
        ArtifactError: it is no tree of tuples, lists and dictionaries.
    """
    document = parse_json(text.encode(), where)
    if not isinstance(document, list) or len(document) != 2 or document[0] != 1:
        raise ArtifactError(f"{where}: not a tree of version 1")
    names: list[str] = []
    _walk(document[1], (), names, where)
    return names


def _walk(node: Any, path: tuple[str, ...], names: list[str], where: str) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
        raise ArtifactError(f"{where}: a node of the tree is damaged")
    children = node["children_spec"]
    if node.get("type") is None:
        names.append("_".join(path) or "output")
        return
    if node["type"] not in _TREES:
        raise ArtifactError(f"{where}: takes or gives a {str(node['type'])[:100]}, not tensors")
    keys = [str(place) for place in range(len(children))]
    if node["type"] in _DICTIONARIES:
        keys = _keys(node.get("context"), where)
    if len(keys) != len(children):
        raise ArtifactError(f"{where}: a dictionary of the tree is damaged")
    for key, child in zip(keys, children, strict=True):
        _walk(child, (*path, key if path or not key.isdigit() else f"output_{key}"), names, where)


def _keys(context: Any, where: str) -> list[str]:
    try:
        keys = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise ArtifactError(f"{where}: the keys of a dictionary of the tree are not strings")
    return keys
