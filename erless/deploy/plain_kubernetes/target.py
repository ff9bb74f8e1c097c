"""Target `kubernetes`: a cluster without Knative. What the verbs call."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.address import find_address
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.dry_run import DryRun
from erless.deploy.kubernetes.kinds import (
    AUTOSCALER,
    CERTIFICATES,
    CRD,
    DEPLOYMENT,
    HTTP_SCALER,
    KSERVICE,
    PLAIN_KINDS,
    SECURED,
    SERVICE,
    Kind,
)
from erless.deploy.kubernetes.mirror import Deadline
from erless.deploy.kubernetes.pod_names import PLAIN
from erless.deploy.kubernetes.pod_sizing import size_note
from erless.deploy.kubernetes.releases import GatewayRecord, called_services
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.kubernetes.schema import check_objects
from erless.deploy.kubernetes.target import ClusterTarget
from erless.deploy.plain_kubernetes.diff import compare
from erless.deploy.plain_kubernetes.gateway_record import read_record
from erless.deploy.plain_kubernetes.render import render
from erless.deploy.plain_kubernetes.rollout import PlainRollout
from erless.deploy.plain_kubernetes.scaling_apis import ScalingApis, configured, discover
from erless.deploy.plain_kubernetes.status import read_status
from erless.deploy.target import Change, Desired, Status
from erless.errors import DeployError, ForbiddenError
from erless.progress import Progress
from erless.specs.cluster import ClusterConfig
from erless.specs.config import Config

__all__ = ["KubernetesTarget"]

NEW_S = 4.0


class KubernetesTarget(ClusterTarget):
    """Functions as Deployments, Services and autoscalers."""

    name = "kubernetes"
    gateway_kind = SERVICE
    function_kind = DEPLOYMENT
    owned_kinds = PLAIN_KINDS
    pods = PLAIN

    def section(self, config: Config) -> ClusterConfig:
        """See `ClusterTarget.section`."""
        return config.targets.kubernetes

    @cached_property
    def _apis(self) -> ScalingApis:
        """What the cluster scales by; what is configured, where none answers."""
        options = self.settings.plain
        apis = discover(self.api, options) if self.answers() else configured(options)
        # what wakes functions speaks HTTP
        return replace(apis, zero=False) if self.settings.mutual_tls else apis

    def render(self, desired: Desired, settings: ClusterSettings) -> Rendered:
        """See `ClusterTarget.render`."""
        rendered = render(desired, settings, self._apis)
        check_objects(rendered.objects)
        return rendered

    def read_record(self, service: Object | None) -> GatewayRecord:
        """See `ClusterTarget.read_record`."""
        return read_record(service)

    def called(self, revision: str, scope: names.Scope) -> set[str]:
        """See `ClusterTarget.called`."""
        live = self.api.get(DEPLOYMENT, scope.namespace, revision)
        return called_services(live["spec"]["template"]["spec"]) if live else set()

    def compare(self, rendered: Rendered, scope: names.Scope, trial: DryRun) -> tuple[Change, ...]:
        """See `ClusterTarget.compare`."""
        return compare(self.api, rendered, scope, trial)

    def rollout(self, scope: names.Scope, progress: Progress, deadline: Deadline) -> PlainRollout:
        """See `ClusterTarget.rollout`."""
        keep = self.settings.options.keep_releases
        return PlainRollout(self.api, scope, progress, deadline, keep, self._apis.zero)

    def read_status(self, scope: names.Scope) -> Status:
        """See `ClusterTarget.read_status`."""
        service = self.api.get(SERVICE, scope.namespace, scope.gateway)
        return read_status(self.api, scope, self.url(service) if service else "")

    def check_cluster(self, scope: names.Scope, rendered: Rendered) -> None:
        """Refuse names of what Knative runs, and mutual TLS where nobody makes certificates."""
        if self.settings.mutual_tls and self.api.get(CRD, None, CERTIFICATES) is None:
            raise DeployError(
                f"security.mutual_tls: the cluster at {self.api.host} has no cert-manager, which "
                "makes the functions' certificates"
            )
        if self.api.list(KSERVICE, scope.namespace, scope.selector)[0]:
            raise DeployError(
                f"target knative has deployed this model in namespace {scope.namespace}: destroy "
                "it there first, or take another namespace or --model"
            )

    def url(self, service: Object) -> str:
        """See `ClusterTarget.url`: the load balancer's, where it has one."""
        balancers = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
        for balancer in balancers:
            host = balancer.get("hostname") or balancer.get("ip") or ""
            return f"http://[{host}]" if ":" in host else f"http://{host}"
        meta = service["metadata"]
        return f"http://{meta['name']}.{meta['namespace']}.{names.CLUSTER_LOCAL}"

    def find_address(self, url: str, scope: names.Scope) -> str:
        """See `ClusterTarget.find_address`: an address of the gateway's own Service.

        One that was just made is tried for a while: nodes learn of it within a second or two.
        """
        live = self.api.get(SERVICE, scope.namespace, scope.gateway)
        services = [live] if live else []
        until = time.monotonic() + (NEW_S if live and _age_s(live) < NEW_S else 0.0)
        address = find_address(self.api, url, lambda: services)
        while not address and time.monotonic() < until:
            time.sleep(0.2)
            address = find_address(self.api, url, lambda: services)
        return address

    def service_of(self, document: Object) -> str:
        """See `ClusterTarget.service_of`: a gateway has a Deployment for each release."""
        labels = document["spec"]["template"]["metadata"]["labels"]
        return str(labels.get(PLAIN.service, document["metadata"]["name"]))

    def owned(self, kind: Kind, scope: names.Scope) -> list[Object]:
        """See `ClusterTarget.owned`: without what a controller made of what is ours."""
        try:
            objects = super().owned(kind, scope)
        except ForbiddenError:
            unused = (kind == HTTP_SCALER and not self._apis.zero) or (
                kind in SECURED and not self.settings.mutual_tls
            )
            if unused:
                return []
            raise
        if kind not in (DEPLOYMENT, SERVICE, AUTOSCALER):
            return objects
        return [each for each in objects if not each["metadata"].get("ownerReferences")]

    def notes(self, desired: Desired, url: str) -> tuple[str, ...]:
        """What this cluster does not do that the plan counts on."""
        return (
            self._zero_note(desired),
            self._metrics_note(),
            size_note(desired.plan, self.settings),
            self._balancer_note(url),
        )

    def _zero_note(self, desired: Desired) -> str:
        """Which functions do not rest though they may."""
        remote = {shard.name for shard in desired.release.remote}
        may = [shard for shard in desired.plan.shards if shard.name in remote]
        kept = sum(shard.scaling.min_scale == 0 for shard in may)
        if self._apis.zero or not kept:
            return ""
        return (
            f"{kept} functions that may rest at zero keep a replica each: the cluster has no HTTP "
            "add-on of KEDA"
        )

    def _metrics_note(self) -> str:
        if self._apis.measured:
            return ""
        return (
            "the cluster has no metrics API: autoscalers leave replicas as they are; install "
            "metrics-server, or an adapter for custom metrics"
        )

    def _balancer_note(self, url: str) -> str:
        if self.settings.gateway.visibility != "public" or names.CLUSTER_LOCAL not in url:
            return ""
        return "gateway.visibility is public, but no load balancer has given it an address yet"


def _age_s(document: Object) -> float:
    created = document["metadata"].get("creationTimestamp")
    if not created:
        return NEW_S
    return (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
