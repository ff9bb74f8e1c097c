"""Export a model with torch, and name what goes in and comes out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx import Node
from torch.utils import _pytree as pytree

from erless.errors import ModelError, first_line

__all__ = ["Example", "Program", "export_program"]

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
        given = iter(tensors)
        args, kwargs = pytree.tree_map(
            lambda leaf: next(given) if isinstance(leaf, Tensor) else leaf,
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
    """

    exported: ExportedProgram
    inputs: dict[str, Node]
    outputs: dict[str, Node]
    weights: dict[Node, str]

    def weight(self, node: Node) -> Tensor:
        """The tensor behind a placeholder of `weights`."""
        name = self.weights[node]
        state = self.exported.state_dict
        tensor: Tensor = state[name] if name in state else self.exported.constants[name]
        return tensor


def export_program(model: nn.Module, example: Example, dynamic: Dynamic | None = None) -> Program:
    """`model` in evaluation mode as a graph.

    Args:
        dynamic: input → its dimensions whose size differs from call to call; without, the first
            of every input.

    Raises:
        ModelError: torch cannot export it.
    """
    with evaluating(model), warnings.catch_warnings():
        names = _argument_names(model, example)
        shapes = _dynamic_shapes(example, names, dynamic)
        try:
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own functions
            exported = torch.export.export(
                model, example.args, example.kwargs, dynamic_shapes=shapes, strict=False
            )
            exported = exported.run_decompositions({})
        except Exception as error:
            raise ModelError(f"the model cannot be exported: {first_line(error)}") from error
    return _named(exported, names)


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


def _argument_names(model: nn.Module, example: Example) -> list[str]:
    """A name per leaf of the arguments: its key in a dictionary, or the argument's own name."""
    import inspect

    parameters = list(inspect.signature(model.forward).parameters)
    leaves, _ = pytree.tree_flatten_with_path((example.args, example.kwargs))
    paths = []
    for path, _leaf in leaves:
        keys = [_key(part) for part in path[1:]]
        if _key(path[0]) == "0" and int(keys[0]) < len(parameters):
            keys[0] = parameters[int(keys[0])]
        paths.append(keys)
    return _short_names(paths)


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


def _dynamic_shapes(example: Example, names: list[str], dynamic: Dynamic | None) -> Any:
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
        wanted = {0} if leaf.dim() and name not in (dynamic or {}) else set((dynamic or {})[name])
        shapes.append(dict.fromkeys(wanted, Dim.AUTO) or None)
    args, kwargs = pytree.tree_unflatten(shapes, tree)
    return (*args, *kwargs.values()) if not kwargs else _by_parameter(args, kwargs)


def _by_parameter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        raise ModelError("example inputs are positional or named arguments, not both")
    return kwargs


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
            raise ModelError(f"the model changes {spec.target} when it predicts")
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
