"""What `status` reads of pods that serve."""

from __future__ import annotations

import pytest
from kubernetes import client

from erless.deploy.kubernetes import status
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.names import MANAGED, MANAGER, Scope
from tests.deploy.fake_cluster import FakeCluster


def test_rates_are_of_requests_whatever_else_a_pod_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status, "RATE_S", 0.01)
    cluster = FakeCluster()
    try:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        meta = {"name": "p", "namespace": "recs", "labels": {MANAGED: MANAGER}}
        cluster.store(("pods", "recs", "p"), {"metadata": meta, "status": ready})
        cluster.requests_total["p"], cluster.gathers_total["p"] = 7.0, 70.0
        cluster.throttling = {
            "cpu_periods": 10.0,
            'request_seconds_bucket{le="0.1"}': 7.0,
            'request_seconds_bucket{le="+Inf"}': 7.0,
        }
        api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 1.0)
        (rates,) = status.observe(api, Scope("recs")).rates.values()
    finally:
        cluster.close()
    assert (rates.rps, rates.p95_ms) == (0.0, 100.0)
