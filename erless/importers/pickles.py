"""Pickles read as data: no object is built, no function called, no module imported.

torch keeps the names of a checkpoint's tensors in a pickle. Its opcodes are listed by
`pickletools.genops`, which executes none, and run here on a stack of plain values: a function that
a pickle would call becomes a `Call`, one that it would import a `Name`. Names must be on a closed
list, so a checkpoint that holds other objects is refused at the first of them.
"""

from __future__ import annotations

import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

from erless.errors import CheckpointError

__all__ = ["Call", "Name", "Reference", "read_pickle"]

MAX_OPCODES = 5_000_000

_NAMES = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
    r"|torch\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch\.(float|int|uint|bfloat)[0-9]+|torch\.(bool|Size|device|strided)"
    r"|torch\.storage\.UntypedStorage|torch\.serialization\._get_layout"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.Tensor|torch\.nn\.parameter\.Parameter"
    r"|collections\.(OrderedDict|defaultdict|Counter)|(__builtin__|builtins)\.(set|frozenset|dict)"
    r"|numpy(\._?core\.multiarray\.(scalar|_reconstruct)|\.ndarray|\.dtype)|_codecs\.encode"
)
_OTHER_TENSORS = re.compile(r"(torch[\w.]*|torchrec[\w.]*|fbgemm[\w.]*)\.\w+")
_KEYS = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle would import, by its dotted name."""

    path: str


@dataclass(slots=True, eq=False)
class Call:
    """A function that a pickle would call, its arguments, and the state its result would get."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(slots=True)
class Reference:
    """An object that lies beside the pickle, by its name there."""

    place: Any


_MARK = object()


def read_pickle(data: bytes | IO[bytes], where: str, names: re.Pattern[str] | None = None) -> Any:
    """The value of the pickle at the start of `data`; a stream is left behind its end.

    Args:
        where: the pickle, for errors.
        names: those that are allowed beside tensors'; their `Call` may be a dictionary's key.

    Raises:
        CheckpointError: it is damaged, too long, or names what is not on the list.
    """
    stream = BytesIO(data) if isinstance(data, bytes) else data
    machine = _Machine(where, names)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise CheckpointError(f"{where}: its pickle has more than {MAX_OPCODES:,} steps")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise CheckpointError(f"{where}: truncated or not a checkpoint: {reason}") from error
    raise CheckpointError(f"{where}: truncated or not a checkpoint: a pickle without an end")


class _Machine:
    """The stack and memory of one pickle."""

    def __init__(self, where: str, names: re.Pattern[str] | None) -> None:
        self._where, self._names = where, names
        self._keys = (*_KEYS, Call) if names else _KEYS
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "PROTO": self._nothing,
            "FRAME": self._nothing,
            "MARK": lambda _: self._stack.append(_MARK),
            "POP": self._drop,
            "POP_MARK": self._drop_marked,
            "DUP": lambda _: self._stack.append(self._stack[-1]),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "EMPTY_SET": lambda _: self._stack.append([]),
            "DICT": lambda _: self._stack.append(self._paired(self._since_mark())),
            "LIST": lambda _: self._stack.append(self._since_mark()),
            "TUPLE": lambda _: self._stack.append(tuple(self._since_mark())),
            "FROZENSET": lambda _: self._stack.append(self._since_mark()),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "NONE": lambda _: self._stack.append(None),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            "APPEND": lambda _: self._append([self.pop()]),
            "APPENDS": lambda _: self._append(self._since_mark()),
            "ADDITEMS": lambda _: self._append(self._since_mark()),
            "SETITEM": lambda _: self._set([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._set(self._since_mark()),
            "PUT": self._put,
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memory)),
            "GET": self._get,
            "BINGET": self._get,
            "LONG_BINGET": self._get,
            "GLOBAL": lambda name: self._name(".".join(name.split(" ", 1))),
            "STACK_GLOBAL": self._stack_name,
            "REDUCE": self._call,
            "NEWOBJ": self._call,
            "BUILD": self._build,
            "BINPERSID": lambda _: self._stack.append(Reference(self.pop())),
        }
        for name in _CONSTANTS:
            self._steps[name] = self._stack.append

    def step(self, opcode: str, argument: Any) -> None:
        """Run one opcode.

        Raises:
            CheckpointError: it is none of those that data needs.
        """
        if opcode not in self._steps:
            raise CheckpointError(
                f"{self._where}: not a checkpoint of plain tensors (opcode {opcode})"
            )
        self._steps[opcode](argument)

    def pop(self) -> Any:
        """Take the value on top of the stack."""
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _nothing(self, argument: Any) -> None:
        pass

    def _drop(self, argument: Any) -> None:
        self._stack.pop()

    def _build(self, argument: Any) -> None:
        """Keep the state that a call's result would get; that of a mapping is not used."""
        state = self.pop()
        if isinstance(self._stack[-1], Call):
            self._stack[-1].state = state

    def _drop_marked(self, argument: Any) -> None:
        self._since_mark()

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise ValueError("values are missing")
        values = tuple(self._stack[-size:])
        del self._stack[-size:]
        self._stack.append(values)

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError("items for what is no list")
        target.extend(values)

    def _set(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError("entries for what is no dictionary")
        target.update(self._paired(flat))

    def _paired(self, flat: list[Any]) -> dict[Any, Any]:
        if len(flat) % 2 or not all(isinstance(key, self._keys) for key in flat[::2]):
            raise TypeError("a key is no text or number")
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _put(self, place: int) -> None:
        self._memory[place] = self._stack[-1]

    def _get(self, place: int) -> None:
        self._stack.append(self._memory[place])

    def _stack_name(self, argument: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name is no text")
        self._name(f"{module}.{name}")

    def _name(self, path: str) -> None:
        if _NAMES.fullmatch(path) or (self._names and self._names.fullmatch(path)):
            self._stack.append(Name(path))
            return
        if _OTHER_TENSORS.fullmatch(path):
            raise CheckpointError(
                f"{self._where}: holds {path[:100]}: only plain dense tensors import (none that is "
                "nested, sparse, quantized, sharded or without data)"
            )
        raise CheckpointError(
            f"{self._where}: not a checkpoint of plain tensors; it holds other pickled objects "
            f"({path[:100]}), and erless executes none. Save model.state_dict() with torch.save, "
            "or safetensors"
        )

    def _call(self, argument: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError("what is called is no function")
        if function.path.startswith("collections."):
            entries = self._mapping(arguments)
            ordered = function.path.endswith(".OrderedDict")
            self._stack.append(OrderedDict(entries) if ordered else entries)
        else:
            self._stack.append(Call(function.path, arguments))

    def _mapping(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        """The entries of an OrderedDict and its kin: none yet, or those of a list of pairs."""
        pairs = arguments[-1] if arguments else []
        if not isinstance(pairs, list):
            return {}
        flat = [value for pair in pairs for value in pair]
        if any(len(pair) != 2 for pair in pairs):
            raise TypeError("a dictionary of what are no pairs")
        return self._paired(flat)


_CONSTANTS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
