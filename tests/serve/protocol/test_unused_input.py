"""What a request says is used, or refused by name: never ignored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from erless.dlrm.reference import Monolith
from erless.specs.model import DlrmTower, ModelSpec, Pooling, TableSpec
from tests.releases import Made, make_release, random_query
from tests.serve.functions import Fleet, Function, predict, request_of
from tests.serve.protocol.test_fast_lane import stored_ids

MODEL = ModelSpec(
    name="mixed",
    dense_features=5,
    tables=(
        TableSpec(name="user", rows=900, dim=8, pooling=Pooling.WEIGHTED_SUM),
        TableSpec(name="item", rows=500, dim=8, pooling=Pooling.MEAN),
        TableSpec(name="shop", rows=300, dim=8),
    ),
    tower=DlrmTower(bottom_mlp=(16, 8), top_mlp=(16, 1)),
)
INFER = "/v2/models/mixed/infer"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("mixed"), model=MODEL)


@pytest.fixture(scope="module")
def mixed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(made, tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def monolith(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    command = [sys.executable, "-m", "erless.serve.process.monolith", "--port", "0"]
    function = Function(
        "monolith", tmp_path_factory.mktemp("whole"), [*command, "--model", str(made.bundle)]
    )
    yield function.ready()
    function.stop()


@pytest.fixture(scope="module", params=["shards", "monolith"])
def server(request: pytest.FixtureRequest, mixed: Fleet, monolith: Function) -> Function:
    return mixed.gateway if request.param == "shards" else monolith


def inputs_of(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in request["inputs"]}


def refused(server: Function, request: dict[str, Any], path: str = INFER) -> str:
    """Why the request is a 400."""
    status, answer = server.post(path, json.dumps(request).encode())
    assert status == 400, answer
    return str(answer["error"])


def test_weights_of_weighted_tables_are_used(server: Function, made: Made) -> None:
    query = random_query(MODEL, 3, 6)
    expected = Monolith.load(made.bundle).predict(query)
    np.testing.assert_allclose(predict(server, made, query), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("table", [1, 2])
def test_weights_of_other_tables_are_refused(server: Function, table: int) -> None:
    query = random_query(MODEL, 4, 6)
    request = request_of(query)
    begin = int(query.lengths[:table].sum())
    sample = int(np.flatnonzero(query.lengths[table])[1])
    position = begin + int(query.lengths[table, :sample].sum())
    inputs_of(request)["weights"]["data"][position] = 2.5
    spec = MODEL.tables[table]
    assert (
        f"table {spec.name}, sample {sample}: weights[{position}] is 2.5, but the table pools by "
        f"{spec.pooling.value}" in refused(server, request)
    )


def test_weights_of_another_type_are_refused_alike(server: Function) -> None:
    request = request_of(random_query(MODEL, 5, 4))
    weights = inputs_of(request)["weights"]
    weights |= {"datatype": "INT64", "data": [1] * len(weights["data"])}
    assert refused(server, request) == 'input weights is "INT64", expected FP32'


def test_a_model_without_weights_takes_none(fleet: Fleet) -> None:
    request = request_of(random_query(fleet.made.model, 5, 4))
    count = len(inputs_of(request)["values"]["data"])
    weights = {"name": "weights", "datatype": "FP32", "shape": [count], "data": [1.0] * count}
    request["inputs"].append(weights)
    why = refused(fleet.gateway, request, "/v2/models/small/infer")
    assert why == 'input "weights" is unknown: there are values, lengths, dense'


def test_a_shard_refuses_weights_that_it_would_ignore(fleet: Fleet) -> None:
    lengths = np.zeros((len(fleet.made.release.shard("frozen").tables), 1), np.int32)
    lengths[0] = 1
    request = {
        "inputs": [
            {"name": "values", "datatype": "INT64", "shape": [1], "data": stored_ids(fleet)[:1]},
            {
                "name": "lengths",
                "datatype": "INT32",
                "shape": list(lengths.shape),
                "data": lengths.tolist(),
            },
            {"name": "weights", "datatype": "FP32", "shape": [1], "data": [0.5]},
        ]
    }
    why = refused(fleet.shards["frozen"], request, "/v2/models/shard/infer")
    assert "table user, sample 0: weights[0] is 0.5, but" in why


Addition = Callable[[dict[str, Any]], Any]
UNKNOWN: dict[str, tuple[Addition, str]] = {
    "a key": (lambda r: r.update(priority=1), 'key "priority" of the request'),
    "a parameter": (
        lambda r: r.update(parameters={"timeout": 5}),
        'parameter "timeout" of the request',
    ),
    "a parameter of shards": (
        lambda r: r.update(parameters={"packed": True}),
        'parameter "packed" of the request',
    ),
    "a parameter of an output": (
        lambda r: r.update(outputs=[{"name": "prediction", "parameters": {"classification": 3}}]),
        'parameter "classification" of output prediction',
    ),
    "a key of an output": (
        lambda r: r.update(outputs=[{"name": "prediction", "datatype": "FP16"}]),
        'key "datatype" of output prediction',
    ),
    "a parameter of an input": (
        lambda r: r["inputs"][0].update(parameters={"shared_memory_region": "x"}),
        'parameter "shared_memory_region" of input values',
    ),
    "a key of an input": (
        lambda r: r["inputs"][2].update(layout="C"),
        'key "layout" of input dense',
    ),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_unknown_is_refused_by_name(server: Function, what: str) -> None:
    add, reason = UNKNOWN[what]
    request = request_of(random_query(MODEL, 5, 4))
    add(request)
    assert f"{reason} is unknown: there is " in refused(server, request)
