"""Open Inference Protocol v2 over gRPC: tritonclient against real functions, beside HTTP."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc as grpc_core
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.progress import Silent
from erless.serve.protocol.grpc.messages import message_class
from erless.specs.config import Config, GatewayConfig, LocalConfig, TargetsConfig
from tests.authority import private_authority
from tests.conformance.harness import LocalHarness
from tests.releases import Made, make_release, random_query
from tests.serve.functions import Fleet, Function

WAIT_S = 60.0
MESSAGES = [
    f"{call}{part}"
    for call in ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelInfer")
    for part in ("Request", "Response")
] + ["ModelMetadataRequest"]


def given(client: Any, query: Query) -> list[Any]:
    """The inputs of `query` for tritonclient's module `client`."""
    found = []
    for name, datatype, array in (
        ("values", "INT64", query.values),
        ("lengths", "INT32", query.lengths),
        ("dense", "FP32", query.dense),
    ):
        tensor = client.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


@pytest.fixture(scope="module")
def gateway(fleet: Fleet) -> Function:
    return fleet.start_gateway(ERLESS_GRPC="1").ready()


@pytest.fixture
def client(gateway: Function) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{gateway.port}") as opened:
        yield opened


def test_tritonclient_gets_the_monoliths_predictions(
    client: triton.InferenceServerClient, packed_release: Made
) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("small") and not_found(lambda: client.is_model_ready("no"))
    assert client.get_server_metadata().name == "erless-gateway"
    metadata = client.get_model_metadata("small")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("values", "INT64", [-1]),
        ("lengths", "INT32", [3, -1]),
        ("dense", "FP32", [-1, 5]),
    ]
    monolith = Monolith.load(packed_release.bundle)
    version = packed_release.release.digest[:12]
    for seed in range(10):
        query = random_query(packed_release.model, seed, 1 + 40 * seed)
        result = client.infer("small", given(triton, query), version, request_id=f"query {seed}")
        found = result.as_numpy("prediction")
        np.testing.assert_allclose(found, monolith.predict(query), rtol=1e-5, atol=1e-7)
        response = result.get_response()
        assert response.id == f"query {seed}" and response.model_version == version
        assert response.parameters["release"].string_param == packed_release.release.digest
        assert response.parameters["degraded"].bool_param is False


def not_found(call: Any) -> bool:
    return code_of(call) == "NOT_FOUND"


def code_of(call: Any) -> str:
    """The status of a call that fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode.")


def test_answers_are_https_to_the_byte(packed_release: Made, tmp_path: Path) -> None:
    """In one process: a gateway adds partials in the order in which they come."""
    query = random_query(packed_release.model, 3, 50)
    module, bundle = "erless.serve.process.monolith", str(packed_release.bundle)
    command = [sys.executable, "-m", module, "--model", bundle, "--port", "0", "--grpc"]
    function = Function(module, tmp_path, command).ready()
    address = f"127.0.0.1:{function.port}"
    with triton_http.InferenceServerClient(address) as over_http:
        expected = over_http.infer("small", given(triton_http, query)).as_numpy("prediction")
    with triton.InferenceServerClient(address) as over_grpc:
        found = over_grpc.infer("small", given(triton, query)).as_numpy("prediction")
    assert found.tobytes() == expected.tobytes() and found.shape == expected.shape
    assert function.stop() == 0


def test_typed_contents_are_raw_ones(gateway: Function, packed_release: Made) -> None:
    query = random_query(packed_release.model, 7, 3)
    request = service_pb2.ModelInferRequest(model_name="small")
    for name, datatype, field, array in (
        ("values", "INT64", "int64_contents", query.values),
        ("lengths", "INT32", "int_contents", query.lengths),
        ("dense", "FP32", "fp32_contents", query.dense),
    ):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        getattr(tensor.contents, field).extend(array.reshape(-1).tolist())
    with grpc_core.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=message_class("ModelInferResponse").FromString,
        )
        answer = call(request, timeout=WAIT_S)
        request.raw_input_contents.append(b"")
        with pytest.raises(grpc_core.RpcError) as caught:
            call(request, timeout=WAIT_S)
        unknown = channel.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")
        with pytest.raises(grpc_core.RpcError) as no_method:
            unknown(b"", timeout=WAIT_S)
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    expected = Monolith.load(packed_release.bundle).predict(query)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert caught.value.code() is grpc_core.StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents has 1 entries for 3 inputs" in caught.value.details()
    assert no_method.value.code() is grpc_core.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", MESSAGES)
def test_the_messages_are_the_clients_own(name: str) -> None:
    """Every field of ours has the number and type that tritonclient knows it by."""
    theirs = service_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name
    for field in message_class(name).DESCRIPTOR.fields:
        other = theirs[field.name]
        assert (field.number, field.type) == (other.number, other.type)


def test_faults_have_the_protocols_codes(fleet: Fleet, packed_release: Made) -> None:
    """In one gateway of one shard's stopped process: what HTTP says, in gRPC's words."""
    query = random_query(packed_release.model, 1, 8)
    shard = fleet.start_shard("cold").ready()
    urls = {**fleet.urls, packed_release.release.shard("cold").digest: shard.url}
    gateway = fleet.start_gateway(
        urls, ERLESS_GRPC="1", ERLESS_MAX_IN_FLIGHT="1", **{"ERLESS_TOKEN": "open sesame"}
    ).ready()
    token = {"authorization": "Bearer open sesame"}
    with triton.InferenceServerClient(f"127.0.0.1:{gateway.port}") as client:

        def ask(inputs: list[Any] | None = None, **more: Any) -> Any:
            return client.infer("small", inputs or given(triton, query), headers=token, **more)

        assert code_of(lambda: client.infer("small", given(triton, query))) == "UNAUTHENTICATED"
        assert ask().as_numpy("prediction").shape == (8,)
        assert code_of(lambda: ask(given(triton, query)[:2])) == "INVALID_ARGUMENT"
        bad = query.values.copy()
        bad[0] = 1 << 40
        strange = replace(query, values=bad)
        assert code_of(lambda: ask(given(triton, strange))) == "INVALID_ARGUMENT"
        shard.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(lambda: code_of(lambda: ask(client_timeout=1.0)))
            while (
                gateway.get("/metrics", authorization="Bearer open sesame")[1].find(
                    b"erless_in_flight 1"
                )
                < 0
            ):
                assert not slow.done()
            assert code_of(ask) == "RESOURCE_EXHAUSTED"
            assert slow.result() == "DEADLINE_EXCEEDED"
        shard.stop(signal.SIGKILL)
        assert code_of(lambda: ask(client_timeout=WAIT_S)) == "UNAVAILABLE"
    gateway.stop()


def test_grpc_over_tls(fleet: Fleet, packed_release: Made, tmp_path: Path) -> None:
    authority = private_authority(tmp_path)
    files = dict.fromkeys(("ERLESS_TLS_CERTIFICATE", "ERLESS_TLS_KEY"), str(authority.server))
    gateway = fleet.start_gateway(ERLESS_GRPC="1", **files).ready()
    query = random_query(packed_release.model, 4, 8)
    address, roots = f"127.0.0.1:{gateway.port}", str(authority.certificate)
    with triton.InferenceServerClient(address, ssl=True, root_certificates=roots) as client:
        found = client.infer("small", given(triton, query)).as_numpy("prediction")
    expected = Monolith.load(packed_release.bundle).predict(query)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert gateway.stop() == 0


def test_http_is_spoken_over_http2_too(gateway: Function) -> None:
    """As Knative's proxies do to a port that is named h2c."""
    url = f"{gateway.url}/v2/models/small"
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--http2-prior-knowledge",
            "--max-time",
            "60",
            url,
            "-w",
            "%{http_version}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("}2") and '"name": "small"' in done.stdout


def test_a_deploy_fails_no_query(packed_release: Made, tmp_path: Path) -> None:
    """The supervisor's sockets, a drain and the next gateway, seen by clients of gRPC."""
    second = make_release(tmp_path / "second", store=packed_release.store, seed=9)
    target = LocalTarget(
        Config(
            gateway=GatewayConfig(grpc=True),
            targets=TargetsConfig(local=LocalConfig(state=tmp_path / "state")),
        ),
        Timing(poll_s=0.2),
    )
    harness = LocalHarness(tmp_path)
    query = random_query(packed_release.model, 1, 8)
    releases: list[str] = []
    over = threading.Event()

    def load(address: str) -> None:
        with triton.InferenceServerClient(address) as client:
            while not over.is_set():
                answer = client.infer("small", given(triton, query), client_timeout=WAIT_S)
                releases.append(answer.get_response().parameters["release"].string_param)

    try:
        url = target.deploy(harness.desired(packed_release), Silent(), WAIT_S).url
        with ThreadPoolExecutor(2) as pool:
            clients = [pool.submit(load, url.removeprefix("http://")) for _ in range(2)]
            while not releases:
                assert not any(client.done() for client in clients)
            target.deploy(harness.desired(second), Silent(), WAIT_S)
            switched = len(releases)
            while len(releases) < switched + 20 and not any(c.done() for c in clients):
                pass
            over.set()
            for client in clients:
                client.result()
    finally:
        over.set()
        harness.end()
    assert {releases[0], releases[-1]} == {packed_release.release.digest, second.release.digest}
