"""The exported program of an archive, read as data: one class per object of torch's own schema.

Source: torch/_export/serde/schema.py, schema versions 8.8 (PyTorch 2.8) to 8.20 (2.13); within a
major version fields are only added. Fields that would carry code, other graphs or custom objects
have no place here, so a document that holds one is refused. What describes tensors, and the limits
of names, numbers and lists, are in `tensor_schema`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
)

from erless.dlrm.archive.tensor_schema import (
    MAX_ITEMS,
    Data,
    Device,
    DottedName,
    Entries,
    Expression,
    Integer,
    Integers,
    LongText,
    Name,
    Real,
    SymBool,
    SymFloat,
    SymInt,
    TensorMeta,
    Text,
    Union,
    not_too_many,
)

__all__ = [
    "Argument",
    "ExportedProgram",
    "Graph",
    "InputSpec",
    "NamedArgument",
    "Node",
    "OutputSpec",
]

MAX_NODES = 10_000


class SymIntArgument(Union):
    """A number, or the name of a computed one."""

    as_name: Name | None = None
    as_int: Integer | None = None


class SymFloatArgument(Union):
    """A real number, or the name of a computed one."""

    as_name: Name | None = None
    as_float: Real | None = None


class SymBoolArgument(Union):
    """A truth value, or the name of a computed one."""

    as_name: Name | None = None
    as_bool: bool | None = None


class TensorArgument(Data):
    """The name of a tensor of the graph."""

    name: Name


class OptionalTensorArgument(Union):
    """The name of a tensor, or none."""

    as_tensor: TensorArgument | None = None
    as_none: bool | None = None


TensorArguments = Annotated[list[TensorArgument], Field(max_length=MAX_ITEMS, fail_fast=True)]


class Argument(Union):
    """One argument of a node, or one of its results."""

    as_none: bool | None = None
    as_tensor: TensorArgument | None = None
    as_tensors: TensorArguments | None = None
    as_int: Integer | None = None
    as_ints: Integers | None = None
    as_float: Real | None = None
    as_floats: Annotated[list[Real], Field(max_length=1_000, fail_fast=True)] | None = None
    as_string: Text | None = None
    as_sym_int: SymIntArgument | None = None
    as_sym_ints: Annotated[list[SymIntArgument], Field(max_length=1_000, fail_fast=True)] | None = (
        None
    )
    as_scalar_type: Annotated[int, Field(ge=1, le=35)] | None = None
    as_memory_format: Annotated[int, Field(ge=1, le=4)] | None = None
    as_layout: Literal[7] | None = None
    as_device: Device | None = None
    as_bool: bool | None = None
    as_sym_bool: SymBoolArgument | None = None
    as_optional_tensors: (
        Annotated[list[OptionalTensorArgument], Field(max_length=64, fail_fast=True)] | None
    ) = None
    as_sym_float: SymFloatArgument | None = None
    as_optional_tensor: OptionalTensorArgument | None = None


Arguments = Annotated[list[Argument], Field(max_length=MAX_ITEMS, fail_fast=True)]


class NamedArgument(Data):
    """An argument by its name in the operator's signature."""

    name: Name
    arg: Argument
    kind: Annotated[int, Field(ge=0, le=2)] | None = None


class Node(Data):
    """One call of an operator."""

    target: Text
    inputs: Annotated[list[NamedArgument], Field(max_length=64, fail_fast=True)]
    outputs: Arguments
    metadata: Annotated[dict[Text, LongText], BeforeValidator(not_too_many)]
    is_hop_single_tensor_return: bool | None = None
    name: Name | None = None


class Graph(Data):
    """Calls in the order in which they run, and what is known of their results."""

    inputs: Arguments
    outputs: Arguments
    nodes: Annotated[list[Node], Field(max_length=MAX_NODES, fail_fast=True)]
    tensor_values: Entries[TensorMeta]
    sym_int_values: Entries[SymInt]
    sym_bool_values: Entries[SymBool]
    is_single_tensor_return: bool = False
    custom_obj_values: dict[Name, Name] = Field(default_factory=dict, max_length=0)
    sym_float_values: Entries[SymFloat] = Field(default_factory=dict)


class UserInputSpec(Data):
    """An input that the caller gives."""

    arg: Argument


class ConstantValue(Union):
    """A constant that stands in for an argument."""

    as_none: bool | None = None
    as_int: Integer | None = None
    as_float: Real | None = None
    as_string: Text | None = None
    as_bool: bool | None = None


class InputToConstantSpec(Data):
    """An argument that was a constant during the export."""

    name: Name
    value: ConstantValue


class InputToParameterSpec(Data):
    """An input that is a weight."""

    arg: TensorArgument
    parameter_name: DottedName


class InputToBufferSpec(Data):
    """An input that is a buffer of the module."""

    arg: TensorArgument
    buffer_name: DottedName
    persistent: bool


class InputToTensorConstantSpec(Data):
    """An input that is a tensor which the code held."""

    arg: TensorArgument
    tensor_constant_name: DottedName


class InputSpec(Union):
    """What one input of the graph stands for."""

    user_input: UserInputSpec | None = None
    parameter: InputToParameterSpec | None = None
    buffer: InputToBufferSpec | None = None
    tensor_constant: InputToTensorConstantSpec | None = None
    constant_input: InputToConstantSpec | None = None


class UserOutputSpec(Data):
    """An output that the caller gets."""

    arg: Argument


class BufferMutationSpec(Data):
    """A result that the module would keep: only training does that."""

    arg: TensorArgument
    buffer_name: DottedName


class OutputSpec(Union):
    """What one output of the graph stands for."""

    user_output: UserOutputSpec | None = None
    buffer_mutation: BufferMutationSpec | None = None


class GraphSignature(Data):
    """What inputs and outputs stand for, in order."""

    input_specs: Annotated[list[InputSpec], Field(max_length=MAX_ITEMS, fail_fast=True)]
    output_specs: Annotated[list[OutputSpec], Field(max_length=MAX_ITEMS, fail_fast=True)]


class RangeConstraint(Data):
    """The limits of a size."""

    min_val: Integer | None
    max_val: Integer | None


class ModuleCallSignature(Data):
    """How the arguments and results of a module nest."""

    inputs: Arguments
    outputs: Arguments
    in_spec: LongText
    out_spec: LongText
    forward_arg_names: Annotated[list[Name], Field(max_length=1_000, fail_fast=True)] | None = None


class ModuleCallEntry(Data):
    """One module of the model."""

    fqn: Annotated[str, StringConstraints(max_length=500)]
    signature: ModuleCallSignature | None = None


class GraphModule(Data):
    """The graph and its signature."""

    graph: Graph
    signature: GraphSignature
    module_call_graph: Annotated[
        list[ModuleCallEntry], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    ]
    metadata: Annotated[dict[Text, LongText], BeforeValidator(not_too_many)] = Field(
        default_factory=dict
    )
    treespec_namedtuple_fields: dict[Text, Text] = Field(default_factory=dict, max_length=0)


class SchemaVersion(Data):
    """The version of these definitions."""

    major: Literal[8]
    minor: Annotated[int, Field(ge=0, le=10_000)]


class ExportedProgram(Data):
    """The whole document `models/model.json`."""

    graph_module: GraphModule
    opset_version: Entries[Integer]
    range_constraints: Annotated[dict[Expression, RangeConstraint], BeforeValidator(not_too_many)]
    schema_version: SchemaVersion
    verifiers: list[Text] = Field(default_factory=list, max_length=8, fail_fast=True)
    torch_version: Text = ""
    # Python code that torch's own module runs before each call; never read here.
    guards_code: list[LongText] = Field(default_factory=list, max_length=MAX_ITEMS, fail_fast=True)
