"""A gateway that a reconciler starts together with its functions takes no query before they can."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import numpy as np

from tests.releases import Made, random_query
from tests.serve.functions import Fleet, predict


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_new_release_s_gateway_is_ready_once_its_functions_are(
    packed_release: Made, tmp_path: Path
) -> None:
    made = packed_release
    with Fleet(made, tmp_path) as fleet:
        (late, *_), port = fleet.shards, free_port()
        urls = fleet.urls | {made.release.shard(late).digest: f"http://127.0.0.1:{port}"}
        nobody = f"http://127.0.0.1:{free_port()}"  # no gateway of this release answers yet
        waiting = fleet.start_gateway(urls, ERLESS_GATEWAY_URL=nobody)
        stopped = fleet.start_gateway(urls, ERLESS_GATEWAY_URL=nobody)
        impatient = fleet.start_gateway(
            urls, ERLESS_GATEWAY_URL=nobody, ERLESS_FUNCTIONS_WAIT_S="1"
        )
        # the release answers already: a function that is down keeps no replica from joining
        fleet.start_gateway(urls, ERLESS_GATEWAY_URL=fleet.gateway.url).ready()
        reason = impatient.event("these functions did not get ready")[f"shard {late}"]
        assert reason
        impatient.ready()
        for gateway in (waiting, stopped):
            assert gateway.get("/v2/health/live")[0] == 200
            assert gateway.get("/v2/health/ready")[0] == 503
        began = time.monotonic()
        assert stopped.stop() == 0
        assert time.monotonic() - began < 5
        fleet.start_shard(late, PORT=str(port))
        query = random_query(made.model, 8, 16)
        ours, theirs = (predict(each, made, query) for each in (waiting.ready(), fleet.gateway))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
