"""Queries as bytes that only need to be sent, and what their answers should be.

Bodies are made once, before the first query leaves, so that a generator on one core spends its time
on sending. They come from a query file, or are drawn from the model's metadata: rows by a power law
of locality P (their order is made up: only the profile knows which rows are hot), or by a
profile's counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import urllib3
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import from_bfloat16
from erless.dlrm.graph_queries import GraphQueryFile, served_inputs
from erless.dlrm.infer_request import DTYPES, infer_request, query_tensors
from erless.dlrm.queries import Query, QueryFile
from erless.dlrm.workload import PowerLaw, RowOrder
from erless.errors import ArtifactError, QueryError, ServeError, first_line
from erless.specs.features import NamedTensor
from erless.specs.profile import MANIFEST, Profile
from erless.storage.tensors import TensorFile

__all__ = [
    "JSON_LENGTH",
    "Answer",
    "Body",
    "Expected",
    "ServedModel",
    "build",
    "discover",
    "from_file",
    "from_graph_file",
    "generate",
    "read_answer",
    "read_expected",
]

JSON_LENGTH = "Inference-Header-Content-Length"
POOLING = 32  # ids per bag where nobody says
DISCOVERY_S = 5.0  # a gateway that does not answer within this is down
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ServedModel:
    """What the gateway says about the model that it serves.

    `inputs` are those of a model cut from a graph, else none.
    """

    name: str
    version: str
    release: str
    dense_features: int
    tables: tuple[dict[str, Any], ...]
    batch: int = 32
    inputs: tuple[NamedTensor, ...] = ()

    @property
    def path(self) -> str:
        """Where queries are sent."""
        return f"/v2/models/{self.name}/infer"


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


def discover(
    host: str,
    model: str | None = None,
    token: str | None = None,
    wait_s: float = DISCOVERY_S,
    connect: str = "",
) -> ServedModel:
    """Ask the gateway at `host` what it serves; tries again for `wait_s`.

    connect: HOST:PORT to connect to, where the URL's own host is not known here.

    Raises:
        ServeError: it is down, not ready, or not a gateway.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    there = host
    if connect:
        parts = urlsplit(host)
        headers["host"] = parts.netloc
        there = f"{parts.scheme}://{connect}"
    name = model or _served_name(_get(there, "/v2", headers, wait_s))
    metadata = _get(there, f"/v2/models/{name}", headers, wait_s)
    parameters = metadata.get("parameters", {})
    listed = metadata.get("inputs", ())
    try:
        inputs = served_inputs(listed)
        widths = [tensor["shape"][-1] for tensor in listed if tensor["name"] == "dense"]
    except (ValueError, KeyError, TypeError, IndexError):
        inputs, widths = (), []
    if (not inputs and not widths) or (inputs and not parameters.get("tables")):
        raise ServeError(f"{host}: {name} is not a recommendation model that erless serves")
    return ServedModel(
        name=name,
        version=str((metadata.get("versions") or [""])[0]),
        release=str(parameters.get("digest", "")),
        dense_features=0 if inputs else int(widths[0]),
        tables=tuple(parameters.get("tables", ())),
        batch=int(parameters.get("batch", 32)),
        inputs=inputs,
    )


def _served_name(server: dict[str, Any]) -> str:
    models: Sequence[Any] = server.get("models") or server.get("parameters", {}).get("models") or ()
    if len(models) != 1:
        raise ServeError(
            f"{server.get('name', 'the server')} does not say which model it serves: "
            "name it with --model"
        )
    return str(models[0])


def _get(host: str, path: str, headers: dict[str, str], wait_s: float) -> dict[str, Any]:
    """The JSON document at `path`; what may pass (no connection, 5xx) is tried until `wait_s`."""
    url = host.rstrip("/") + path
    if not url.startswith(("http://", "https://")):
        raise ServeError(f"{host}: a gateway's URL begins with http:// or https://")
    end = time.monotonic() + wait_s
    with urllib3.PoolManager(retries=False, timeout=wait_s) as pool:
        while True:
            try:
                response = pool.request("GET", url, headers=headers)
            except urllib3.exceptions.HTTPError as error:
                reason = first_line(error)
            else:
                if response.status == 200:
                    return _document(url, response.data)
                reason = f"HTTP {response.status}"
                if response.status < 500:
                    raise ServeError(f"{url}: {reason}", status=response.status)
            if time.monotonic() > end:
                raise ServeError(f"{url}: no answer within {wait_s:g} s ({reason})", kind="down")
            time.sleep(0.2)


def _document(url: str, body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ServeError(f"{url}: not a server of the Open Inference Protocol")
    return document


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


def generate(
    served: ServedModel,
    count: int,
    *,
    locality: float = 0.9,
    batch: int | None = None,
    pooling: int | None = None,
    profile: Path | None = None,
    seed: int = 0,
) -> Iterator[Body]:
    """Draw `count` queries that fit the served model.

    Raises:
        QueryError: the gateway does not tell its tables, or `locality` is not within 0 … 1.
        ArtifactError: the profile is damaged.
    """
    if served.inputs:
        raise QueryError(f"{served.name} takes inputs of its own: give --queries, a file of them")
    if not served.tables:
        raise QueryError(f"{served.name}: the gateway does not tell its tables: give --queries")
    if not 0 < locality < 1:
        raise QueryError(f"locality is {locality:g}: it must lie between 0 and 1")
    samples = batch or served.batch
    known = _profiled(profile) if profile else {}
    generator = np.random.default_rng(seed)
    orders = [
        RowOrder.seeded(int(table["rows"]), np.random.default_rng([seed, index]))
        for index, table in enumerate(served.tables)
    ]
    for index in range(count):
        columns, lengths = [], []
        for table, order in zip(served.tables, orders, strict=True):
            rows = int(table["rows"])
            ids = known.get(str(table["name"]))
            usual = ids.pooling if ids else float(table.get("pooling_factor") or POOLING)
            per_bag = max(1, round(pooling or usual))
            lengths.append(np.full(samples, per_bag, np.int32))
            if ids is None:
                ranks = PowerLaw(rows, locality).sample(generator, samples * per_bag)
                columns.append(order.ids(ranks))
            else:
                columns.append(ids.sample(generator, samples * per_bag))
        wide = any(int(table["rows"]) >= 2**31 for table in served.tables)
        values = np.concatenate(columns)
        query = Query(
            dense=generator.standard_normal((samples, served.dense_features), np.float32),
            values=values.astype(np.int64) if wide else values.astype(np.int32),
            lengths=np.stack(lengths),
            weights=_weights(served, [len(column) for column in columns], generator),
        )
        yield build(query, index)


def _weights(
    served: ServedModel, sizes: Sequence[int], generator: np.random.Generator
) -> Floats | None:
    """Weights for `sizes` ids of each table: random where they are used, 1 elsewhere."""
    weighted = [table.get("pooling") == "weighted_sum" for table in served.tables]
    if not any(weighted):
        return None
    parts = [
        generator.random(size, np.float32) if used else np.ones(size, np.float32)
        for used, size in zip(weighted, sizes, strict=True)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Counted:
    """Row ids as often as a profile counted them."""

    ids: NDArray[np.int64]
    totals: NDArray[np.int64]
    pooling: float

    def sample(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        drawn = generator.integers(int(self.totals[-1]), size=count)
        return self.ids[np.searchsorted(self.totals, drawn, side="right")]


def _profiled(folder: Path) -> dict[str, _Counted]:
    counted = {}
    for access in Profile.load(folder / MANIFEST).tables:
        if access.counts is not None and access.accesses:
            file = TensorFile(folder / access.counts.path)
            totals = np.cumsum(file.map("counts").astype(np.int64))
            counted[access.table] = _Counted(
                file.map("ids").astype(np.int64), totals, access.pooling_factor
            )
    return counted


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
