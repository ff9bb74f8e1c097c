"""Export a model with torch, and name what goes in and comes out."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from erless.errors import ModelError, first_line
from erless.importers.graph.watch import Watch, line_of, quiet
from erless.importers.lazy import LazyTensor

__all__ = ["Example", "Program", "export_program", "slice_of"]

Dynamic = Mapping[str, Sequence[int] | Mapping[int, Any]]


@dataclass(frozen=True, slots=True)
class Example:
    """Inputs of a model as its `forward` takes them: positional and named arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> Example:
        """From a tensor, a tuple of arguments, or a dictionary of named arguments."""
        if isinstance(inputs, Tensor):
            return cls((inputs,), {})
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        return cls(tuple(inputs), {})

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in the order of the program's inputs."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def replaced(self, tensors: Sequence[Tensor]) -> Example:
        """The same arguments with other tensors."""
        remaining = iter(tensors)
        args, kwargs = pytree.tree_map(
            lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf,
            (self.args, self.kwargs),
        )
        return Example(args, kwargs)


@dataclass(frozen=True, slots=True)
class Program:
    """An exported model.

    Args:
        exported: the program, in which nothing happens in place.
        inputs: name → placeholder, of the tensors that a caller gives.
        outputs: name → node.
        weights: placeholder → dotted name, of parameters, buffers and constants.
        original_names: placeholder → the name in the saved archive, where that is another.
        request: names of inputs that come once per request.
        elsewhere: placeholder → the rows of a table whose weight here is zeros.
    """

    exported: ExportedProgram
    inputs: dict[str, Node]
    outputs: dict[str, Node]
    weights: dict[Node, str]
    original_names: Mapping[Node, str] = field(default_factory=dict)
    request: frozenset[str] = frozenset()
    elsewhere: Mapping[Node, LazyTensor] = field(default_factory=dict)

    def name_of(self, node: Node) -> str:
        """The name of a weight, for errors."""
        return self.original_names.get(node, self.weights[node])

    def weight(self, node: Node) -> Tensor:
        """The tensor behind a placeholder of `weights`."""
        name = self.weights[node]
        state = self.exported.state_dict
        tensor: Tensor = state[name] if name in state else self.exported.constants[name]
        return tensor

    def replace(self, node: Node, other: Node) -> None:
        """Let all that uses the value of `node`, the outputs too, use `other`."""
        node.replace_all_uses_with(other, lambda user: user is not other)
        for name, output in self.outputs.items():
            if output is node:
                self.outputs[name] = other


def export_program(model: nn.Module, example: Example, dynamic: Dynamic | None = None) -> Program:
    """`model` in evaluation mode as a graph.

    Args:
        dynamic: input → its dimensions whose size differs from call to call; without, the first
            of every input.

    Raises:
        ModelError: torch cannot export it.
    """
    names = argument_names(model, example)
    example = _grown(example)
    watch = Watch(model)
    with evaluating(model), warnings.catch_warnings(), quiet(), watch.watching():
        warnings.simplefilter("ignore")  # torch's own, of its own functions
        shapes = _dynamic_shapes(model, example, names, dynamic)
        try:
            exported = torch.export.export(
                model, example.args, example.kwargs, dynamic_shapes=shapes, strict=False
            )
            exported = exported.run_decompositions(_recurrent())
        except Exception as error:
            raise ModelError(_why(error, watch)) from error
    program = _named(exported, names)
    _check_fixed(program, example, watch, names, dynamic)
    return program


def _recurrent() -> dict[Any, Any]:
    """Recurrent layers become steps of a fixed number, since a tower has no such operators."""
    known = torch.export.default_decompositions()
    aten = torch.ops.aten
    layers = (aten.gru.input, aten.lstm.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    cells = (aten.gru_cell, aten.lstm_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
    return {operator: known[operator] for operator in (*layers, *(c.default for c in cells))}


def _why(error: Exception, watch: Watch) -> str:
    """Why an export failed, in a few lines that name the module."""
    if isinstance(error, GuardOnDataDependentSymNode):
        reason = (
            "it branches on a value that differs from query to query (an `if`, a loop, .item())"
        )
    else:
        reason = f"{type(error).__name__}: {first_line(error)}"[:300]
    line = line_of(error)
    return f"{watch.place} cannot be exported: {reason}" + (f"\n  {line}" if line else "")


def _grown(example: Example) -> Example:
    """An example of one sample, twice: torch would take a size of 1 for the only one."""
    tensors = example.tensors
    if all(tensor.dim() and len(tensor) == 1 for tensor in tensors):
        return example.replaced([torch.cat([tensor, tensor]) for tensor in tensors])
    return example


def _check_fixed(
    program: Program, example: Example, watch: Watch, names: list[str], dynamic: Dynamic | None
) -> None:
    """Refuse a model that takes the batch of its example only."""
    for place, (name, node) in enumerate(program.inputs.items()):
        shape = node.meta["val"].shape
        wanted = _varying(name, len(shape), dynamic)
        for dimension in wanted:
            where = watch.fixed.get((place, dimension))
            if where or isinstance(shape[dimension], int):
                size = example.tensors[place].shape[dimension]
                raise ModelError(
                    f"{where or 'the model'} computes with a size of {size}, which is that of the "
                    f"example:\n  dimension {dimension} of input {name} must be free to differ. "
                    "Take sizes from tensors (x.shape[0]),\n  not from settings or constants."
                )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def argument_names(model: nn.Module, example: Example) -> list[str]:
    """A name per leaf of the arguments: its key in a dictionary, or the argument's own name."""
    parameters = list(inspect.signature(model.forward).parameters)
    leaves, _ = pytree.tree_flatten_with_path((example.args, example.kwargs))
    paths = []
    for path, _leaf in leaves:
        keys = [_key(part) for part in path[1:]]
        if _key(path[0]) == "0" and int(keys[0]) < len(parameters):
            keys[0] = parameters[int(keys[0])]
        paths.append(keys)
    return _short_names(paths)


def tensor_names(model: nn.Module, example: Example) -> list[str]:
    """Those of `argument_names` that are tensors, in the order of `example.tensors`."""
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    names = argument_names(model, example)
    return [n for n, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)]


def _key(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part))))


def _short_names(paths: list[list[str]]) -> list[str]:
    """The last key of each path that is a word and no other's, otherwise the whole path."""
    last = [path[-1] if path else "" for path in paths]
    names = [
        path[-1]
        if path and not path[-1].isdigit() and last.count(path[-1]) == 1
        else "_".join(path)
        for path in paths
    ]
    return [readable(name or "output") for name in names]


def readable(name: str) -> str:
    """`name` with only what a name may have."""
    name = re.sub(r"[^A-Za-z0-9_.\-]", "_", name)
    return (name if name[:1].isalnum() or name[:1] == "_" else f"_{name}")[-100:]


def _dynamic_shapes(
    model: nn.Module, example: Example, names: list[str], dynamic: Dynamic | None
) -> Any:
    """For `torch.export`: each tensor's dimensions that may differ."""
    leaves, tree = pytree.tree_flatten((example.args, example.kwargs))
    known = {name for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}
    for name in dynamic or ():
        if name not in known:
            raise ModelError(f"dynamic names {name}; the inputs are {', '.join(sorted(known))}")
    shapes: list[Any] = []
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            shapes.append(None)
            continue
        wanted = _varying(name, leaf.dim(), dynamic)
        shapes.append(dict.fromkeys(wanted, Dim.AUTO) or None)
    args, kwargs = pytree.tree_unflatten(shapes, tree)
    if not kwargs:
        kinds = [each.kind for each in inspect.signature(model.forward).parameters.values()]
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            plain = kinds.index(inspect.Parameter.VAR_POSITIONAL)
            return (*args[:plain], args[plain:])
        return args
    if args:
        raise ModelError("example inputs are positional or named arguments, not both")
    return kwargs


def _varying(name: str, dimensions: int, dynamic: Dynamic | None) -> set[int]:
    """The dimensions of an input whose size differs from call to call."""
    if dynamic is not None and name in dynamic:
        return set(dynamic[name])
    return {0} if dimensions else set()


def _named(exported: ExportedProgram, names: list[str]) -> Program:
    nodes = {node.name: node for node in exported.graph.nodes}
    inputs: dict[str, Node] = {}
    weights: dict[Node, str] = {}
    given = iter(names)
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            name = next(given)
            if isinstance(spec.arg, TensorArgument):
                inputs[name] = nodes[spec.arg.name]
        elif spec.target is not None and isinstance(spec.arg, TensorArgument):
            weights[nodes[spec.arg.name]] = spec.target
    outputs: dict[str, Node] = {}
    results = _output_names(exported)
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            renormed = spec.kind is OutputKind.PARAMETER_MUTATION and "renorm" in spec.arg.name
            cause = " (max_norm of an embedding)" if renormed else ""
            raise ModelError(f"the model changes {spec.target} when it predicts{cause}")
        name = next(results)
        if isinstance(spec.arg, TensorArgument):
            outputs[name] = nodes[spec.arg.name]
    return Program(exported, inputs, outputs, weights)


def _output_names(exported: ExportedProgram) -> Iterator[str]:
    tree = exported.call_spec.out_spec
    if tree is None:
        raise ModelError("the model gives nothing")
    places = pytree.tree_unflatten(range(tree.num_leaves), tree)
    leaves, _ = pytree.tree_flatten_with_path(places)
    paths = [[_key(part) for part in path] for path, _ in leaves]
    paths = [
        [f"output_{path[0]}"] if path and path[0].isdigit() and len(path) == 1 else path
        for path in paths
    ]
    return iter(_short_names(paths))


def slice_of(gives: Sequence[Node], stop: Mapping[Node, object] | frozenset[Node]) -> set[Node]:
    """All nodes that `gives` depend on, themselves included, not looking behind those of `stop`."""
    found: set[Node] = set()
    waiting = list(gives)
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if node not in stop:
            waiting.extend(node.all_input_nodes)
    return found
