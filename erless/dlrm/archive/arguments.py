"""Arguments of one node: each checked against the operator's own signature, then a Python value.

An argument is a constant of the document, or the name of a value that an earlier node gives. What
the signature calls `Tensor` takes the name of a tensor and nothing else, and so on; anything else
is refused before torch sees it. No text of the archive survives: strings are taken from a closed
list, devices become the CPU, and messages of assertions are replaced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node as Value

from erless.dlrm.archive.payload import DTYPES
from erless.dlrm.archive.schema import Argument, NamedArgument
from erless.errors import ArtifactError

__all__ = ["ArgumentReader", "read_number"]

MAX_ELEMENTS = 1 << 28  # 1 GiB of float32 made from constants of the archive
_TO_THE_END = 2**63 - 1  # the end of a slice without one

_EQUATION = re.compile(r"[A-Za-z ,.]{1,100}(->[A-Za-z .]{0,100})?")
_WORDS = {"none", "tanh", "floor", "trunc", "constant", "reflect", "replicate", "circular"}
_WORDS |= {"same", "valid", "sum", "mean", "prod", "amax", "amin", "left", "right", "linear"}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_MESSAGES = ("assert_msg", "msg")


class ArgumentReader:
    """Reads the arguments of the nodes of one graph.

    Args:
        where: how errors name the archive.
        tensors: the tensors that earlier nodes and inputs gave, by name; grows while reading.
        sizes: likewise the numbers computed from shapes.
    """

    def __init__(
        self, where: str, tensors: Mapping[str, Value], sizes: Mapping[str, Value]
    ) -> None:
        self._where, self._tensors, self._sizes = where, tensors, sizes
        self._readers: dict[str, Callable[[Argument], Any]] = {
            "Tensor": self._tensor,
            "List[Tensor]": self._tensor_list,
            "List[Optional[Tensor]]": self._optional_tensors,
            "int": self._integer,
            "List[int]": self._integers,
            "float": self._real,
            "List[float]": self._reals,
            "number": self._scalar,
            "bool": self._boolean,
            "str": self._word,
            "ScalarType": self._dtype,
            "Layout": self._layout,
            "Device": self._device,
            "MemoryFormat": self._memory_format,
        }

    def read(
        self, target: str, schema: torch._C.FunctionSchema, inputs: list[NamedArgument]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments of one call of the operator with `schema`.

        Raises:
            ArtifactError: one is missing, unknown, given twice, or not of its type.
        """
        entries = {argument.name: argument.arg for argument in inputs}
        names = {argument.name for argument in schema.arguments}
        if len(entries) != len(inputs) or not entries.keys() <= names:
            called = ", ".join(argument.name for argument in inputs)
            raise self._error(target, f"is called with {called}; it takes {', '.join(names)}")
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for argument in schema.arguments:
            if argument.name not in entries:
                if not argument.has_default_value():
                    raise self._error(target, f"is called without {argument.name}")
                continue
            value = self._value(target, argument, entries[argument.name])
            if argument.kwarg_only or len(positional) < schema.arguments.index(argument):
                named[argument.name] = value
            else:
                positional.append(value)
        return tuple(positional), named

    def _value(self, target: str, argument: torch._C.Argument, entry: Argument) -> Any:
        type_name = str(argument.real_type)
        optional = re.fullmatch(r"Optional\[(.*)\]", type_name)
        if optional:
            if _is_none(entry):
                return None
            type_name = optional[1]
        if argument.name in _MESSAGES and type_name == "str":
            return "a check of the exported tower failed"
        try:
            if type_name not in self._readers:
                raise _WrongTypeError
            if (
                type_name == "List[int]"
                and getattr(argument, "N", None) is not None
                and entry.kind != "as_ints"
            ):
                return self._one_or_more(entry)
            value = self._readers[type_name](entry)
        except _WrongTypeError:
            reason = (
                f"argument {argument.name} is {entry.kind.removeprefix('as_')}, not {type_name}"
            )
            raise self._error(target, reason) from None
        self._check_size(target, argument.name, type_name, value)
        return value

    def _check_size(self, target: str, name: str, type_name: str, value: Any) -> None:
        """Refuse constants that would make a tensor of more than `MAX_ELEMENTS`."""
        if type_name == "List[int]":
            numbers = [abs(item) for item in value if isinstance(item, int)]
            elements = math.prod(max(1, number) for number in numbers)
        elif type_name in ("int", "number") and not isinstance(value, float | Value):
            bounded = type_name == "int" or name in ("start", "end", "step")
            elements = 0 if not bounded or value == _TO_THE_END else abs(value)
        else:
            return
        if elements > MAX_ELEMENTS:
            raise self._error(target, f"{name} asks for {elements:,} elements")

    def _error(self, target: str, reason: str) -> ArtifactError:
        return ArtifactError(f"{self._where}: operator {target}: {reason}"[:500])

    def _look_up(self, values: Mapping[str, Value], name: str | None) -> Value:
        if name is None or name not in values:
            raise ArtifactError(f"{self._where}: {name} is used before any node gives it")
        return values[name]

    def _tensor(self, entry: Argument) -> Any:
        """A tensor, or the number that torch takes for one in arithmetic."""
        if entry.as_tensor is not None:
            return self._look_up(self._tensors, entry.as_tensor.name)
        optional = entry.as_optional_tensor
        if optional is not None and optional.as_tensor is not None:
            return self._look_up(self._tensors, optional.as_tensor.name)
        return self.number(entry)

    def _tensor_list(self, entry: Argument) -> list[Value]:
        if entry.as_tensors is None:
            raise _WrongTypeError
        return [self._look_up(self._tensors, item.name) for item in entry.as_tensors]

    def _optional_tensors(self, entry: Argument) -> list[Value | None]:
        if entry.as_optional_tensors is None:
            return list(self._tensor_list(entry))
        return [
            None if item.as_tensor is None else self._look_up(self._tensors, item.as_tensor.name)
            for item in entry.as_optional_tensors
        ]

    def _integer(self, entry: Argument) -> int | Value:
        if entry.as_int is not None:
            return entry.as_int
        if entry.as_sym_int is None:
            raise _WrongTypeError
        if entry.as_sym_int.as_int is not None:
            return entry.as_sym_int.as_int
        return self._look_up(self._sizes, entry.as_sym_int.as_name)

    def _integers(self, entry: Argument) -> list[int | Value]:
        if entry.as_ints is not None:
            return list(entry.as_ints)
        if entry.as_tensors == []:  # how torch writes an empty list of unknown kind
            return []
        if entry.as_sym_ints is None:
            raise _WrongTypeError
        return [
            self._look_up(self._sizes, item.as_name) if item.as_int is None else item.as_int
            for item in entry.as_sym_ints
        ]

    def _one_or_more(self, entry: Argument) -> Any:
        """A list of one size may be written as that size."""
        if entry.as_sym_ints is not None or entry.as_tensors is not None:
            return self._integers(entry)
        return self._integer(entry)

    def _real(self, entry: Argument) -> float | Value:
        if entry.as_float is not None:
            return float(entry.as_float)
        if entry.as_int is not None:
            return float(entry.as_int)
        return self._symbolic_real(entry)

    def _symbolic_real(self, entry: Argument) -> float | Value:
        if entry.as_sym_float is None:
            raise _WrongTypeError
        if entry.as_sym_float.as_float is not None:
            return float(entry.as_sym_float.as_float)
        return self._look_up(self._sizes, entry.as_sym_float.as_name)

    def _reals(self, entry: Argument) -> list[float]:
        if entry.as_floats is None:
            raise _WrongTypeError
        return [float(item) for item in entry.as_floats]

    def _scalar(self, entry: Argument) -> Any:
        return read_number(self, entry)

    def _boolean(self, entry: Argument) -> bool | Value:
        if entry.as_bool is not None:
            return entry.as_bool
        if entry.as_sym_bool is None:
            raise _WrongTypeError
        if entry.as_sym_bool.as_bool is not None:
            return entry.as_sym_bool.as_bool
        return self._look_up(self._sizes, entry.as_sym_bool.as_name)

    def number(self, entry: Argument) -> Any:
        """An integer, a float or a truth value, constant or computed."""
        for field, reader in (
            ("as_bool", self._boolean),
            ("as_sym_bool", self._boolean),
            ("as_float", self._real),
            ("as_sym_float", self._real),
        ):
            if entry.kind == field:
                return reader(entry)
        return self._integer(entry)

    def _word(self, entry: Argument) -> str:
        text = entry.as_string
        if text is None or not (text in _WORDS or _EQUATION.fullmatch(text)):
            raise _WrongTypeError
        return text

    def _dtype(self, entry: Argument) -> torch.dtype:
        if entry.as_scalar_type is None or entry.as_scalar_type not in DTYPES:
            raise _WrongTypeError
        return DTYPES[entry.as_scalar_type]

    def _layout(self, entry: Argument) -> torch.layout:
        if entry.as_layout is None:
            raise _WrongTypeError
        return torch.strided

    def _device(self, entry: Argument) -> torch.device:
        """The CPU whatever device is named: a tower is moved as a whole, see `move_module`."""
        if entry.as_device is None:
            raise _WrongTypeError
        return torch.device("cpu")

    def _memory_format(self, entry: Argument) -> torch.memory_format:
        if entry.as_memory_format is None:
            raise _WrongTypeError
        return _MEMORY_FORMATS[entry.as_memory_format]


class _WrongTypeError(Exception):
    """An argument is not of the type that the operator's signature names."""


def read_number(reader: ArgumentReader, entry: Argument) -> Any:
    """The operand `entry` of arithmetic on sizes.

    Raises:
        ArtifactError: it is no number.
    """
    try:
        return reader.number(entry)
    except _WrongTypeError:
        kind = entry.kind.removeprefix("as_")
        raise ArtifactError(f"arithmetic on sizes is given {kind}, not a number") from None


def _is_none(entry: Argument) -> bool:
    optional = entry.as_optional_tensor
    return entry.kind == "as_none" or (optional is not None and optional.as_tensor is None)
