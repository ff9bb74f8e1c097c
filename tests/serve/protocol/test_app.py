"""Open Inference Protocol v2 with real clients against real functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from tests.releases import Made, random_query
from tests.serve.functions import Fleet, Function, body_of, predict


@pytest.fixture(scope="session")
def monolith(packed_release: Made) -> Monolith:
    return Monolith.load(packed_release.bundle)


def triton_inputs(query: Query, binary: bool) -> list[triton.InferInput]:
    made = []
    for name, datatype, array in (
        ("values", "INT64", query.values),
        ("lengths", "INT32", query.lengths),
        ("dense", "FP32", query.dense),
    ):
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        made.append(tensor)
    return made


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_monoliths_predictions(
    fleet: Fleet, monolith: Monolith, binary: bool
) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{fleet.gateway.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    for seed in range(20):
        query = random_query(fleet.made.model, seed, 1 + seed)
        wanted = triton.InferRequestedOutput("prediction", binary_data=binary)
        result = client.infer("small", triton_inputs(query, binary), outputs=[wanted])
        np.testing.assert_allclose(
            result.as_numpy("prediction"), monolith.predict(query), rtol=1e-5, atol=1e-7
        )
    client.close()


def test_response_says_what_happened(fleet: Fleet) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{fleet.gateway.port}")
    query = random_query(fleet.made.model, 1, 4)
    version = fleet.made.release.digest[:12]
    result = client.infer("small", triton_inputs(query, True), version, request_id="query-7")
    response = result.get_response()
    assert response["id"] == "query-7"
    assert response["model_version"] == version
    assert response["parameters"] == {
        "release": fleet.made.release.digest,
        "generation": 0,
        "degraded": False,
        "cold_start": False,
        "fan_out": 3,
    }
    client.close()


def test_metadata(fleet: Fleet) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{fleet.gateway.port}")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    front = fleet.gateway.get("/")[1]
    assert {"/v2", "/openapi.json"} <= set(json.loads(front)["paths"])
    model = client.get_model_metadata("small")
    assert model["inputs"] == [
        {"name": "values", "datatype": "INT64", "shape": [-1]},
        {"name": "lengths", "datatype": "INT32", "shape": [3, -1]},
        {"name": "dense", "datatype": "FP32", "shape": [-1, 5]},
    ]
    client.close()


def test_a_shard_answers_tritonclient_too(fleet: Fleet) -> None:
    shard = fleet.made.release.shard("cold")
    client = triton.InferenceServerClient(f"127.0.0.1:{fleet.shards['cold'].port}")
    lengths = np.zeros((len(shard.tables), 2), np.int32)
    values = triton.InferInput("values", [0], "INT64")
    values.set_data_from_numpy(np.zeros(0, np.int64))
    bags = triton.InferInput("lengths", list(lengths.shape), "INT32")
    bags.set_data_from_numpy(lengths)
    result = client.infer("shard", [values, bags])
    assert result.as_numpy("partial").shape == (2, 8 * len(shard.tables))
    assert result.get_response()["parameters"] == {"digest": shard.digest}
    client.close()


def test_curl(fleet: Fleet, monolith: Monolith, tmp_path: Path) -> None:
    query = random_query(fleet.made.model, 3, 5)
    request = tmp_path / "query.json"
    request.write_bytes(body_of(query, id="from curl"))
    for chunked in ([], ["-H", "Transfer-Encoding: chunked"]):
        done = subprocess.run(
            [
                "curl",
                "-sS",
                "--max-time",
                "60",
                *chunked,
                "--data-binary",
                f"@{request}",
                f"{fleet.gateway.url}/v2/models/small/infer",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        answer = json.loads(done.stdout)
        assert answer["id"] == "from curl"
        found = np.array(answer["outputs"][0]["data"], np.float32)
        np.testing.assert_allclose(found, monolith.predict(query), rtol=1e-5, atol=1e-7)


def test_tower_as_a_function(fleet_with_dense: Fleet, monolith: Monolith) -> None:
    for seed in range(10):
        query = random_query(fleet_with_dense.made.model, seed, 1 + seed)
        found = predict(fleet_with_dense.gateway, fleet_with_dense.made, query)
        np.testing.assert_allclose(found, monolith.predict(query), rtol=1e-5, atol=1e-7)


def test_the_monoliths_server_speaks_the_same(packed_release: Made, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "erless.serve.process.monolith", "--port", "0"]
    server = Function("monolith", tmp_path, [*command, "--model", str(packed_release.bundle)])
    server.ready()
    reference = Monolith.load(packed_release.bundle)
    query = random_query(packed_release.model, 5, 9)
    found = predict(server, packed_release, query)
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    assert server.stop() == 0
