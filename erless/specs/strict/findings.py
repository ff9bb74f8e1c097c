"""pydantic's findings about a value in our words, translated by their type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

__all__ = ["finding", "first_finding", "places"]

KEY = "[key]"  # says pydantic behind a mapping's key that it does not accept
CHOICES = {"enum", "literal_error"}
LONGEST = 80  # characters of a value that are shown

_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda limits: f"must be above {limits['gt']:g}",
    "greater_than_equal": lambda limits: f"must be {limits['ge']:g} or more",
    "less_than": lambda limits: f"must be below {limits['lt']:g}",
    "less_than_equal": lambda limits: f"must be {limits['le']:g} or less",
    "finite_number": lambda _: "must be a finite number",
    "int_parsing": lambda _: "must be a whole number",
    "int_type": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "float_parsing": lambda _: "must be a number",
    "float_type": lambda _: "must be a number",
    "bool_parsing": lambda _: "must be true or false",
    "bool_type": lambda _: "must be true or false",
    "string_type": lambda _: "must be a text",
    "tuple_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be keys and values",
    "model_type": lambda _: "must be keys and values",
    "path_type": lambda _: "must be a path",
    "literal_error": lambda limits: f"must be one of {_plain(limits['expected'])}",
    "enum": lambda limits: f"must be one of {_plain(limits['expected'])}",
    "string_pattern_mismatch": lambda limits: f"must match {limits['pattern']}",
    "too_short": lambda limits: f"must have at least {limits['min_length']} entries",
}


def finding(error: ErrorDetails) -> str:
    """One finding as a phrase that follows the name of the field."""
    error_type, limits = error["type"], error.get("ctx", {})
    if error_type == "missing":
        return "is missing"
    if error_type == "extra_forbidden":
        return "is not known"
    if error_type == "value_error":
        return str(limits["error"])
    words = _WORDS.get(error_type)
    return f"{words(limits) if words else error['msg']}, found {_shown(error['input'])}"


def first_finding(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Where the first finding lies, as keys from the outside in, and the finding itself.

    Of a key that may not be there the keys end with it. What one of several types would take there
    is named with what the others would.
    """
    first, *others = error.errors()
    keys = _keys(first)
    accepted = [
        _plain(other["ctx"]["expected"])
        for other in (first, *others)
        if _keys(other) == keys and other["type"] in CHOICES
    ]
    if first["type"] in CHOICES:
        return keys, f"must be one of {', '.join(accepted)}, found {_shown(first['input'])}"
    return keys, finding(first)


def places(error: ValidationError) -> int:
    """In how many places something was found."""
    return len({_keys(found) for found in error.errors()})


def _keys(error: ErrorDetails) -> tuple[str, ...]:
    keys = [str(part) for part in error["loc"]]
    return tuple(keys[: keys.index(KEY)] if KEY in keys else keys)


def _plain(expected: object) -> str:
    """pydantic's `'a', 'b' or 'c'` as `a, b, c`."""
    return str(expected).replace("'", "").replace(" or ", ", ")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
