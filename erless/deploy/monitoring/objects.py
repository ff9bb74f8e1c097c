"""Dashboards and alerts as objects, for Prometheus' operator and the sidecar of Grafana."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import yaml

from erless.deploy.kubernetes import names
from erless.specs.latency import BUCKETS_S

__all__ = ["DASHBOARDS", "dashboard", "monitoring_objects", "rules"]

Object = dict[str, Any]
DASHBOARDS = ("overview", "release", "shard", "freshness")
SLA = "@SLA@"  # in rules.yaml
SIDECAR = {"grafana_dashboard": "1"}  # the label that Grafana's Helm chart looks for


def dashboard(name: str) -> Object:
    """A dashboard in Grafana's own words."""
    text = files(__package__).joinpath(f"grafana/{name}.json").read_text(encoding="utf-8")
    document: Object = json.loads(text)
    return document


def rules(sla_ms: float) -> Object:
    """Groups of Prometheus rules; the objective is the bucket that `sla_ms` lies in.

    >>> rules(80)["groups"][0]["rules"][5]["annotations"]["summary"]
    '{{ $value | humanizePercentage }} of queries miss the SLA of 0.1 s, for hours'
    """
    text = files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8")
    bucket = next((bound for bound in BUCKETS_S if bound * 1e3 >= sla_ms), BUCKETS_S[-1])
    document: Object = yaml.safe_load(text.replace(SLA, str(bucket)))
    return document


def monitoring_objects(release: str, namespace: str, sla_ms: float) -> Iterator[Object]:
    """A PrometheusRule, and a ConfigMap for each dashboard.

    Args:
        release: the digest that all objects carry.
        namespace: where they go.
        sla_ms: p95 objective of a query.
    """
    yield {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": names.metadata("erless", release, namespace=namespace),
        "spec": rules(sla_ms),
    }
    for name in DASHBOARDS:
        text = json.dumps(dashboard(name), indent=1, sort_keys=True)
        yield {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": names.metadata(
                f"erless-dashboard-{name}", release, namespace=namespace, labels=SIDECAR
            ),
            "data": {f"erless-{name}.json": text},
        }
