"""The same model and the same split as Ray Serve deployments, behind the same wire.

    python -m loadtests.peers.ray_serve --store releases --release DIGEST --port 8100

One deployment per remote shard and one for the gateway, which holds the resident shard, combines
and runs the tower. Files, kernels and arithmetic are erless's own; what differs is what carries a
query: Ray's HTTP proxy, its deployment handles, its replicas; RAY_SERVE_THROUGHPUT_OPTIMIZED=1 is
its own advice for throughput. Needs `pip install 'ray[serve]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from erless.dlrm.rows import Buckets
from erless.serve.files import Source, open_gateway, open_shard, open_tower
from erless.serve.protocol.infer import decode, encode
from erless.serve.protocol.metadata import model_facts
from erless.serve.protocol.queries import query_inputs
from erless.serve.protocol.tensors import TensorSpec
from erless.serve.towers import open_predict
from erless.specs.stored import load_release

MOST_AT_ONCE = 256
OPTIONS: dict[str, Any] = {
    "num_replicas": 1,
    "max_ongoing_requests": MOST_AT_ONCE,
    "ray_actor_options": {"num_cpus": 0},  # all share this machine, as erless's processes do
}


@serve.deployment(**OPTIONS)
class Shard:
    """One remote shard: gathers and pools."""

    def __init__(self, store: str, digest: str) -> None:
        self._opened = open_shard(Source(store), digest)

    async def pool(self, values: Any, lengths: Any) -> Any:
        """Partials of the bags that are not empty."""
        return self._opened.shard.pool_packed(values, lengths, None)


@serve.deployment(**OPTIONS)
class Gateway:
    """Bucketize, call the shards, combine, predict."""

    def __init__(self, store: str, digest: str, numbers: list[int], *shards: Any) -> None:
        source = Source(store)
        self._opened = open_gateway(source, digest)
        tower = open_tower(source, digest)
        self._predict = open_predict(tower.path, tower.model)
        self._remote = dict(zip(numbers, shards, strict=True))
        self._model = self._opened.release.model
        self._digest = digest
        self._specs = query_inputs(self._model)
        self._outputs = (TensorSpec("prediction", ("FP32",), (-1,)),)

    async def __call__(self, request: Request) -> Response:
        """The Open Inference Protocol, as far as a load generator needs it."""
        base = f"/v2/models/{self._model.name}"
        if request.url.path == f"{base}/infer":
            return await self._infer(request)
        if request.url.path == base:
            return JSONResponse(
                {
                    "name": self._model.name,
                    "versions": [self._digest[:12]],
                    "inputs": [spec.describe() for spec in self._specs],
                    "parameters": {"digest": self._digest, **model_facts(self._model)},
                }
            )
        return JSONResponse({"name": "ray-serve", "models": [self._model.name]})

    async def _infer(self, request: Request) -> Response:
        body = await request.body()
        headers = {name.encode(): value.encode() for name, value in request.headers.items()}
        query = decode(memoryview(body), headers, self._specs, self._outputs)
        inputs, opened = query.inputs, self._opened
        buckets: Buckets = opened.routing.bucketize(inputs["values"], inputs["lengths"], None)
        touched = buckets.touched()
        calls = {}
        for number in touched:
            if number in self._remote:
                bucket = buckets[number]
                calls[number] = self._remote[number].pool.remote(bucket.values, bucket.lengths)
        out = opened.combiner.begin(buckets.batch)
        opened.combiner.keep(out, buckets.split)
        for number in touched:
            if number not in calls:
                bucket = buckets[number]
                partial = opened.resident[number].pool_packed(bucket.values, bucket.lengths, None)
                opened.combiner.add(out, number, partial, bucket.lengths, packed=True)
        for number, partial in zip(calls, await asyncio.gather(*calls.values()), strict=True):
            opened.combiner.add(out, number, partial, buckets[number].lengths, packed=True)
        pooled = opened.combiner.finish(out, inputs["lengths"])
        prediction = self._predict(np.asarray(inputs["dense"]), pooled)
        answer = encode(
            self._model.name,
            self._digest[:12],
            query,
            {"prediction": prediction},
            {"release": self._digest, "fan_out": len(calls)},
        )
        headers = {name.decode(): value.decode() for name, value in answer.headers}
        return Response(
            b"".join(bytes(chunk) for chunk in answer.body),
            headers=headers,
            media_type="application/octet-stream",
        )


def main() -> None:
    """Serve until a signal; prints one line of JSON when ready."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--release", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1, help="of each deployment")
    options = parser.parse_args()
    source = Source(options.store)
    release = load_release(source.open(), options.release)
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    remote = {
        number: shard for number, shard in enumerate(release.shards) if shard in release.remote
    }
    shards = [
        Shard.options(name=shard.name, num_replicas=options.replicas).bind(
            options.store, shard.digest
        )
        for shard in remote.values()
    ]
    gateway = Gateway.options(num_replicas=options.replicas)
    app = gateway.bind(options.store, options.release, list(remote), *shards)
    serve.run(app, name="rm", route_prefix="/")
    print(
        json.dumps({"message": "ready", "port": options.port, "ray": ray.__version__}), flush=True
    )
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
