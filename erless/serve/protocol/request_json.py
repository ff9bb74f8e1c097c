"""The JSON of a client's request: parsed within bounds, and asked for its parts by closed lists.

What does not fit is a `QueryError`: the client's fault, in a sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from erless.errors import QueryError, ServeError

__all__ = ["flag", "list_of_objects", "object_of", "parse_json", "refuse_unknown", "shown"]

SHOWN = 60  # characters of what a client sent that an error repeats
JSON_BYTES = 4 << 20  # of a request's JSON: parsing that many takes some 0.1 s
DECODED_BYTES = 64 << 20  # that a request's JSON may take as Python objects
# What CPython 3.11 takes for a list, a dict, a string and any other element, with its place in
# whatever holds it.
_LIST_BYTES, _DICT_BYTES, _STRING_BYTES, _ELEMENT_BYTES = 72, 300, 60, 40
_CHARACTER_BYTES = 4  # one character beyond the Basic Multilingual Plane widens a whole string


def parse_json(text: bytes | memoryview) -> Any:
    """The document that `text` is.

    Raises:
        QueryError: it is not JSON.
        ServeError: it is too large, as text or as objects.
    """
    _check_size(bytes(text) if len(text) <= JSON_BYTES else b"", len(text))
    try:
        return _DECODER.decode(str(text, "utf-8"))
    except RecursionError:
        raise QueryError("the request's JSON is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise QueryError(f"the request is not JSON: {error}") from None


def _not_a_number(text: str) -> float:
    raise QueryError(f"{text} is not JSON: numbers are finite")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise QueryError(f"{shown(text)} is beyond what a number can be")
    return number


_DECODER = json.JSONDecoder(parse_constant=_not_a_number, parse_float=_finite)


def _check_size(text: bytes, size: int) -> None:
    """Refuse JSON whose objects would take far more memory than its text."""
    if size > JSON_BYTES:
        raise ServeError(
            f"the request's JSON has {size:,} bytes, at most {JSON_BYTES:,} are taken: send "
            "tensors as bytes",
            413,
            "query",
        )
    decoded = (
        _CHARACTER_BYTES * size
        + _LIST_BYTES * text.count(b"[")
        + _DICT_BYTES * text.count(b"{")
        + _STRING_BYTES * text.count(b'"') // 2
        + _ELEMENT_BYTES * text.count(b",")
    )
    if decoded > DECODED_BYTES:
        raise ServeError(
            f"the request's JSON would take {decoded:,} bytes of memory, at most "
            f"{DECODED_BYTES:,} are taken: send tensors as bytes",
            413,
            "query",
        )


def refuse_unknown(
    noun: str, document: Mapping[str, Any], known: frozenset[str], where: str
) -> None:
    """Refuse names that nothing reads: the client meant something by them.

    Args:
        noun: what an error calls a name: "key" or "parameter".
        document: its keys are looked at.
        known: names that are read.
        where: what an error calls `document`.

    Raises:
        QueryError: a key of `document` is not among `known`.
    """
    if document.keys() <= known:
        return
    name = next(name for name in document if name not in known)
    raise QueryError(
        f"{noun} {shown(name)} of {where} is unknown: there is {', '.join(sorted(known))}"
    )


def object_of(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object at `key`, empty where it is absent. Raises QueryError where it is none."""
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise QueryError(f"{key} must be an object")
    return value


def list_of_objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects listed at `key`. Raises QueryError where there is no such list."""
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise QueryError(f"{key} must be a list of objects")
    return value


def flag(parameters: Mapping[str, Any], name: str) -> bool:
    """A parameter that is true or false, false where absent. Raises QueryError for others."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise QueryError(f"parameter {name} must be true or false")
    return value


def shown(value: object) -> str:
    """A value that a client sent, as JSON and cut short, for an error message."""
    text = json.dumps(value) if value is not None else "absent"
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
