"""What the targets on a Kubernetes cluster have in common: everything but the objects' kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Self

from erless.deploy.deployed_models import DeployedModel
from erless.deploy.infra import read_infra
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, connect
from erless.deploy.kubernetes.cluster_settings import ClusterSettings, resolve_settings
from erless.deploy.kubernetes.dry_run import DryRun
from erless.deploy.kubernetes.faults import PodFaults
from erless.deploy.kubernetes.kinds import (
    ACCOUNT,
    MONITOR,
    NAMESPACE,
    POD,
    Kind,
)
from erless.deploy.kubernetes.lock import locked
from erless.deploy.kubernetes.mirror import Deadline
from erless.deploy.kubernetes.model_scopes import ModelScopes
from erless.deploy.kubernetes.pod_logs import pod_logs
from erless.deploy.kubernetes.pod_names import PodNames
from erless.deploy.kubernetes.releases import GatewayRecord, Rollout
from erless.deploy.kubernetes.removal import Removal
from erless.deploy.kubernetes.render.functions import released_kinds
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.kubernetes.status import function_name
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
from erless.specs.cluster import ClusterConfig
from erless.specs.config import Config

__all__ = ["ClusterTarget"]


class ClusterTarget(ABC):
    """Functions in one namespace of a cluster, where several models may live.

    Args:
        config: of the project.
        images: function kind → image, above `erless.yaml`'s.
        api: a connection, where there is one already.
        scope: the model that all verbs are about, where that is known.

    Raises:
        ConfigError, InfraError: the configuration or Terraform's outputs cannot be used.
    """

    name: str
    gateway_kind: Kind  # of the object that records what is deployed
    function_kind: Kind  # of the objects that stand for functions, the gateway's among them
    owned_kinds: tuple[Kind, ...]  # in the order of removing, functions first, locks left out
    pods: PodNames

    def __init__(
        self,
        config: Config,
        images: Mapping[str, str] | None = None,
        api: Api | None = None,
        scope: names.Scope | None = None,
    ) -> None:
        self._config, self._images = config, images
        options = self.section(config)
        infra = read_infra(options.infra) if options.infra else None
        self._settings = resolve_settings(config, infra, images, options)
        self._connected = api
        self._addresses: dict[str, str] = {}
        asked = config.targets.model or ""
        self._scopes = ModelScopes(self._namespace, asked, scope, self._deployed)

    @abstractmethod
    def section(self, config: Config) -> ClusterConfig:
        """The target's section of the configuration."""

    @abstractmethod
    def render(self, desired: Desired, settings: ClusterSettings) -> Rendered:
        """All objects of `desired`, checked without a cluster."""

    @abstractmethod
    def read_record(self, service: Object | None) -> GatewayRecord:
        """What the gateway's Service says; None: there is none."""

    @abstractmethod
    def rollout(self, scope: names.Scope, progress: Progress, deadline: Deadline) -> Rollout:
        """A change of what is deployed in `scope`."""

    @abstractmethod
    def compare(self, rendered: Rendered, scope: names.Scope, trial: DryRun) -> tuple[Change, ...]:
        """What applying `rendered` would change."""

    @abstractmethod
    def read_status(self, scope: names.Scope) -> Status:
        """What runs in `scope`. Raises NotDeployedError."""

    @abstractmethod
    def check_cluster(self, scope: names.Scope, rendered: Rendered) -> None:
        """Raise DeployError where the cluster cannot run the target, or what is rendered."""

    @abstractmethod
    def called(self, revision: str, scope: names.Scope) -> set[str]:
        """The functions, as the cluster names them, that a revision of the gateway calls."""

    @abstractmethod
    def url(self, service: Object) -> str:
        """Where the gateway with this Service answers; empty where it does not yet."""

    @abstractmethod
    def find_address(self, url: str, scope: names.Scope) -> str:
        """HOST:PORT that leads to `url` from here; empty where its own host will do."""

    def tried(self, rendered: Rendered, scope: names.Scope) -> Rendered:
        """`rendered` as it is once a deploy is through."""
        return rendered

    def notes(self, desired: Desired, url: str) -> tuple[str, ...]:
        """What the person who deploys should know; empty ones are left out."""
        return ()

    def service_of(self, document: Object) -> str:
        """The name in the cluster of the function that an object stands for."""
        return str(document["metadata"]["name"])

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

    def by_model(self) -> tuple[Self, ...]:
        """See `Target.by_model`."""
        return tuple(
            type(self)(self._config, self._images, self._connected, scope)
            for scope in self._scopes.each()
        )

    def _deployed(self) -> list[DeployedModel]:
        """The models of the namespace, by their gateways."""
        selector = f"{names.OWNED},{names.KIND}=gateway"
        deployed = []
        for gateway in self.api.list(self.gateway_kind, self._namespace, selector)[0]:
            scope = names.scope_of(gateway)
            if gateway["metadata"]["name"] != scope.gateway:
                continue  # made by somebody else for ours
            record = self.read_record(gateway)
            newest = record.current or next(iter(record.history), None)
            deployed.append(DeployedModel(scope.model, newest.model if newest else ""))
        return deployed

    @property
    def scope(self) -> names.Scope:
        """The deployment that verbs are about. Raises NotDeployedError, SeveralModelsError."""
        return self._scopes.current()

    def replaced_model(self, desired: Desired) -> str:
        """See `Target.replaced_model`."""
        return served_model(self._deployments(self._scopes.receiving(desired)))

    def objects(self, desired: Desired, scope: names.Scope) -> Rendered:
        """Exactly what `deploy` applies: a namespace that is somebody else's is left alone."""
        settings = replace(self._settings, model=scope.model)
        return self.render(desired, self._spare_namespace(settings))

    def _spare_namespace(self, settings: ClusterSettings) -> ClusterSettings:
        """`settings`, without the namespace where that is somebody else's."""
        live = self.api.get(NAMESPACE, None, self._namespace)
        return replace(settings, create_namespace=live is None or _is_ours(live))

    def validate(self, desired: Desired) -> Checked:
        """Let the API server and its webhooks check everything; change nothing.

        Where no cluster answers, the kinds' definitions are checked alone.

        Raises:
            DeployError: an object is refused.
        """
        settings, missing = self._settings.with_placeholders(released_kinds(desired))
        if not self.answers():
            return Checked(self.render(desired, settings).objects, "schemas", missing)
        scope = self._scopes.receiving(desired, compare=True)
        settings = replace(settings, model=scope.model)
        rendered = self.tried(self.render(desired, self._spare_namespace(settings)), scope)
        trial = self._trial()
        for document in rendered.objects:
            trial.apply(document)
        return Checked(rendered.objects, "server", missing)

    def answers(self) -> bool:
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

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        """What `deploy` would do now, as the server sees it; changes nothing."""
        scope = self._scopes.receiving(desired, compare=True)
        return self.compare(self.objects(desired, scope), scope, self._trial())

    def _trial(self) -> DryRun:
        return DryRun(self.api, self._namespace, self._settings.options.service_account)

    def deploy(self, desired: Desired, progress: Progress, timeout_s: float) -> Deployment:
        """See `Target.deploy`."""
        deadline = Deadline(timeout_s)
        scope = self._scopes.receiving(desired)
        rendered = self.objects(desired, scope)
        self.check_cluster(scope, rendered)
        self._check_references()
        for document in rendered.base:
            if document["kind"] == NAMESPACE.kind:
                self.api.apply(document)  # the lock lives in it
        if self.api.get(NAMESPACE, None, self._namespace) is None:
            raise DeployError(f"namespace {self._namespace} is not there")
        with locked(self.api, scope):
            if self._scopes.receiving(desired) != scope:
                raise ConflictError(f"another model came to namespace {self._namespace} just now")
            self.rollout(scope, progress, deadline).deploy(desired, rendered)
        done = self._newest(scope, desired.release.digest)
        return replace(done, note="; ".join(filter(None, self.notes(desired, done.url))))

    def _check_references(self) -> None:
        """Refuse a namespace without a Secret or claim that the pods refer to."""
        for kind, name in self._settings.references():
            if self.api.get(kind, self._namespace, name) is None:
                raise DeployError(
                    f"namespace {self._namespace} has no {kind.kind} {name}, which the "
                    "functions are configured to use"
                )

    def record(self, scope: names.Scope) -> GatewayRecord:
        """The deployed release, as the gateway's Service records it."""
        return self.read_record(self.api.get(self.gateway_kind, scope.namespace, scope.gateway))

    def status(self) -> Status:
        """See `Target.status`."""
        scope = self.scope
        status = self.read_status(scope)
        return replace(status, address=self._address(status.url, scope))

    def _address(self, url: str, scope: names.Scope) -> str:
        """Where to connect from here; looked for once."""
        options = self._settings.options
        if options.gateway_address or not url:
            return options.gateway_address or ""
        if url not in self._addresses:
            address = self.find_address(url, scope)
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
        record = self.record(scope)
        url = self.url(record.service) if record.service else ""
        current, address = record.current, self._address(url, scope) if record.history else ""
        return tuple(
            Deployment(kept.release, url, kept.at, kept == current, address, model=kept.model)
            for kept in record.history
        )

    def _newest(self, scope: names.Scope, release: str) -> Deployment:
        """The deployment of `release`; of the newest, while that is a canary and not kept yet."""
        deployments = self._deployments(scope)
        same = [deployment for deployment in deployments if deployment.release == release]
        matching = same or list(deployments)
        if not matching:
            raise NotDeployedError(f"nothing is deployed in namespace {self._namespace}")
        return matching[0]

    def rollback(self, release: str | None, progress: Progress, timeout_s: float) -> Deployment:
        """See `Target.rollback`; `release` may be the beginning of a digest."""
        scope = self.scope
        if self.record(scope).service is None:
            raise NotDeployedError(f"nothing is deployed in namespace {self._namespace}")
        with locked(self.api, scope):
            self.rollout(scope, progress, Deadline(timeout_s)).rollback(release)
        return next(kept for kept in self._deployments(scope) if kept.current)

    def faults(self) -> PodFaults:
        """The ways to break this deployment on purpose. Raises NotDeployedError."""
        scope = self.scope
        record = self.record(scope)
        if record.service is None or not record.revision:
            raise NotDeployedError(f"nothing is deployed in namespace {self._namespace}")
        current = self.called(record.revision, scope) | {scope.gateway}
        functions = {
            self.service_of(each): function_name(each)
            for each in self.owned(self.function_kind, scope)
            if self.service_of(each) in current
        }
        return PodFaults(self.api, scope, self.pods, functions, record.revision)

    def logs(self, function: str | None, lines: int, follow: bool) -> Iterator[str]:
        """See `Target.logs`. A function is named as in `status`, or as its Service."""
        objects = self.owned(self.function_kind, self.scope)
        if not objects:
            raise NotDeployedError(f"nothing is deployed in namespace {self._namespace}")
        names_by_service = {self.service_of(each): function_name(each) for each in objects}
        matching = {
            name: shown
            for name, shown in names_by_service.items()
            if function in (None, name, shown)
        }
        if not matching:
            listed = ", ".join(sorted(set(names_by_service.values())))
            raise DeployError(f"there is no function {function!r}; there are {listed}")
        return pod_logs(self.api, self._namespace, self.pods.service, matching, lines, follow)

    def destroy(self, progress: Progress, timeout_s: float) -> None:
        """See `Target.destroy`: all that carries the model's labels.

        What models share goes with the last of them: the account, and the namespace if erless made
        it.
        """
        deadline = Deadline(timeout_s)
        space = self.api.get(NAMESPACE, None, self._namespace)
        if space is None:
            return
        scope = self._scopes.doomed()
        others = [other for other in self._deployed() if other.key != scope.model]
        kinds = [kind for kind in self.owned_kinds if kind != ACCOUNT or not others]
        removal = Removal(self.api, self._namespace, lambda kind: self.owned(kind, scope), deadline)
        with progress.step("destroy", None, "steps") as step, locked(self.api, scope):
            for kind in kinds:
                step.advance(removal.remove(kind))
                if kind == self.function_kind:
                    removal.wait_gone([kind, POD])
            removal.wait_gone(kinds)
        if not others and _is_ours(space):
            removal.remove_namespace()

    def owned(self, kind: Kind, scope: names.Scope) -> list[Object]:
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


def _is_ours(document: Object) -> bool:
    return bool(document["metadata"].get("labels", {}).get(names.MANAGED) == names.MANAGER)
