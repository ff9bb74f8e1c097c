"""Where a function stands: for how long it has been ready."""

from __future__ import annotations

import time

import pytest

from erless.serve.files import Source
from erless.serve.functions.sparse import load_sparse
from erless.serve.metrics import Metrics
from erless.serve.protocol.standing import UP_FOR_S, Standing
from erless.serve.settings import read_settings
from tests.releases import Made

READY_AT = 10.0


@pytest.mark.parametrize(("up_s", "told"), [(0.0, 0.0), (0.5, 0.5), (UP_FOR_S, None), (1e9, None)])
def test_up_for_as_long_as_it_is_ready(
    packed_release: Made, up_s: float, told: float | None
) -> None:
    digest = packed_release.release.remote[0].digest
    variables = {"ERLESS_STORE": packed_release.store, "ERLESS_SHARD": digest}
    metrics = Metrics("sparse", digest, "", "0", time.monotonic)
    served = load_sparse(Source(packed_release.store), read_settings("sparse", variables), metrics)
    standing = Standing(lambda: READY_AT, behind_s=1)
    assert standing.up_s(READY_AT + up_s) is None  # it loads
    standing.get_ready(served)
    assert standing.up_s(READY_AT + up_s) == told
    served.close()
