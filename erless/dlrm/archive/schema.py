"""The exported program of an archive, read as data: one class per object of torch's own schema.

Source: torch/_export/serde/schema.py, schema versions 8.8 (PyTorch 2.8) to 8.20 (2.13); within a
major version fields are only added. Fields that would carry code, other graphs or custom objects
have no place here, so a document that holds one is refused. Names are Python identifiers, numbers
fit 64 bits, and a list stops at its first fault.
"""

from __future__ import annotations

import keyword
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

__all__ = [
    "Argument",
    "ExportedProgram",
    "Graph",
    "InputSpec",
    "Node",
    "OutputSpec",
    "PayloadConfig",
    "PayloadMeta",
    "SymInt",
    "TensorMeta",
]

MAX_NODES = 10_000
MAX_ITEMS = 20_000


def _not_too_many(entries: Any) -> Any:
    """Count a dictionary's entries before each of them can become an error."""
    if isinstance(entries, dict) and len(entries) > MAX_ITEMS:
        raise ValueError(f"has {len(entries):,} entries, at most {MAX_ITEMS:,}")
    return entries


def _unknown(model: type[BaseModel], fields: dict[Any, Any]) -> str:
    unknown = next(str(name) for name in fields if name not in model.model_fields)
    return f"{unknown[:100]!r} is not known here"


def _no_keyword(name: str) -> str:
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name.startswith("__"):
        raise ValueError(f"{name!r} is a word of Python, not a name")
    return name


Name = Annotated[
    str,
    StringConstraints(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\z", max_length=200),
    AfterValidator(_no_keyword),
]
# The dotted path of a parameter; ModuleList and Sequential number their parts.
DottedName = Annotated[
    str, StringConstraints(pattern=r"\A[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\z", max_length=500)
]
Text = Annotated[str, StringConstraints(max_length=200)]
Expression = Annotated[str, StringConstraints(max_length=2_000)]
LongText = Annotated[str, StringConstraints(max_length=100_000)]  # stack traces, tree layouts
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Real = float | Literal["Infinity", "-Infinity", "NaN"]
Entry = TypeVar("Entry")
Entries = Annotated[dict[Name, Entry], BeforeValidator(_not_too_many)]
Integers = Annotated[list[Integer], Field(max_length=1_000, fail_fast=True)]


class Data(BaseModel):
    """A part of the document: no field beyond those named, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, fields: Any) -> Any:
        """Stop before thousands of unknown fields become thousands of errors."""
        if isinstance(fields, dict) and len(fields) > len(cls.model_fields):
            raise ValueError(_unknown(cls, fields))
        return fields


class Union(Data):
    """One of several alternatives: exactly one field is given."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"gives {len(self.model_fields_set)} alternatives, not one")
        return self

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return next(iter(self.model_fields_set))


class Device(Data):
    """Where a tensor lay when it was saved."""

    type: Literal["cpu", "cuda"]
    index: Annotated[int, Field(ge=0, le=255)] | None = None


class SymExprHint(Union):
    """The value that an expression had during the export."""

    as_int: Integer | None = None
    as_bool: bool | None = None
    as_float: Real | None = None


class SymExpr(Data):
    """A size as an expression over symbols."""

    expr_str: Expression
    hint: SymExprHint | None = None


class SymInt(Union):
    """A size: a number, or an expression."""

    as_expr: SymExpr | None = None
    as_int: Integer | None = None


class SymFloat(Union):
    """A real number, or an expression."""

    as_expr: SymExpr | None = None
    as_float: Real | None = None


class SymBool(Union):
    """A truth value, or an expression."""

    as_expr: SymExpr | None = None
    as_bool: bool | None = None


SymInts = Annotated[list[SymInt], Field(max_length=64, fail_fast=True)]


class TensorMeta(Data):
    """Shape, strides and dtype of a tensor."""

    dtype: Annotated[int, Field(ge=1, le=35)]
    sizes: SymInts
    requires_grad: bool
    device: Device
    strides: SymInts
    storage_offset: SymInt
    layout: Literal[7]  # strided


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
    metadata: Annotated[dict[Text, LongText], BeforeValidator(_not_too_many)]
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
    custom_obj_values: Annotated[dict[Name, Name], Field(max_length=0)] = {}
    sym_float_values: Entries[SymFloat] = {}


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
    metadata: Annotated[dict[Text, LongText], BeforeValidator(_not_too_many)] = {}
    treespec_namedtuple_fields: Annotated[dict[Text, Text], Field(max_length=0)] = {}


class SchemaVersion(Data):
    """The version of these definitions."""

    major: Literal[8]
    minor: Annotated[int, Field(ge=0, le=10_000)]


class ExportedProgram(Data):
    """The whole document `models/model.json`."""

    graph_module: GraphModule
    opset_version: Entries[Integer]
    range_constraints: Annotated[dict[Expression, RangeConstraint], BeforeValidator(_not_too_many)]
    schema_version: SchemaVersion
    verifiers: Annotated[list[Text], Field(max_length=8, fail_fast=True)] = []
    torch_version: Text = ""
    # Python code that torch's own module runs before each call; never read here.
    guards_code: Annotated[list[LongText], Field(max_length=MAX_ITEMS, fail_fast=True)] = []


class PayloadMeta(Data):
    """Where a tensor lies and what it looks like."""

    path_name: Name
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class PayloadConfig(Data):
    """The document that names the tensors of an archive."""

    config: Annotated[dict[DottedName, PayloadMeta], BeforeValidator(_not_too_many)]
