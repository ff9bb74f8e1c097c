"""Target `knative`: a Kubernetes cluster with Knative Serving. What the verbs call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import urlsplit

from erless.deploy.knative.alerts import deployment_alerts
from erless.deploy.knative.diff import compare
from erless.deploy.knative.gateway_record import read_record, traffic_after, with_traffic
from erless.deploy.knative.limits import check_limits
from erless.deploy.knative.render import render
from erless.deploy.knative.rollout import KnativeRollout
from erless.deploy.knative.schema import check_objects
from erless.deploy.knative.status import read_status
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.address import find_address, ingress_services
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.dry_run import DryRun
from erless.deploy.kubernetes.kinds import CRD, KNATIVE_KINDS, KSERVICE, REVISION, SERVICE
from erless.deploy.kubernetes.mirror import Deadline
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.kubernetes.pod_sizing import size_note
from erless.deploy.kubernetes.releases import GatewayRecord, called_services
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.kubernetes.target import ClusterTarget
from erless.deploy.target import Change, Desired, Status, Watched
from erless.deploy.webhook import webhook_url
from erless.errors import DeployError
from erless.progress import Progress
from erless.specs.alerts import Alert
from erless.specs.cluster import ClusterConfig
from erless.specs.config import Config

__all__ = ["KnativeTarget"]


class KnativeTarget(ClusterTarget):
    """Functions as Knative Services."""

    name = "knative"
    gateway_kind = function_kind = KSERVICE
    owned_kinds = KNATIVE_KINDS
    pods = KNATIVE

    def section(self, config: Config) -> ClusterConfig:
        """See `ClusterTarget.section`."""
        return config.targets.knative

    def called(self, revision: str, scope: names.Scope) -> set[str]:
        """See `ClusterTarget.called`."""
        live = self.api.get(REVISION, scope.namespace, revision)
        return called_services(live["spec"]) if live else set()

    def render(self, desired: Desired, settings: ClusterSettings) -> Rendered:
        """See `ClusterTarget.render`."""
        rendered = render(desired, settings)
        check_objects(rendered.objects)
        return rendered

    def read_record(self, service: Object | None) -> GatewayRecord:
        """See `ClusterTarget.read_record`."""
        return read_record(service)

    def tried(self, rendered: Rendered, scope: names.Scope) -> Rendered:
        """The objects with the traffic that they have once `deploy` is through."""
        record, canary_percent = self.record(scope), self.settings.knative.canary_percent
        lines = traffic_after(record, rendered.revision, canary_percent)
        gateway = with_traffic(rendered.gateway, lines, record.history, None)
        return replace(rendered, gateway=gateway)

    def compare(self, rendered: Rendered, scope: names.Scope, trial: DryRun) -> tuple[Change, ...]:
        """See `ClusterTarget.compare`."""
        return compare(self.api, rendered, scope, trial)

    def rollout(self, scope: names.Scope, progress: Progress, deadline: Deadline) -> KnativeRollout:
        """See `ClusterTarget.rollout`."""
        options = self.settings.knative
        return KnativeRollout(
            self.api, scope, progress, deadline, options.keep_releases, options.canary_percent
        )

    def alerts(
        self, lines: int, follow: bool, watched: Callable[[], Watched] = Watched
    ) -> Iterator[Alert]:
        """See `Alerting.alerts`. Who follows leaves Events, and posts to the webhook."""
        url = webhook_url(self._config.decoys.alert.webhook_env)
        return deployment_alerts(self.api, self.scope, watched, lines, follow, url)

    def read_status(self, scope: names.Scope) -> Status:
        """See `ClusterTarget.read_status`."""
        return read_status(self.api, scope)

    def check_cluster(self, scope: names.Scope, rendered: Rendered) -> None:
        """Refuse a cluster without Knative, or whose Knative would refuse what is rendered."""
        if self.api.get(CRD, None, "services.serving.knative.dev") is None:
            raise DeployError(f"the cluster at {self.api.host} has no Knative Serving")
        service = self.api.get(SERVICE, scope.namespace, scope.gateway)
        if service is not None and not service["metadata"].get("ownerReferences"):
            raise DeployError(
                f"namespace {scope.namespace} has a Service {scope.gateway} that is none of "
                "Knative's: destroy what target kubernetes deployed there, or take another "
                "namespace or --model"
            )
        public = self.settings.gateway.visibility == "public"
        check_limits(self.api, (*rendered.functions, rendered.gateway), public=public)

    def url(self, service: Object) -> str:
        """See `ClusterTarget.url`."""
        return str(service.get("status", {}).get("url", ""))

    def find_address(self, url: str, scope: names.Scope) -> str:
        """See `ClusterTarget.find_address`."""
        spaces = self.settings.knative.ingress_namespaces
        return find_address(self.api, url, lambda: ingress_services(self.api, url, spaces))

    def notes(self, desired: Desired, url: str) -> tuple[str, ...]:
        """Where the gateway is not reached as configured, and what Knative does not do."""
        return self._visibility_note(url), size_note(desired.plan, self.settings)

    def _visibility_note(self, url: str) -> str:
        """Why a gateway that shall be public is not; empty where it is, or shall not be."""
        host = urlsplit(url).hostname or ""
        if self.settings.gateway.visibility != "public" or not host.endswith(names.CLUSTER_LOCAL):
            return ""
        return (
            f"gateway.visibility is public, but Knative's domain is {names.CLUSTER_LOCAL}: outside "
            "the cluster the gateway answers 404; `erless cluster init --domain DOMAIN` gives it a "
            "public name"
        )
