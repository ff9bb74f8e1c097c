"""A model cut from a graph, behind its gateway: an ordinary model to whoever asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import urllib3

from erless.dlrm.graph_queries import write_graph_queries
from erless.dlrm.hashing import xxh64_strings
from erless.errors import QueryError
from erless.observe.loadtest.drawn_queries import generate
from erless.observe.loadtest.encoded_queries import JSON_LENGTH, from_graph_file, read_answer
from erless.observe.loadtest.served_model import discover
from erless.specs.features import HashedIds
from erless.specs.model import ModelSpec
from erless.specs.plan import Tier
from tests.graphs import ITEMS, Ranker, ranker_inputs, ranker_spec, write_ranker
from tests.releases import Cut, Made, pack_bundle_of
from tests.serve.functions import Fleet, Function

TIERS = (
    Cut("resident", Tier.RESIDENT, 0.02),
    Cut("hot", Tier.HOT, 0.2),
    Cut("warm", Tier.WARM, 0.4),
    Cut("cold", Tier.COLD, 0.7),
    Cut("frozen", Tier.FROZEN, 1.0),
)


def pack_ranker(folder: Path, spec: ModelSpec) -> Made:
    """The ranker's release of five shards."""
    write_ranker(folder / "model", Ranker().eval(), spec)
    return pack_bundle(folder, spec)


def pack_bundle(folder: Path, spec: ModelSpec) -> Made:
    """The release of the bundle `model` in `folder`, in five shards."""
    return pack_bundle_of(folder, spec, TIERS)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("graph")
    with Fleet(pack_ranker(folder, ranker_spec()), folder, ERLESS_GRPC="1") as started:
        yield started


def ask(
    gateway: Function, inputs: dict[str, np.ndarray], outputs: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """What tritonclient gets."""
    client = triton.InferenceServerClient(f"127.0.0.1:{gateway.port}")
    given = []
    for name, array in inputs.items():
        datatype = "BYTES" if array.dtype == object else triton.np_to_triton_dtype(array.dtype)
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        given.append(tensor)
    wanted = [triton.InferRequestedOutput(name) for name in outputs] or None
    answer = client.infer("ranker", given, outputs=wanted)
    names = [output["name"] for output in answer.get_response()["outputs"]]
    found = {name: answer.as_numpy(name) for name in names}
    client.close()
    return found


def whole(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's own answer."""
    with torch.inference_mode():
        ctr, cvr = Ranker().eval()(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    return {"ctr": ctr.numpy(), "cvr": cvr.numpy()}


@pytest.mark.parametrize(("batch", "length"), [(1, 3), (2, 2), (33, 7), (2, 10_000)])
def test_sharded_answers_are_the_models_own(fleet: Fleet, batch: int, length: int) -> None:
    inputs = ranker_inputs(batch, length, seed=batch)
    found, wanted = ask(fleet.gateway, inputs), whole(inputs)
    assert list(found) == ["ctr", "cvr"]
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-7)


def test_grpc_gets_them_too(fleet: Fleet) -> None:
    inputs = ranker_inputs(5, 7, seed=4)
    given = []
    for name, array in inputs.items():
        datatype = triton_grpc.np_to_triton_dtype(array.dtype)
        given.append(triton_grpc.InferInput(name, list(array.shape), datatype))
        given[-1].set_data_from_numpy(array)
    wanted = [triton_grpc.InferRequestedOutput("cvr")]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{fleet.gateway.port}") as client:
        answer = client.infer("ranker", given, outputs=wanted)
    assert [output.name for output in answer.get_response().outputs] == ["cvr"]
    np.testing.assert_allclose(answer.as_numpy("cvr"), whole(inputs)["cvr"], rtol=1e-5, atol=1e-7)


def test_a_load_tests_queries_get_the_models_own_answers(fleet: Fleet, tmp_path: Path) -> None:
    samples = ranker_inputs(4000, 6, seed=3)
    write_graph_queries(tmp_path / "queries.safetensors", samples, batch=4)
    url = f"http://127.0.0.1:{fleet.gateway.port}"
    served = discover(url)
    bodies = from_graph_file(tmp_path / "queries.safetensors", 2000, served.inputs)
    found = []
    with urllib3.PoolManager() as pool:
        for body in bodies:
            headers = {JSON_LENGTH: str(body.json_length)}
            response = pool.request("POST", url + served.path, body=body.data, headers=headers)
            assert response.status == 200, response.data
            answer = read_answer(response.data, int(response.headers[JSON_LENGTH]))
            assert answer.release == served.release and len(answer.prediction) == 4
            found.append(answer.prediction)
    assert len(found) == 1000
    wanted = whole(samples)["ctr"]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=1e-7)


def test_a_load_test_of_a_graph_needs_queries(fleet: Fleet) -> None:
    served = discover(f"http://127.0.0.1:{fleet.gateway.port}")
    with pytest.raises(QueryError, match="takes inputs of its own: give --queries"):
        next(generate(served, 1))


def test_it_names_its_own_inputs_and_answers_the_outputs_asked_for(fleet: Fleet) -> None:
    document = json.loads(fleet.gateway.get("/v2/models/ranker")[1])
    assert [(t["name"], t["datatype"], t["shape"]) for t in document["inputs"]] == [
        ("user", "INT64", [-1]),
        ("history", "INT64", [-1, -1]),
        ("target", "INT64", [-1]),
        ("tags", "INT64", [-1, 4]),
        ("price", "FP32", [-1, 1]),
    ]
    assert [t["name"] for t in document["outputs"]] == ["ctr", "cvr"]
    assert list(ask(fleet.gateway, ranker_inputs(3, 4), ("cvr",))) == ["cvr"]


def test_its_api_description_has_its_own_tensors(fleet: Fleet) -> None:
    paths = json.loads(fleet.gateway.get("/openapi.json")[1])["paths"]
    infer = paths["/v2/models/ranker/infer"]["post"]
    asked = infer["requestBody"]["content"]["application/json"]["schema"]["properties"]
    names = [t["properties"]["name"]["const"] for t in asked["inputs"]["prefixItems"]]
    assert names == ["user", "history", "target", "tags", "price"]
    history = asked["inputs"]["prefixItems"][1]["properties"]
    assert history["data"]["items"] == {"type": "integer"}
    assert len(history["shape"]["prefixItems"]) == 2
    assert asked["outputs"]["items"]["properties"]["name"]["enum"] == ["ctr", "cvr"]
    body = {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.tolist()}
            for (name, array), datatype in zip(
                ranker_inputs(2, 3).items(), [*["INT64"] * 4, "FP32"], strict=True
            )
        ],
        "outputs": [{"name": "cvr"}],
    }
    status, answer = fleet.gateway.post("/v2/models/ranker/infer", json.dumps(body).encode())
    assert (status, [output["name"] for output in answer["outputs"]]) == (200, ["cvr"])


def refused(fleet: Fleet, **changes: Any) -> str:
    inputs = ranker_inputs(3, 4) | changes
    with pytest.raises(triton.InferenceServerException) as caught:
        ask(fleet.gateway, inputs)
    assert caught.value.status() == "400"
    return str(caught.value)


def test_what_does_not_fit_is_refused_by_name(fleet: Fleet) -> None:
    three = ranker_inputs(3, 4)
    assert "input target has 2 samples, user has 3" in refused(fleet, target=three["target"][:2])
    assert 'input user is "INT32", expected INT64' in refused(
        fleet, user=three["user"].astype(np.int32)
    )
    assert "input tags: shape is [3, 3], expected [-1, 4]" in refused(
        fleet, tags=three["tags"][:, :3]
    )
    bad = three["target"].copy()
    bad[2] = ITEMS
    assert "feature f_target, sample 2: id 2000 is outside 0 … 1999" in refused(fleet, target=bad)


def test_the_tower_may_be_a_function_of_its_own(tmp_path: Path, fleet: Fleet) -> None:
    with Fleet(fleet.made, tmp_path, dense=True) as apart:
        inputs = ranker_inputs(5, 6)
        found, wanted = ask(apart.gateway, inputs), whole(inputs)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-7)


def test_unknown_ids_are_zero_or_hashed_and_told(tmp_path: Path) -> None:
    spec = ranker_spec(
        f_history={"per": "request"},
        f_tags={"per": "request"},
        f_target={"unknown": "zero"},
        f_user={"rule": HashedIds(rows=900, seed=7)},
        per={"history": "request", "tags": "request"},
        user_type="BYTES",
    )
    with Fleet(pack_ranker(tmp_path, spec), tmp_path) as fleet:
        inputs = ranker_inputs(4, 5)
        inputs["user"] = np.array([b"anna", b"bert", "zoë".encode(), b""], object)
        inputs["history"], inputs["tags"] = inputs["history"][:1], inputs["tags"][:1]
        inputs["target"][1] = -3
        found = ask(fleet.gateway, inputs)
        assert fleet.gateway.metric("erless_unknown_ids_total") == 1
    model = Ranker().eval()
    with torch.inference_mode():
        rows, mask = model.front(torch.from_numpy(inputs["history"]).expand(4, -1))
        target = torch.from_numpy(inputs["target"])
        vectors = model.items(target.clamp(0)) * (target >= 0).unsqueeze(1)
        users = xxh64_strings(inputs["user"], 7) % np.uint64(900)
        ctr, _ = model.tower(
            mask,
            torch.from_numpy(inputs["price"]),
            model.items(rows),
            vectors,
            model.tags(torch.from_numpy(inputs["tags"]).expand(4, -1).contiguous()),
            model.users(torch.from_numpy(users.astype(np.int64))),
        )
    np.testing.assert_allclose(found["ctr"], ctr.numpy(), rtol=1e-5, atol=1e-7)


def test_a_killed_shard_makes_no_answer_wrong(tmp_path: Path, fleet: Fleet) -> None:
    """Queries fail, or are right, when a shard is killed under them."""
    with Fleet(fleet.made, tmp_path) as own:
        inputs = ranker_inputs(8, 5, seed=3)
        wanted = whole(inputs)["ctr"]
        right = failed = 0
        victim = own.shards["warm"]
        for number in range(26):
            if number == 20:
                victim.process.kill()
            try:
                found = ask(own.gateway, inputs)["ctr"]
            except triton.InferenceServerException as error:
                assert error.status() in ("502", "503", "504"), error
                failed += 1
                continue
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
            right += 1
        assert right >= 20
        assert failed > 0
