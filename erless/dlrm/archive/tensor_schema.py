"""The parts of an archive's documents that describe tensors, and the limits of every part.

One class per object of torch's own schema, torch/_export/serde/schema.py. Names are Python
identifiers, numbers fit 64 bits, and a list stops at its first fault.
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
    "MAX_ITEMS",
    "Data",
    "Device",
    "DottedName",
    "Entries",
    "Expression",
    "Integer",
    "Integers",
    "LongText",
    "Name",
    "PayloadConfig",
    "PayloadMeta",
    "Real",
    "SymBool",
    "SymFloat",
    "SymInt",
    "TensorMeta",
    "Text",
    "Union",
    "not_too_many",
]

MAX_ITEMS = 20_000


def not_too_many(entries: Any) -> Any:
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
Entries = Annotated[dict[Name, Entry], BeforeValidator(not_too_many)]
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


class PayloadMeta(Data):
    """Where a tensor lies and what it looks like."""

    path_name: Name
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class PayloadConfig(Data):
    """The document that names the tensors of an archive."""

    config: Annotated[dict[DottedName, PayloadMeta], BeforeValidator(not_too_many)]
