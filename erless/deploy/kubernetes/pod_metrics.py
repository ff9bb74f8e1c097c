"""Pods' own metrics, read through the API server's proxy: nothing but a kubeconfig is needed."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import POD
from erless.deploy.kubernetes.render.pods import PORT
from erless.deploy.kubernetes.render.rendered import Object
from erless.errors import DeployError

__all__ = ["COUNTERS", "Samples", "read_samples", "speaks_tls"]

Samples = dict[str, float]
THREADS = 16
TIMEOUT_S = 2.0
_SUMS = {
    "erless_requests_total": "requests",
    "erless_gathers_total": "gathers",
    "erless_disk_reads_total": "disk",
    "erless_cpu_periods": "periods",
    "erless_cpu_throttled_periods": "throttled",
}
COUNTERS = frozenset(_SUMS.values())  # whatever else a pod's samples have is a bound
_SAMPLE = re.compile(r"^(erless_\w+)(?:\{([^}]*)\})? (\S+)")
_LE = re.compile(r'le="([^"]+)"')


def speaks_tls(pod: Object) -> bool:
    """Whether the kubelet asks the pod by HTTPS."""
    containers = pod.get("spec", {}).get("containers", [])
    asked = [container.get("readinessProbe", {}).get("httpGet", {}) for container in containers]
    return any(get.get("scheme") == "HTTPS" for get in asked)


def read_samples(
    api: Api, namespace: str, pods: Sequence[str], secured: Collection[str] = ()
) -> dict[str, Samples]:
    """Counters of each of the named pods, all asked at once; none of one that does not answer.

    `requests`, `gathers`, `disk`: of all requests, rows and reads; `periods`, `throttled`: of its
    CPU limit; under its bound, each cumulative bucket of the requests' seconds. Pods in `secured`
    speak TLS.
    """
    if not pods:
        return {}

    def read(pod: str) -> Samples:
        scheme = "https:" if pod in secured else ""
        path = POD.path(namespace, f"{scheme}{pod}:{PORT}", "proxy/metrics")
        try:
            return _parsed(api.text(path, timeout_s=TIMEOUT_S))
        except (DeployError, Missing):
            return {}

    with ThreadPoolExecutor(min(THREADS, len(pods))) as pool:
        return dict(zip(pods, pool.map(read, pods), strict=True))


def _parsed(text: str) -> Samples:
    """The counters in Prometheus' text."""
    samples: Samples = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        name, labels, value = match[1], match[2] or "", float(match[3])
        if name in _SUMS:
            samples[_SUMS[name]] = samples.get(_SUMS[name], 0.0) + value
        elif name == "erless_request_seconds_bucket":
            bound = _LE.search(labels)
            if bound:
                samples[bound[1]] = samples.get(bound[1], 0.0) + value
    return samples
