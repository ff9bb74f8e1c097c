"""Rebuild an exported program as a torch.fx module, node by node, from checked parts only.

torch.fx writes a graph out as Python source and compiles it. Nothing of an archive gets into that
source: values and weights are numbered, operators come from our own list, and constants are
numbers, dtypes and words that were compared with lists of ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx import Node as Value
from torch.nn import functional as F

from erless.dlrm.archive import operators
from erless.dlrm.archive.arguments import ArgumentReader, read_number
from erless.dlrm.archive.arithmetic import FUNCTIONS
from erless.dlrm.archive.container import ArchiveRecords, Bytes
from erless.dlrm.archive.document import parse_document
from erless.dlrm.archive.payload import Payloads
from erless.dlrm.archive.samples import check_samples
from erless.dlrm.archive.schema import ExportedProgram, Node
from erless.dlrm.archive.signature import Signature, read_signature
from erless.errors import ArtifactError

__all__ = ["Archive", "build_module", "count_uses", "move_module", "read_archive"]

_PREFIX = "torch.ops.aten."


class Archive:
    """An archive taken apart: its program, signature and tensors, all checked.

    Args:
        path: of the archive, or what errors call it.
        copy_weights: see `Payloads`.
        data: see `ArchiveRecords`; of bytes that are read by ranges the weights are not read yet.

    Raises:
        ArtifactError: not an archive of one program, damaged, or holding anything unknown.
    """

    def __init__(
        self, path: Path | str, copy_weights: bool = True, data: Bytes | None = None
    ) -> None:
        records = ArchiveRecords(path, data)
        self.where = records.where
        check_samples(records)
        document = f"{self.where}: models/model.json"
        self.program = parse_document(ExportedProgram, records.read("models/model.json"), document)
        self.signature = read_signature(self.program, self.where)
        self.payloads = Payloads(records, copy_weights)


def read_archive(path: Path, copy_weights: bool = True) -> Archive:
    """Take the archive at `path` apart. Raises as `Archive`."""
    return Archive(path, copy_weights)


def build_module(archive: Archive, allowed: frozenset[str] = operators.OPERATORS) -> GraphModule:
    """The program as a module: the signature's inputs in order → a tuple of its outputs.

    Args:
        allowed: the operators that it may use.

    Raises:
        ArtifactError: it uses another one, or uses one otherwise than its signature says.
    """
    return _Builder(archive, allowed).build()


def move_module(module: GraphModule, device: torch.device | str, dtype: torch.dtype) -> GraphModule:
    """`module` itself with its weights, and the tensors that its graph makes, on `device`."""
    module.to(device, dtype)
    for node in module.graph.nodes:
        node.kwargs = {
            name: torch.device(device) if isinstance(value, torch.device) else value
            for name, value in node.kwargs.items()
        }
        node.args = tuple(
            torch.device(device) if isinstance(value, torch.device) else value
            for value in node.args
        )
    module.recompile()
    return module


def take_expanded(module: GraphModule) -> bool:
    """Let inputs of `module` be expanded tensors: `view`, which refuses some, becomes `reshape`.

    Returns:
        whether they may be; a graph that computes with strides takes none.
    """
    aten = torch.ops.aten
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    if any(node.target in (aten.sym_stride.int, aten.sym_storage_offset.default) for node in nodes):
        return False
    for node in nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    module.recompile()
    return True


class _Builder:
    def __init__(self, archive: Archive, allowed: frozenset[str]) -> None:
        self._archive, self._allowed = archive, allowed
        self._signature: Signature = archive.signature
        self._nodes = archive.program.graph_module.graph.nodes
        self._graph = Graph()
        self._root = torch.nn.Module()
        self._tensors: dict[str, Value] = {}
        self._sizes: dict[str, Value] = {}
        self._shared: set[str] = set()  # values that may be the memory of another
        self._arguments = ArgumentReader(archive.where, self._tensors, self._sizes)
        self._uses = count_uses(self._nodes)

    def build(self) -> GraphModule:
        for place, value in enumerate(self._signature.inputs):
            self._tensors[value.node] = self._graph.placeholder(f"input_{place}")
        self._add_weights()
        for node in self._nodes:
            self._add_node(node)
        outputs = []
        for value in self._signature.outputs:
            if value.node not in self._tensors:
                raise self._error(f"its output {value.node} is given by no node")
            outputs.append(self._tensors[value.node])
        self._graph.output(tuple(outputs))
        self._graph.eliminate_dead_code(_must_stay)
        self._graph.lint()
        module = GraphModule(self._root, self._graph, "ExportedModule")
        return module.eval()

    def _add_weights(self) -> None:
        used = set(self._uses) | {value.node for value in self._signature.outputs}
        for place, (node, name) in enumerate(self._signature.tensors.items()):
            if node in used:
                self._root.register_buffer(f"weight_{place}", self._archive.payloads.tensor(name))
                self._tensors[node] = self._graph.get_attr(f"weight_{place}")
            self._shared.add(node)

    def _add_node(self, node: Node) -> None:
        if node.target in FUNCTIONS:
            self._add_arithmetic(node)
            return
        name = node.target.removeprefix(_PREFIX)
        if name == node.target:
            raise self._error(f"operator {node.target} is not on erless' list of operators")
        if name not in self._allowed:
            name = self._pure_form(node, name)
        self._check_mode(node, name)
        overload = _overload(name)
        arguments = self._arguments.read(name, overload._schema, node.inputs)
        result = self._call(name, overload, *arguments)
        if result is not None:
            self._define(node, name, overload._schema, result)

    def _add_arithmetic(self, node: Node) -> None:
        function, count = FUNCTIONS[node.target]
        if len(node.inputs) != count or len(node.outputs) != 1:
            raise self._error(f"{node.target} takes {count} numbers and gives one")
        operands = tuple(read_number(self._arguments, operand.arg) for operand in node.inputs)
        output = node.outputs[0]
        symbol = output.as_sym_int or output.as_sym_float or output.as_sym_bool
        if symbol is None or symbol.as_name is None:
            raise self._error(f"{node.target} gives no size")
        self._name(self._sizes, symbol.as_name, self._graph.call_function(function, operands))

    def _pure_form(self, node: Node, name: str) -> str:
        """What computes the same as an in-place operator whose argument nothing else sees."""
        packet = name.partition(".")[0]
        if packet in operators.RANDOM or packet.rstrip("_") in operators.RANDOM:
            raise self._error(
                f"operator {name} draws random numbers: was it exported in training mode? Call "
                ".eval() before torch.export.export"
            )
        pure = operators.pure_form(name)
        if pure is None:
            raise self._error(f"operator {name} is not on erless' list of operators")
        target = next(
            (argument.arg.as_tensor for argument in node.inputs if argument.name == "self"), None
        )
        if target is None:
            raise self._error(f"operator {name} is called without a tensor")
        if target.name in self._signature.buffers:
            raise self._error(
                f"operator {name} writes to a buffer: it was exported in training mode; call "
                ".eval() before torch.export.export"
            )
        harmless = name.startswith("detach_.")  # writes nothing that a prediction sees
        if not harmless and (target.name in self._shared or self._uses.get(target.name, 0) > 1):
            raise self._error(
                f"operator {name} writes to a value that others use: save "
                "program.run_decompositions({}) instead of the program"
            )
        return pure

    def _check_mode(self, node: Node, name: str) -> None:
        """Refuse what only training does."""
        switches = {"dropout.default": "train", "batch_norm.default": "training"}
        for argument in node.inputs:
            training = argument.name == switches.get(name) and argument.arg.as_bool is not False
            dropping = argument.name == "dropout_p" and argument.arg.as_float not in (None, 0.0)
            if training or dropping:
                raise self._error(
                    f"operator {name} is in training mode; call .eval() before torch.export.export"
                )

    def _call(
        self,
        name: str,
        overload: Callable[..., Any],
        positional: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Value | None:
        if name == "dropout.default":
            unchanged: Value = positional[0]
            return unchanged
        if name == "sym_constrain_range_for_size.default":
            return None
        return self._graph.call_function(_SUBSTITUTES.get(name, overload), positional, named)

    def _define(
        self, node: Node, name: str, schema: torch._C.FunctionSchema, result: Value
    ) -> None:
        """Give the results of `result` the names that later nodes call them by."""
        kinds = [str(result_schema.real_type) for result_schema in schema.returns]
        shared = name in operators.MAY_SHARE_MEMORY
        if not kinds and not node.outputs:
            return
        if name in operators.SIZE_QUERIES:
            self._define_size(node, result)
        elif kinds == ["Tensor"]:
            names = [output.as_tensor.name for output in node.outputs if output.as_tensor]
            if len(names) != 1 or len(node.outputs) != 1:
                raise self._error(f"operator {name} gives one tensor")
            self._name(self._tensors, names[0], result, shared)
        elif kinds == ["List[Tensor]"]:
            items = node.outputs[0].as_tensors if len(node.outputs) == 1 else None
            if items is None:
                raise self._error(f"operator {name} gives a list of tensors")
            for place, item in enumerate(items):
                self._name(self._tensors, item.name, self._item(result, place), shared)
        else:
            self._define_several(node, name, len(kinds), result)

    def _define_several(self, node: Node, name: str, count: int, result: Value) -> None:
        if len(node.outputs) > count:
            raise self._error(f"operator {name} gives {count} results")
        for place, output in enumerate(node.outputs):
            if output.as_tensor is not None:
                self._name(self._tensors, output.as_tensor.name, self._item(result, place), True)
            elif output.as_none is None:
                raise self._error(f"operator {name} gives tensors")

    def _define_size(self, node: Node, result: Value) -> None:
        symbol = node.outputs[0].as_sym_int if len(node.outputs) == 1 else None
        if symbol is None or symbol.as_name is None:
            raise self._error(f"{node.target} gives no size")
        self._name(self._sizes, symbol.as_name, result)

    def _item(self, result: Value, place: int) -> Value:
        return self._graph.call_function(operator.getitem, (result, place))

    def _name(
        self, values: dict[str, Value], name: str, value: Value, shared: bool = False
    ) -> None:
        if name in self._tensors or name in self._sizes or name in self._signature.tensors:
            raise self._error(f"two values are called {name}")
        values[name] = value
        if shared:
            self._shared.add(name)

    def _error(self, reason: str) -> ArtifactError:
        return ArtifactError(f"{self._archive.where}: {reason}"[:600])


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def count_uses(nodes: list[Node]) -> dict[str, int]:
    """How many arguments name each tensor."""
    uses: dict[str, int] = {}
    for node in nodes:
        for argument in node.inputs:
            entry = argument.arg
            several = entry.as_tensors or ()
            optional = [
                *(entry.as_optional_tensors or ()),
                *([entry.as_optional_tensor] if entry.as_optional_tensor else ()),
            ]
            single = [entry.as_tensor, *(value.as_tensor for value in optional)]
            for tensor in (*several, *single):
                if tensor is not None:
                    uses[tensor.name] = uses.get(tensor.name, 0) + 1
    return uses


def _must_stay(node: Value) -> bool:
    """Whether a node must stay although nobody uses its result: inputs, the output and checks."""
    return node.op in ("placeholder", "output") or "assert" in str(node.target)


def _batch_norm(
    input: Tensor,  # noqa: A002 - the operator's own argument names
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, None, None]:
    """Batch norm in evaluation through the function that checks its weights' sizes."""
    normed = F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return normed, None, None


def _group_norm(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    N: int,  # noqa: N803
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
    eps: float,
) -> tuple[Tensor, None, None]:
    """Group norm through the function that checks its weights' sizes."""
    return F.group_norm(input.contiguous(), group, weight, bias, eps), None, None


_SUBSTITUTES: dict[str, Callable[..., Any]] = {
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "native_group_norm.default": _group_norm,
}
