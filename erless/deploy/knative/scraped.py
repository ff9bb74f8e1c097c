"""What the functions of a deployment have gathered, for the alarm that watches for scrapers."""

from __future__ import annotations

from collections.abc import Mapping

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import POD
from erless.deploy.kubernetes.pod_metrics import read_samples, speaks_tls

__all__ = ["Gathers", "read_gathers"]

GATEWAY = "gateway"  # as the label of its kind says

Gathers = dict[tuple[str, str], float]  # (digest, pod) → rows


def read_gathers(api: Api, scope: names.Scope, before: Mapping[tuple[str, str], float]) -> Gathers:
    """Rows that each running pod has gathered so far; of one that does not answer as `before`.

    Nothing where a gateway has never answered, since its clients' token opens its metrics alone:
    without its own rows every shard's share of all looks larger than it is.

    Raises:
        DeployError: pods may not be listed.
    """
    pods, _ = api.list(POD, scope.namespace, scope.selector)
    places = {
        pod["metadata"]["name"]: pod["metadata"].get("annotations", {}).get(names.DIGEST, "")
        for pod in pods
        if pod.get("status", {}).get("phase") == "Running"
    }
    gateways = {
        pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"][names.KIND] == GATEWAY
    }
    secured = {pod["metadata"]["name"] for pod in pods if speaks_tls(pod)}
    samples = read_samples(api, scope.namespace, sorted(places), secured)
    gathers: Gathers = {}
    for pod, digest in places.items():
        counted = samples[pod].get("gathers", before.get((digest, pod)))
        if counted is not None:
            gathers[digest, pod] = counted
        elif pod in gateways:
            return {}
    return gathers
