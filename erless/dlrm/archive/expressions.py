"""Expressions over sizes, parsed by a grammar of our own and never given to an evaluator.

torch describes a size that depends on the batch as text, either as sympy prints it (`2*s12`) or as
sympy rebuilds it (`Mul(Integer(2), Symbol('s12', positive=True, integer=True))`). Both are read:

    comparison = sum [("<" | "<=" | ">" | ">=" | "==" | "!=") sum]
    sum        = product {("+" | "-") product}
    product    = power {("*" | "//" | "/" | "%") power}
    power      = ["-"] atom ["**" integer]
    atom       = integer | decimal | name | function "(" argument {"," argument} ")" | "(" … ")"

The text has at most 2,000 characters, integers fit 64 bits, and nothing is computed while reading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from erless.errors import ArtifactError

__all__ = ["Constant", "Expression", "Operation", "Symbol", "evaluate", "parse_expression"]

MAX_CHARACTERS = 2_000
MAX_DEPTH = 40
MAX_EXPONENT = 64
_LIMIT = 2**63

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>'[A-Za-z0-9_.+\-]*')|(?P<sign>\*\*|//|<=|>=|==|!=|[-+*/%<>(),=]))"
)
_COMPARISONS = {
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "==": "equal",
    "!=": "not_equal",
}
_SUMS = {"+": "add", "-": "subtract"}
_PRODUCTS = {"*": "multiply", "//": "floor_divide", "/": "divide", "%": "modulo"}

# What sympy and torch.utils._sympy.functions write, and what it means here.
_FUNCTIONS = {
    "Add": "add",
    "Mul": "multiply",
    "Pow": "power",
    "PowByNatural": "power",
    "Max": "maximum",
    "Min": "minimum",
    "FloorDiv": "floor_divide",
    "CleanDiv": "floor_divide",
    "CeilDiv": "ceil_divide",
    "Mod": "modulo",
    "PythonMod": "modulo",
    "Eq": "equal",
    "Equality": "equal",
    "Ne": "not_equal",
    "Unequality": "not_equal",
    "Lt": "less",
    "StrictLessThan": "less",
    "Le": "less_equal",
    "LessThan": "less_equal",
    "Gt": "greater",
    "StrictGreaterThan": "greater",
    "Ge": "greater_equal",
    "GreaterThan": "greater_equal",
    "And": "and",
    "Or": "or",
    "Not": "not",
    "IntTrueDiv": "divide",
    "FloatTrueDiv": "divide",
    "Rational": "divide",
    "ToFloat": "identity",
    "TruncToInt": "truncate",
    "Identity": "identity",
}


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, or the truth of a comparison."""

    value: int | float | bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size that differs from call to call."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on sizes; its name is a value of the table of functions."""

    name: str
    operands: tuple[Expression, ...]


Expression = Constant | Symbol | Operation


def parse_expression(text: str) -> Expression:
    """Read `text`.

    >>> parse_expression("Mul(Integer(2), Symbol('s12', positive=True, integer=True))")
    Operation(name='multiply', operands=(Constant(value=2), Symbol(name='s12')))
    >>> parse_expression("exec('')")
    Traceback (most recent call last):
    ...
    erless.errors.ArtifactError: expression "exec('')": no function exec

    Raises:
        ArtifactError: it is not in the grammar, or too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise ArtifactError(f"an expression has {len(text):,} characters, at most {MAX_CHARACTERS}")
    return _Parser(text).parse()


def evaluate(expression: Expression, sizes: Mapping[str, int]) -> int:
    """The integer that `expression` stands for when its symbols have these `sizes`.

    >>> evaluate(parse_expression("2*s0 + Max(s1, 3)"), {"s0": 4, "s1": 1})
    11

    Raises:
        ArtifactError: a symbol has no size, or the value is no integer of 64 bits.
    """
    match expression:
        case Constant(value=value) if isinstance(value, int):
            return value
        case Symbol(name=name) if name in sizes:
            return sizes[name]
        case Operation(name=name, operands=operands) if name in _ARITHMETIC:
            values = [evaluate(operand, sizes) for operand in operands]
            return _fold(name, values)
    raise ArtifactError(f"a size depends on what is not known: {expression}"[:200])


_ARITHMETIC = {"add", "subtract", "multiply", "maximum", "minimum", "floor_divide", "identity"}


def _fold(name: str, values: list[int]) -> int:
    total = values[0]
    for value in values[1:]:
        match name:
            case "add":
                total += value
            case "subtract":
                total -= value
            case "multiply":
                total *= value
            case "maximum":
                total = max(total, value)
            case "minimum":
                total = min(total, value)
            case _:
                if value == 0:
                    raise ArtifactError("a size is divided by zero")
                total //= value
        if abs(total) >= _LIMIT:
            raise ArtifactError("a size needs more than 64 bits")
    return total


class _Parser:
    """Recursive descent over the words of one expression."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = self._scan()
        self._next = 0
        self._depth = 0

    def parse(self) -> Expression:
        expression = self._comparison()
        if self._next != len(self._words):
            raise self._error(f"{self._words[self._next]!r} is not expected")
        return expression

    def _scan(self) -> list[str]:
        words, place = [], 0
        text = self._text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if not match:
                raise self._error(f"{text[place : place + 10]!r} is not arithmetic")
            words.append(match[0].strip())
            place = match.end()
        return words

    def _error(self, reason: str) -> ArtifactError:
        return ArtifactError(f'expression "{self._text[:100]}": {reason}')

    def _peek(self) -> str:
        return self._words[self._next] if self._next < len(self._words) else ""

    def _take(self, expected: str = "") -> str:
        word = self._peek()
        if not word or (expected and word != expected):
            raise self._error(f"{expected or 'a value'!r} is missing")
        self._next += 1
        return word

    def _comparison(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("nested too deeply")
        left = self._sum()
        if self._peek() in _COMPARISONS:
            name = _COMPARISONS[self._take()]
            left = Operation(name, (left, self._sum()))
        self._depth -= 1
        return left

    def _sum(self) -> Expression:
        left = self._product()
        while self._peek() in _SUMS:
            name = _SUMS[self._take()]
            left = Operation(name, (left, self._product()))
        return left

    def _product(self) -> Expression:
        left = self._power()
        while self._peek() in _PRODUCTS:
            name = _PRODUCTS[self._take()]
            left = Operation(name, (left, self._power()))
        return left

    def _power(self) -> Expression:
        negative = self._peek() == "-"
        if negative:
            self._take()
        atom = self._atom()
        if self._peek() == "**":
            self._take()
            atom = self._raise(atom, self._number(self._take()))
        return Operation("subtract", (Constant(0), atom)) if negative else atom

    def _atom(self) -> Expression:
        word = self._take()
        if word == "(":
            inner = self._comparison()
            self._take(")")
            return inner
        if word[0].isdigit():
            return self._number(word)
        if not word.isidentifier():
            raise self._error(f"{word!r} is not expected")
        if self._peek() == "(":
            return self._function(word)
        if word in ("true", "false", "True", "False"):
            return Constant(word.lower() == "true")
        return self._symbol(word)

    def _number(self, word: str) -> Constant:
        if not word[0].isdigit() or len(word) > 30:
            raise self._error(f"{word[:40]!r} is no number")
        value = int(word) if word.isdigit() else float(word)
        if not math.isfinite(value) or abs(value) >= _LIMIT:
            raise self._error(f"{word!r} is too large")
        return Constant(value)

    def _symbol(self, name: str) -> Symbol:
        if len(name) > 100 or name.startswith("__"):
            raise self._error(f"{name[:40]!r} is no symbol")
        return Symbol(name)

    def _function(self, name: str) -> Expression:
        self._take("(")
        if name in ("Symbol", "Integer", "Float"):
            return self._leaf(name)
        if name not in _FUNCTIONS:
            raise self._error(f"no function {name[:40]}")
        operands = [self._comparison()]
        while self._peek() == ",":
            self._take()
            operands.append(self._comparison())
        self._take(")")
        if _FUNCTIONS[name] == "power" and len(operands) == 2:
            return self._raise(*operands)
        return Operation(_FUNCTIONS[name], tuple(operands))

    def _raise(self, base: Expression, exponent: Expression) -> Expression:
        match exponent:
            case Constant(value=int(value)) if 0 <= value <= MAX_EXPONENT:
                return Operation("power", (base, exponent))
        raise self._error(f"an exponent is no number up to {MAX_EXPONENT}")

    def _leaf(self, name: str) -> Expression:
        """`Symbol('s0', positive=True)`, `Integer(-2)` or `Float('0.5', precision=53)`."""
        negative = self._peek() == "-"
        if negative:
            self._take()
        content = self._take().strip("'")
        while self._peek() == ",":
            for expected in (",", "", "=", ""):
                self._take(expected)
        self._take(")")
        if name == "Symbol":
            if not content.isidentifier():
                raise self._error(f"{content!r} is no symbol")
            return self._symbol(content)
        number = self._number(content.lstrip("-"))
        return Constant(-number.value) if negative or content.startswith("-") else number
