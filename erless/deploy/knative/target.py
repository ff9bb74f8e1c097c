"""Target `knative`: a Kubernetes cluster with Knative Serving. What the verbs call."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from erless.deploy.deployed_models import (
    DeployedModel,
    deployment_to_change,
    deployment_to_compare,
    deployment_to_destroy,
    find_deployment,
)
from erless.deploy.infra import read_infra
from erless.deploy.knative.diff import compare
from erless.deploy.knative.dry_run import DryRun
from erless.deploy.knative.faults import KnativeFaults
from erless.deploy.knative.gateway_record import (
    GatewayRecord,
    read_record,
    traffic_after,
    with_traffic,
)
from erless.deploy.knative.ingress import find_address
from erless.deploy.knative.pod_logs import pod_logs
from erless.deploy.knative.render import Object, Rendered, render
from erless.deploy.knative.rollout import Rollout
from erless.deploy.knative.schema import check_objects
from erless.deploy.knative.status import function_name, read_status
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, connect
from erless.deploy.kubernetes.cluster_settings import ClusterSettings, resolve_settings
from erless.deploy.kubernetes.kinds import (
    ACCOUNT,
    CLAIM,
    CONFIG_MAP,
    CRD,
    KSERVICE,
    LEASE,
    MONITOR,
    NAMESPACE,
    OWNED_KINDS,
    POD,
    SECRET,
    SERVICE,
    Kind,
)
from erless.deploy.kubernetes.lock import locked
from erless.deploy.kubernetes.mirror import Deadline
from erless.deploy.target import Change, Checked, Deployment, Desired, Status, served_model
from erless.errors import (
    ConfigError,
    ConflictError,
    DeployError,
    ForbiddenError,
    NotDeployedError,
    UnreachableError,
)
from erless.progress import Progress
from erless.specs.config import Config
from erless.specs.functions import FunctionKind
from erless.specs.plan import Plan

__all__ = ["KnativeTarget"]

GONE_POLL_S = 1.0
# what a control plane puts into every namespace by itself
PUBLISHED = {"kube-root-ca.crt", "openshift-service-ca.crt", "istio-ca-root-cert"}
PUBLISHED_TYPES = {"kubernetes.io/service-account-token", "kubernetes.io/dockercfg"}


class KnativeTarget:
    """Functions as Knative Services of one namespace, where several models may live.

    Args:
        config: of the project.
        images: function kind → image, above `erless.yaml`'s.
        api: a connection, where there is one already.
        scope: the model that all verbs are about, where that is known.

    Raises:
        ConfigError, InfraError: the configuration or Terraform's outputs cannot be used.
    """

    name = "knative"

    def __init__(
        self,
        config: Config,
        images: Mapping[str, str] | None = None,
        api: Api | None = None,
        scope: names.Scope | None = None,
    ) -> None:
        self._config, self._images, self._bound = config, images, scope
        self._asked = config.targets.model or ""
        folder = config.targets.knative.infra
        self._settings = resolve_settings(config, read_infra(folder) if folder else None, images)
        self._connected = api
        self._addresses: dict[str, str] = {}

    @property
    def settings(self) -> ClusterSettings:
        """The cluster as configured."""
        return self._settings

    @property
    def api(self) -> Api:
        """The connection; made when it is first needed."""
        if self._connected is None:
            options = self._settings.options
            self._connected = connect(options.kubeconfig, options.context)
        return self._connected

    @property
    def _namespace(self) -> str:
        return self._settings.options.namespace

    def by_model(self) -> tuple[KnativeTarget, ...]:
        """See `Target.by_model`."""
        if self._bound is not None or self._asked:
            keys = [self.scope.model]
        else:
            keys = sorted(deployment.key for deployment in self._deployed())
        return tuple(
            KnativeTarget(
                self._config, self._images, self._connected, names.Scope(self._namespace, key)
            )
            for key in keys
        )

    def _deployed(self) -> list[DeployedModel]:
        """The models of the namespace, by their gateways."""
        selector = f"{names.OWNED},{names.KIND}=gateway"
        deployed = []
        for gateway in self.api.list(KSERVICE, self._namespace, selector)[0]:
            record = read_record(gateway)
            newest = record.current or next(iter(record.history), None)
            serves = newest.model if newest else ""
            deployed.append(DeployedModel(names.scope_of(gateway).model, serves))
        return deployed

    @property
    def scope(self) -> names.Scope:
        """The deployment that verbs are about.

        Raises:
            NotDeployedError: the model that is asked for is not here.
            SeveralModelsError: several are, and none is named.
        """
        if self._bound is not None:
            return self._bound
        return names.Scope(self._namespace, find_deployment(self._asked, self._deployed()))

    def _scope_for(self, desired: Desired, *, compare: bool = False) -> names.Scope:
        """The deployment that `desired` goes to, or where that is refused is compared with.

        Raises:
            OtherModelError: another model answers queries there.
            SeveralModelsError: it may replace one, and it is not said which of several.
        """
        if self._bound is not None:
            return self._bound
        choose = deployment_to_compare if compare else deployment_to_change
        model, replaces = desired.release.model.name, desired.replace_model
        key = choose(self._asked, model, self._deployed(), replace=replaces)
        return names.Scope(self._namespace, key)

    def faults(self) -> KnativeFaults:
        """The ways to break this deployment on purpose. Raises NotDeployedError."""
        return KnativeFaults(self.api, self.scope)

    def objects(self, desired: Desired, scope: names.Scope) -> Rendered:
        """Exactly what `deploy` applies: a namespace that is somebody else's is left alone."""
        settings = replace(self._settings, model=scope.model)
        return self._render(desired, self._spare_namespace(settings))

    def _spare_namespace(self, settings: ClusterSettings) -> ClusterSettings:
        """`settings`, without the namespace where that is somebody else's."""
        live = self.api.get(NAMESPACE, None, self._namespace)
        return replace(settings, create_namespace=live is None or _is_ours(live))

    def _render(self, desired: Desired, settings: ClusterSettings) -> Rendered:
        rendered = render(desired, settings)
        check_objects(rendered.objects)
        return rendered

    def validate(self, desired: Desired) -> Checked:
        """Let the API server and Knative's webhooks check everything; change nothing.

        Where no cluster answers, Kubernetes' and Knative's definitions are checked alone.

        Raises:
            DeployError: an object is refused.
        """
        settings, missing = self._settings.with_placeholders(_kinds(desired))
        if not self._answers():
            return Checked(self._render(desired, settings).objects, "schemas", missing)
        scope = self._scope_for(desired, compare=True)
        settings = replace(settings, model=scope.model)
        rendered = self._render(desired, self._spare_namespace(settings))
        rendered = self._with_traffic(rendered, scope)
        trial = self._trial()
        for document in rendered.objects:
            trial.apply(document)
        return Checked(rendered.objects, "server", missing)

    def _with_traffic(self, rendered: Rendered, scope: names.Scope) -> Rendered:
        """The objects with the traffic that they have once `deploy` is through."""
        record, canary_percent = self._record(scope), self._settings.options.canary_percent
        lines = traffic_after(record, rendered.revision, canary_percent)
        gateway = with_traffic(rendered.gateway, lines, record.history, None)
        return replace(rendered, gateway=gateway)

    def _answers(self) -> bool:
        """Whether there is a cluster to ask; one that was named by hand has to be there."""
        options = self._settings.options
        try:
            self.api.call("GET", "/version", retry_s=0)
        except UnreachableError:
            return False
        except ConfigError:
            if options.kubeconfig or options.context:
                raise
            return False
        return True

    def replaced_model(self, desired: Desired) -> str:
        """See `Target.replaced_model`."""
        return served_model(self._deployments(self._scope_for(desired)))

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        """What `deploy` would do now, as the server sees it; changes nothing."""
        scope = self._scope_for(desired, compare=True)
        return compare(self.api, self.objects(desired, scope), scope, self._trial())

    def _trial(self) -> DryRun:
        return DryRun(self.api, self._namespace, self._settings.options.service_account)

    def deploy(self, desired: Desired, progress: Progress, timeout_s: float) -> Deployment:
        """See `Target.deploy`."""
        deadline = Deadline(timeout_s)
        scope = self._scope_for(desired)
        rendered = self.objects(desired, scope)
        self._check_cluster()
        for document in rendered.base:
            if document["kind"] == NAMESPACE.kind:
                self.api.apply(document)  # the lock lives in it
        if self.api.get(NAMESPACE, None, self._namespace) is None:
            raise DeployError(f"namespace {self._namespace} is not there")
        with locked(self.api, scope):
            if self._scope_for(desired) != scope:
                raise ConflictError(f"another model came to namespace {self._namespace} just now")
            rollout = self._rollout(scope, progress, deadline)
            canary_percent = self._settings.options.canary_percent
            model = desired.release.model.name
            rollout.deploy(desired.release.digest, rendered, canary_percent, model)
        done = self._current(scope, desired.release.digest)
        notes = (self._visibility_note(done.url), _size_note(desired.plan))
        return replace(done, note="; ".join(filter(None, notes)))

    def _visibility_note(self, url: str) -> str:
        """Why a gateway that shall be public is not; empty where it is, or shall not be."""
        host = urlsplit(url).hostname or ""
        if self._settings.gateway.visibility != "public" or not host.endswith(names.CLUSTER_LOCAL):
            return ""
        return (
            f"gateway.visibility is public, but Knative's domain is {names.CLUSTER_LOCAL}: outside "
            "the cluster the gateway answers 404; `erless cluster init --domain DOMAIN` gives it a "
            "public name"
        )

    def _rollout(self, scope: names.Scope, progress: Progress, deadline: Deadline) -> Rollout:
        keep = self._settings.options.keep_releases
        return Rollout(self.api, scope, progress, deadline, keep)

    def _check_cluster(self) -> None:
        """Refuse a cluster without Knative, or without a Secret or claim that the pods refer to."""
        if self.api.get(CRD, None, "services.serving.knative.dev") is None:
            raise DeployError(f"the cluster at {self.api.host} has no Knative Serving")
        for kind, name in self._settings.references():
            if self.api.get(kind, self._namespace, name) is None:
                raise DeployError(
                    f"namespace {self._namespace} has no {kind.kind} {name}, which the "
                    "functions are configured to use"
                )

    def _record(self, scope: names.Scope) -> GatewayRecord:
        """The deployed release, as the gateway's Service records it."""
        return read_record(self.api.get(KSERVICE, scope.namespace, scope.gateway))

    def status(self) -> Status:
        """See `Target.status`."""
        status = read_status(self.api, self.scope)
        return replace(status, address=self._address(status.url))

    def _address(self, url: str) -> str:
        """Where to connect from here; looked for once."""
        options = self._settings.options
        if options.gateway_address or not url:
            return options.gateway_address or ""
        if url not in self._addresses:
            address = find_address(self.api, url, options.ingress_namespaces)
            if address:
                self._addresses[url] = address
            return address
        return self._addresses[url]

    def deployments(self) -> tuple[Deployment, ...]:
        """See `Target.deployments`."""
        try:
            return self._deployments(self.scope)
        except NotDeployedError:
            return ()

    def _deployments(self, scope: names.Scope) -> tuple[Deployment, ...]:
        record = self._record(scope)
        url = (record.service or {}).get("status", {}).get("url", "")
        current, address = record.current, self._address(url) if record.history else ""
        return tuple(
            Deployment(kept.release, url, kept.at, kept == current, address, model=kept.model)
            for kept in record.history
        )

    def _current(self, scope: names.Scope, release: str) -> Deployment:
        deployments = self._deployments(scope)
        matching = [
            deployment for deployment in deployments if deployment.release == release
        ] or list(deployments)
        if not matching:
            raise NotDeployedError(f"nothing is deployed in namespace {self._namespace}")
        return matching[0]

    def rollback(self, release: str | None, progress: Progress, timeout_s: float) -> Deployment:
        """See `Target.rollback`; `release` may be the beginning of a digest."""
        scope = self.scope
        if self._record(scope).service is None:
            raise NotDeployedError(f"nothing is deployed in namespace {self._namespace}")
        with locked(self.api, scope):
            self._rollout(scope, progress, Deadline(timeout_s)).rollback(release)
        return next(kept for kept in self._deployments(scope) if kept.current)

    def logs(self, function: str | None, lines: int, follow: bool) -> Iterator[str]:
        """See `Target.logs`. A function is named as in `status`, or as its Service."""
        services, _ = self.api.list(KSERVICE, self._namespace, self.scope.selector)
        if not services:
            raise NotDeployedError(f"nothing is deployed in namespace {self._namespace}")
        names_by_service = {
            service["metadata"]["name"]: function_name(service) for service in services
        }
        matching = {
            name: shown
            for name, shown in names_by_service.items()
            if function in (None, name, shown)
        }
        if not matching:
            listed = ", ".join(sorted(set(names_by_service.values())))
            raise DeployError(f"there is no function {function!r}; there are {listed}")
        return pod_logs(self.api, self._namespace, matching, lines, follow)

    def destroy(self, progress: Progress, timeout_s: float) -> None:
        """See `Target.destroy`: all that carries the model's labels.

        What models share goes with the last of them: the account, and the namespace if erless made
        it.
        """
        deadline = Deadline(timeout_s)
        space = self.api.get(NAMESPACE, None, self._namespace)
        if space is None:
            return
        deployed = self._deployed()
        scope = self._bound or names.Scope(
            self._namespace, deployment_to_destroy(self._asked, deployed)
        )
        with progress.step("destroy", None, "steps") as step, locked(self.api, scope):
            kinds = [kind for kind in OWNED_KINDS if kind != LEASE]
            others = [other for other in deployed if other.key != scope.model]
            if others:
                kinds.remove(ACCOUNT)
            for kind in kinds:
                for document in self._owned(kind, scope):
                    self.api.delete(kind, self._namespace, document["metadata"]["name"])
                    step.advance(1)
                if kind == KSERVICE:
                    self._wait_gone([KSERVICE, POD], scope, deadline)
            self._wait_gone(kinds, scope, deadline)
        if not others and _is_ours(space) and not self._foreign():
            try:
                self.api.delete(NAMESPACE, None, self._namespace)
            except ForbiddenError:
                return  # an administrator deployed first: it stays, and is empty
            while self.api.get(NAMESPACE, None, self._namespace) is not None:
                self._pause(deadline, f"namespace {self._namespace}")

    def _owned(self, kind: Kind, scope: names.Scope) -> list[Object]:
        """Our objects of a kind; none of PodMonitors where this user has nothing to do with them.

        A server refuses even a kind that it does not have.
        """
        selector = names.OWNED if kind == ACCOUNT else scope.selector
        try:
            return self.api.list(kind, self._namespace, selector)[0]
        except ForbiddenError:
            if kind == MONITOR and not self._settings.options.pod_monitor:
                return []
            raise

    def _wait_gone(self, kinds: list[Kind], scope: names.Scope, deadline: Deadline) -> None:
        for kind in kinds:
            while remaining := self._owned(kind, scope):
                self._pause(deadline, f"{kind.kind} {remaining[0]['metadata']['name']}")

    def _pause(self, deadline: Deadline, subject: str) -> None:
        if deadline.left_s <= 0:
            raise DeployError(f"{subject} is still there after {deadline.seconds:g} s")
        time.sleep(min(GONE_POLL_S, deadline.left_s))

    def _foreign(self) -> list[str]:
        """What somebody else put into our namespace: it would go away with it."""
        foreign = []
        for kind in (POD, SERVICE, SECRET, CONFIG_MAP, CLAIM):
            for document in self.api.list(kind, self._namespace)[0]:
                name = document["metadata"]["name"]
                if name in PUBLISHED or document.get("type") in PUBLISHED_TYPES:
                    continue
                if not document["metadata"].get("ownerReferences"):
                    foreign.append(f"{kind.kind} {name}")
        return foreign


def _kinds(desired: Desired) -> list[FunctionKind]:
    """The kinds of functions that a release takes."""
    kinds: list[FunctionKind] = ["gateway"]
    kinds += ["sparse"] if desired.release.remote else []
    kinds += ["dense"] if desired.plan.gateway.dense_placement == "function" else []
    return kinds


def _is_ours(document: Object) -> bool:
    return bool(document["metadata"].get("labels", {}).get(names.MANAGED) == names.MANAGER)


def _size_note(plan: Plan) -> str:
    """That replicas keep their size here, where the plan's autoscaler would change it."""
    functions = (plan.gateway, *plan.shards, *((plan.dense,) if plan.dense else ()))
    if all(function.scaling.autoscaler == "kpa" for function in functions):
        return ""
    return (
        "the plan's autoscaler is status, which changes the vCPU of replicas on target local only: "
        "here Knative's KPA scales replicas of the planned size"
    )
