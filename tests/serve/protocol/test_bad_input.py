"""Whatever a client sends: a 4xx with the reason, and the next query is right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.dlrm.reference import Monolith
from tests.releases import Made, random_query
from tests.serve.functions import Fleet, Function, body_of, predict, request_of

INFER = "/v2/models/small/infer"
Spoil = Callable[[dict[str, Any]], None]


def tensor(request: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in request["inputs"] if each["name"] == name)


def setting(name: str, key: str, value: Any) -> Spoil:
    def spoil(request: dict[str, Any]) -> None:
        tensor(request, name)[key] = value

    return spoil


def element(name: str, index: int, value: Any) -> Spoil:
    def spoil(request: dict[str, Any]) -> None:
        data = np.array(tensor(request, name)["data"], object).reshape(-1).tolist()
        data[index] = value
        tensor(request, name)["data"] = data

    return spoil


BAD: dict[str, tuple[Spoil, str]] = {
    "an id beyond its table": (element("values", 2, 3000), "table user, sample 0: row id 3000 at "),
    "a negative id": (element("values", 0, -1), "table user, sample 0: row id -1 at values[0]"),
    "an id beyond int64": (element("values", 0, 1 << 70), "a number is beyond INT64"),
    "an id that is no integer": (element("values", 1, 1.5), "element 1 is 1.5, not INT64"),
    "an id that is a string": (element("values", 0, "1"), 'element 0 is "1", not INT64'),
    "an id that is true": (element("values", 0, True), "element 0 is true, not INT64"),
    "a negative length": (element("lengths", 0, -3), "table user, sample 0: length -3 is negative"),
    "lengths that disagree": (element("lengths", 0, 77), "lengths sum to"),
    "a length beyond int32": (element("lengths", 0, 1 << 31), "a number is beyond INT32"),
    "an unknown input": (setting("dense", "name", "dense2"), 'input "dense2" is unknown'),
    "an input twice": (setting("dense", "name", "values"), "input values is given twice"),
    "another datatype": (setting("dense", "datatype", "FP64"), 'dense is "FP64", expected FP32'),
    "no datatype": (setting("dense", "datatype", None), "dense is absent, expected FP32"),
    "too few tables": (setting("lengths", "shape", [2, 4]), "expected [3, -1]"),
    "too many dimensions": (setting("lengths", "shape", [3, 4, 1]), "expected [3, -1]"),
    "a negative size": (setting("lengths", "shape", [3, -4]), "input lengths: shape is [3, -4]"),
    "a huge size": (setting("values", "shape", [1 << 60]), "input values: shape is"),
    "a size that is no number": (setting("values", "shape", ["7"]), 'shape is ["7"]'),
    "no shape": (setting("values", "shape", None), "shape is absent"),
    "fewer elements than the shape": (setting("dense", "data", [1.0]), "data has 1"),
    "no data": (setting("dense", "data", None), "input dense has no data"),
    "both forms": (setting("dense", "parameters", {"binary_data_size": 80}), "has both data and"),
    "parameters that are none": (setting("dense", "parameters", 3), "parameters must be an object"),
    "a missing input": (lambda r: r["inputs"].pop(), "input dense is missing"),
    "no inputs": (lambda r: r.pop("inputs"), "inputs must be a list of objects"),
    "inputs of another kind": (lambda r: r.update(inputs=[1]), "inputs must be a list of objects"),
    "an unknown output": (lambda r: r.update(outputs=[{"name": "x"}]), 'output "x" is unknown'),
    "an output without a name": (lambda r: r.update(outputs=[{}]), "an output has no name"),
    "an id of another kind": (lambda r: r.update(id=7), "id must be a string"),
    "a flag of another kind": (
        lambda r: r.update(parameters={"binary_data_output": 1}),
        "must be true or false",
    ),
}


@pytest.fixture(scope="module")
def reference(packed_release: Made) -> Monolith:
    return Monolith.load(packed_release.bundle)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_json_request(fleet: Fleet, case: str) -> None:
    spoil, reason = BAD[case]
    request = copy.deepcopy(request_of(random_query(fleet.made.model, 4, 4, longest=8)))
    spoil(request)
    status, answer = fleet.gateway.post(INFER, json.dumps(request).encode())
    assert status == 400, answer
    assert reason in answer["error"]


RAW = {
    "nothing": (b"", "not JSON"),
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "not JSON"),
    "not an object": (b"[1]", "not a JSON object"),
    "nested too deeply": (b"[" * 100_000, "nested too deeply"),
    "not a number": (b'{"inputs": [NaN]}', "NaN is not JSON"),
    "a huge number": (b'{"inputs": [' + b"9" * 5000 + b"]}", "not JSON"),
}


@pytest.mark.parametrize("case", RAW)
def test_a_body_that_is_no_request(fleet: Fleet, case: str) -> None:
    body, reason = RAW[case]
    status, answer = fleet.gateway.post(INFER, body)
    assert status == 400, answer
    assert reason in answer["error"]


def binary(fleet: Fleet, **sizes: int) -> tuple[bytes, bytes]:
    query = random_query(fleet.made.model, 5, 4)
    tensors = [
        ("values", "INT64", query.values),
        ("lengths", "INT32", query.lengths),
        ("dense", "FP32", query.dense),
    ]
    listed = [
        {
            "name": n,
            "datatype": d,
            "shape": list(a.shape),
            "parameters": {"binary_data_size": a.nbytes + sizes.get(n, 0)},
        }
        for n, d, a in tensors
    ]
    return json.dumps({"inputs": listed}).encode(), b"".join(a.tobytes() for _, _, a in tensors)


@pytest.mark.parametrize(
    ("sizes", "cut", "announced", "reason"),
    [
        ({"dense": 4}, 0, None, "takes 80 bytes"),
        ({"values": -8}, 0, None, "binary_data_size is"),
        ({}, -4, None, "input dense: 80 bytes announced, 76 are left"),
        ({}, 6, None, "6 bytes are left behind the last tensor"),
        ({}, 0, "99999999", "Inference-Header-Content-Length is"),
        ({}, 0, "-1", "Inference-Header-Content-Length is"),
        ({}, 0, "20", "not JSON"),
    ],
)
def test_binary_sizes_that_do_not_fit(
    fleet: Fleet, sizes: dict[str, int], cut: int, announced: str | None, reason: str
) -> None:
    text, tensors = binary(fleet, **sizes)
    tensors = tensors[:cut] if cut < 0 else tensors + b"\0" * cut
    headers = {"inference_header_content_length": announced or str(len(text))}
    status, answer = fleet.gateway.post(INFER, text + tensors, **headers)
    assert status == 400, answer
    assert reason in answer["error"]


def test_numbers_that_are_not_finite(fleet: Fleet) -> None:
    text, tensors = binary(fleet)
    bad = tensors[:-4] + np.float32(np.nan).tobytes()
    headers = {"inference_header_content_length": str(len(text))}
    status, answer = fleet.gateway.post(INFER, text + bad, **headers)
    assert (status, answer["error"]) == (400, "dense[3, 4] is nan: not a finite number")


def test_a_prediction_that_overflows(fleet: Fleet) -> None:
    request = request_of(random_query(fleet.made.model, 6, 1))
    tensor(request, "dense")["data"] = [3e38, -3e38, 3e38, -3e38, 3e38]
    status, answer = fleet.gateway.post(INFER, json.dumps(request).encode())
    if status != 200:
        assert "not finite" in answer["error"]
    else:
        assert np.isfinite(answer["outputs"][0]["data"]).all()


def test_too_many_samples(fleet: Fleet) -> None:
    status, answer = fleet.gateway.post(INFER, body_of(random_query(fleet.made.model, 7, 4097, 1)))
    assert (status, answer["error"]) == (400, "4,097 samples, at most 4,096 are taken")


def test_an_empty_batch_and_empty_bags(fleet: Fleet, reference: Monolith) -> None:
    nobody = random_query(fleet.made.model, 8, 0)
    assert predict(fleet.gateway, fleet.made, nobody).shape == (0,)
    nothing = random_query(fleet.made.model, 8, 3, longest=0)
    found = predict(fleet.gateway, fleet.made, nothing)
    np.testing.assert_allclose(found, reference.predict(nothing), rtol=1e-5)


def test_ids_of_another_shard(fleet: Fleet) -> None:
    """Of all ids of a table, one shard stores some; it names the first that it does not."""
    shard: Function = fleet.shards["hot"]
    tables = len(fleet.made.release.shard("hot").tables)
    lengths = np.zeros((tables, 2), np.int32)
    lengths[0, 1] = 3000
    listed = [
        {"name": "values", "datatype": "INT32", "shape": [3000], "data": list(range(3000))},
        {"name": "lengths", "datatype": "INT32", "shape": [tables, 2], "data": lengths.tolist()},
    ]
    status, answer = shard.post("/v2/models/shard/infer", json.dumps({"inputs": listed}).encode())
    assert status == 400
    assert "table user, sample 1: row id" in answer["error"]
    assert "is not stored in shard" in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/v3", 404),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/small/versions/000000000000", 404),
        ("GET", "/v2/models/small/versions", 404),
        ("GET", "/v2/models/small/nothing", 404),
        ("GET", INFER, 405),
        ("PUT", INFER, 405),
        ("POST", "/v2/health/live", 405),
        ("DELETE", "/v2/models/small", 405),
        ("HEAD", "/v2/health/ready", 200),
        ("GET", "/v2/health/live/", 200),
        ("GET", "/v2?x=1", 200),
    ],
)
def test_paths_and_methods(fleet: Fleet, method: str, path: str, status: int) -> None:
    found, body = fleet.gateway.get(path, method)
    assert found == status
    assert (method == "HEAD") == (body == b"")


@pytest.mark.parametrize("value", ["soon", "nan", "1e99", "0", "-5"])
def test_a_deadline_that_is_none(fleet: Fleet, value: str) -> None:
    body = body_of(random_query(fleet.made.model, 9, 2))
    status, answer = fleet.gateway.post(INFER, body, erless_deadline_ms=value)
    assert (status, "erless-deadline-ms" in answer["error"]) == (400, True)


def test_a_token(fleet: Fleet, reference: Monolith) -> None:
    gateway = fleet.start_gateway(ERLESS_TOKEN="secret-1").ready()  # noqa: S106
    query = random_query(fleet.made.model, 10, 2)
    for wrong in ({}, {"authorization": "Bearer secret-2"}, {"authorization": "Basic secret-1"}):
        status, answer = gateway.post(INFER, body_of(query), **wrong)
        assert (status, answer) == (401, {"error": "a bearer token is needed"})
        assert gateway.get("/v2/models/small", **wrong)[0] == 401
    assert gateway.get("/v2/health/ready")[0] == 200
    status, answer = gateway.post(INFER, body_of(query), authorization="Bearer secret-1")
    assert status == 200
    found = answer["outputs"][0]["data"]
    np.testing.assert_allclose(found, reference.predict(query), rtol=1e-5, atol=1e-7)
    gateway.stop()


def test_an_output_asked_for_again_and_again_is_answered_once_or_not_at_all(fleet: Fleet) -> None:
    request = request_of(random_query(fleet.made.model, 5, 4))
    request["outputs"] = [{"name": "prediction"}] * 20_000
    status, answer = fleet.gateway.post(INFER, json.dumps(request).encode())
    assert (status, answer["error"]) == (400, "output prediction is asked for twice")
    request["outputs"] = [{"name": "predictions"}]
    status, answer = fleet.gateway.post(INFER, json.dumps(request).encode())
    assert status == 400
    assert 'output "predictions" is unknown: there is prediction' in answer["error"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": [' + b"[]," * 1_300_000 + b"1]}",
        b'{"inputs": [' + b"{}," * 1_300_000 + b"1]}",
        b'{"inputs": [' + b"1234567," * 1_300_000 + b"1]}",
        b'{"x": "' + "\U0001f600".encode() + b"y" * 11_000_000 + b'"}',
    ],
    ids=["lists", "objects", "numbers", "text"],
)
def test_json_is_bounded_by_what_it_decodes_to(fleet: Fleet, body: bytes) -> None:
    before = peak_bytes(fleet.gateway)
    status, answer = fleet.gateway.post(INFER, body)
    assert status == 413
    assert "send tensors as bytes" in answer["error"]
    assert peak_bytes(fleet.gateway) - before < 60 << 20


def peak_bytes(function: Function) -> int:
    """The most memory that the process ever held."""
    lines = Path(f"/proc/{function.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_query_beyond_the_memory_in_flight_is_told_so(
    packed_release: Made, fleet: Fleet, tmp_path: Path
) -> None:
    gateway = Function(
        "gateway",
        tmp_path,
        ERLESS_STORE=packed_release.store,
        ERLESS_RELEASE=packed_release.release.digest,
        ERLESS_SHARD_URLS=json.dumps(fleet.urls),
        ERLESS_MEMORY_IN_FLIGHT_BYTES="100000",
    ).ready()
    status, answer = gateway.post(INFER, body_of(random_query(fleet.made.model, 5, 400, 1)))
    assert status == 503
    assert "bytes of memory, and queries in flight hold" in answer["error"]
    assert gateway.post(INFER, body_of(random_query(fleet.made.model, 5, 4, 1)))[0] == 200
    assert gateway.stop() == 0


def test_a_traceparent_that_is_none_is_dropped(fleet: Fleet) -> None:
    body = body_of(random_query(fleet.made.model, 5, 4))
    for trace in ("x" * 16_000, "00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-short", "ff-" * 9):
        status, answer = fleet.gateway.post(INFER, body, traceparent=trace)
        assert status == 200, answer


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_beyond_all_numbers(fleet: Fleet, number: str) -> None:
    request = request_of(random_query(fleet.made.model, 6, 1))
    tensor(request, "dense")["data"] = ["here", 0.0, 0.0, 0.0, 0.0]
    body = json.dumps(request).replace('"here"', number).encode()
    status, answer = fleet.gateway.post(INFER, body)
    assert status == 400, answer
    assert number.strip("-") in answer["error"]


def test_json_nested_deeper_than_any_tensor(fleet: Fleet) -> None:
    request = request_of(random_query(fleet.made.model, 6, 1))
    tensor(request, "dense")["data"] = [[[[0.0, 0.0, 0.0, 0.0, 0.0]]]]
    status, answer = fleet.gateway.post(INFER, json.dumps(request).encode())
    assert status == 400
    assert "element 0 is [[0.0" in answer["error"]
