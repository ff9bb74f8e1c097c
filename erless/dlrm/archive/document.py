"""JSON documents of an archive, measured before they are parsed.

A parser that builds Python objects needs up to a hundred bytes for one of JSON, and recurses once
per nested list. Both are counted on the raw text first, by operations that run at memory speed.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from erless.errors import ArtifactError

__all__ = ["parse_document", "parse_json"]

MAX_DEPTH = 48  # torch's own documents nest 14 deep
MAX_VALUES = 600_000  # about 60 per node of a graph, so 10,000 nodes

Document = TypeVar("Document", bound=BaseModel)


def parse_document(model: type[Document], data: bytes, where: str) -> Document:
    """The JSON text `data` as a `model`.

    Args:
        where: how errors name the document.

    Raises:
        ArtifactError: it is not JSON, too large, or not as `model` says.
    """
    try:
        return model.model_validate(parse_json(data, where))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise ArtifactError(f"{where}: {place}: {_reason(first)}") from error
    except RecursionError as error:
        raise ArtifactError(f"{where}: nested too deeply") from error


def parse_json(data: bytes, where: str) -> Any:
    """JSON text as Python data: every key once, no NaN, bounded in depth and number of values.

    Raises:
        ArtifactError: it is anything else.
    """
    _measure(data, where)
    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: damaged JSON: {str(error)[:200]}") from error


def _measure(data: bytes, where: str) -> None:
    """Count values and depth without parsing: what stands between quotes is left out first."""
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = b"".join(plain.split(b'"')[::2])
    text = np.frombuffer(structure, np.uint8)
    opened = (text == ord("[")) | (text == ord("{"))
    closed = (text == ord("]")) | (text == ord("}"))
    values = int(opened.sum()) + structure.count(b",")
    if values > MAX_VALUES:
        raise ArtifactError(f"{where}: {values:,} values, at most {MAX_VALUES:,}")
    steps = opened[opened | closed]
    depth = int(np.cumsum(np.where(steps, 1, -1)).max(initial=0))
    if depth > MAX_DEPTH:
        raise ArtifactError(f"{where}: nested {depth:,} deep, at most {MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice[:100]!r} stands twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _reason(error: Any) -> str:
    """What pydantic says, in the words of this page."""
    last = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        if last == "as_graph":
            return "holds a graph within the graph (a branch, a loop, torch.no_grad)"
        return f"{last[:100]!r} is not known here"
    return str(error["msg"]).removeprefix("Value error, ")[:200]
