"""Queries as bytes that only need to be sent, and what their answers should be.

Bodies are made once, before the first query leaves, so that a generator on one core spends its time
on sending.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import from_bfloat16
from erless.dlrm.graph_queries import GraphQueryFile
from erless.dlrm.infer_request import DTYPES, infer_request, query_tensors
from erless.dlrm.queries import Query, QueryFile
from erless.errors import ArtifactError, QueryError, ServeError
from erless.specs.features import NamedTensor

__all__ = [
    "JSON_LENGTH",
    "Answer",
    "Body",
    "Expected",
    "build",
    "from_file",
    "from_graph_file",
    "read_answer",
    "read_expected",
    "within",
]

JSON_LENGTH = "Inference-Header-Content-Length"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Body:
    """One request: the body, and the length of its JSON. `index` is the query's place in a file."""

    data: bytes
    json_length: int
    batch: int
    index: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One response. `prediction` is float32, flat: the output of that name, or else the first."""

    prediction: Floats
    release: str
    degraded: bool
    cold: bool


@dataclass(frozen=True)
class Expected:
    """The monolith's predictions of a query file, (S,), cut into queries of `batch`."""

    predictions: Floats
    batch: int

    def error(self, index: int, prediction: Floats) -> float:
        """Largest relative difference to query `index`'s predictions; inf where sizes differ."""
        expected = self.predictions[index * self.batch : (index + 1) * self.batch]
        if expected.shape != prediction.shape:
            return float("inf")
        scale = np.maximum(np.abs(expected), np.float32(1e-12))
        return float(np.max(np.abs(prediction - expected) / scale, initial=0.0))


def build(query: Query, index: int = 0) -> Body:
    """`query` as a request of the Open Inference Protocol with binary tensors."""
    return _body(query_tensors(query), query.batch, index)


def _body(inputs: Mapping[str, NDArray[Any]], batch: int, index: int) -> Body:
    """A request for `inputs`."""
    head, data = infer_request(inputs)
    return Body(b"".join([head, *data]), len(head), batch, index)


def read_answer(body: bytes, json_length: int | None) -> Answer:
    """A response's prediction and parameters.

    Raises:
        ServeError: it is not an answer of the protocol.
    """
    try:
        document = json.loads(body if json_length is None else body[:json_length])
        prediction = _prediction(document["outputs"], body, json_length)
        parameters = document.get("parameters", {})
        return Answer(
            prediction,
            str(parameters.get("release", "")),
            bool(parameters.get("degraded", False)),
            bool(parameters.get("cold_start", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ServeError(
            f"not an answer: {type(error).__name__}: {error}", kind="garbage"
        ) from None


def _prediction(outputs: Sequence[dict[str, Any]], body: bytes, json_length: int | None) -> Floats:
    """The output called `prediction`, or else the first."""
    names = [output["name"] for output in outputs]
    place = names.index("prediction") if "prediction" in names else 0
    output = outputs[place]
    if json_length is None:
        return np.asarray(output["data"], np.float32).reshape(-1)
    begin = json_length + sum(o["parameters"]["binary_data_size"] for o in outputs[:place])
    end = begin + output["parameters"]["binary_data_size"]
    values = np.frombuffer(body[begin:end], np.dtype(DTYPES[output["datatype"]]))
    if output["datatype"] == "BF16":
        return from_bfloat16(values)
    return values.astype(np.float32, copy=False)


def from_file(
    path: Path, most: int, batch: int | None = None, tables: Sequence[str] = ()
) -> Iterator[Body]:
    """The first `most` queries of a query file, their bags in the order of `tables`, if given.

    Raises:
        ArtifactError, QueryError: the file is damaged, or has queries to another model.
    """
    file = QueryFile(path, batch)
    if tables:
        file = file.in_order_of(tables)
    if not len(file):
        raise QueryError(f"{path}: no queries")
    for index in range(min(most, len(file))):
        yield build(file[index], index)


def from_graph_file(
    path: Path, most: int, inputs: Sequence[NamedTensor], batch: int | None = None
) -> Iterator[Body]:
    """The first `most` queries of a file of a graph's `inputs`. Raises as `from_file`."""
    file = GraphQueryFile(path, inputs, batch)
    if not len(file):
        raise QueryError(f"{path}: no queries")
    for index in range(min(most, len(file))):
        query = file[index]
        yield _body(query, max(map(len, query.values())), index)


def within(bodies: Iterable[Body], most_bytes: int) -> list[Body]:
    """As many of `bodies` as take `most_bytes` in memory; the first in any case."""
    kept: list[Body] = []
    left = most_bytes
    for body in bodies:
        left -= len(body.data)
        if kept and left < 0:
            break
        kept.append(body)
    return kept


def read_expected(path: Path, batch: int) -> Expected:
    """What `erless predict --monolith … -o json` said about the query file.

    Raises:
        ArtifactError: not its output.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Expected(np.asarray(document["predictions"], np.float32), batch)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not the output of `erless predict -o json`") from error
