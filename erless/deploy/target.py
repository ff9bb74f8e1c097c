"""What every target does: the protocol that `local` and `knative` share, and its value classes.

Render, then act: `diff` lists the changes that `deploy` would make, `deploy` makes exactly those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

from erless.errors import DeployError, NotDeployedError
from erless.progress import Progress
from erless.specs.alerts import Alert
from erless.specs.churn import FaultSite
from erless.specs.decoys import DecoyShard
from erless.specs.functions import FunctionKind
from erless.specs.odds import ShardOdds
from erless.specs.plan import Plan
from erless.specs.release import ReleaseManifest

__all__ = [
    "Alerting",
    "Breakable",
    "Change",
    "Checked",
    "Deployment",
    "Desired",
    "FunctionState",
    "FunctionStatus",
    "Status",
    "Target",
    "Validates",
    "Watched",
    "place_to_restore",
    "served_model",
]


@dataclass(frozen=True, slots=True)
class Desired:
    """What shall run: a release from a store, placed as its plan says.

    replace_model: it may take the place of a release of another model.
    decoys: that stand beside its shards.
    """

    store: str
    release: ReleaseManifest
    plan: Plan
    endpoint_url: str | None = None
    replace_model: bool = False
    decoys: tuple[DecoyShard, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that deploy creates, updates, keeps or removes; `detail` names the difference."""

    action: Literal["create", "update", "keep", "remove"]
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployed release. `url` answers queries when it is current.

    address: HOST:PORT to connect to where the URL's own host is not known here; else empty.
    note: what the person who deployed should know besides; usually nothing.
    model: the name of its model; empty where the record is of an older version that has none.
    """

    release: str
    url: str
    deployed_at: str
    current: bool
    address: str = ""
    note: str = ""
    model: str = ""


class FunctionState(StrEnum):
    """Where a function stands."""

    SERVING = "serving"
    IDLE = "idle"
    AT_ZERO = "at zero"
    WAKING = "waking"
    DRAINING = "draining"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """One function: `wanted` replicas by the autoscaler, rates over the last window.

    rps: requests/s. p95_ms: of its calls, None without any. memory_bytes: all replicas (PSS where
    it can be measured, else the requested memory). vcpu: of each replica, where the autoscaler
    decides on it. decision: the autoscaler's last one, in words. disk_bytes: files of ready
    replicas that are read from nodes' disks as queries ask for rows. disk_reads_s: reads/s of these
    disks, None where there are none.
    """

    name: str
    kind: FunctionKind
    tier: str
    digest: str
    ready: int
    wanted: int
    rps: float
    p95_ms: float | None
    memory_bytes: int
    state: FunctionState
    reason: str = ""
    vcpu: float | None = None
    decision: str = ""
    disk_bytes: int = 0
    disk_reads_s: float | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that runs. `model_wise_bytes`: what as many full copies would hold.

    url: of the gateway, empty while it does not listen. address: as in `Deployment`.
    """

    target: str
    release: str
    url: str
    functions: tuple[FunctionStatus, ...]
    memory_bytes: int
    model_wise_bytes: int
    address: str = ""

    def answering_url(self) -> str:
        """The gateway's URL. DeployError where it does not listen, with its reason."""
        if not self.url:
            reasons = [function.reason for function in self.functions if function.kind == "gateway"]
            reason = next(filter(None, reasons), "it does not listen")
            raise DeployError(f"the gateway of release {self.release[:12]} is not there: {reason}")
        return self.url

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        from erless.pages.charts import size
        from erless.pages.page import notes, table

        rows = [
            [
                each.name,
                each.tier,
                f"{each.ready} of {each.wanted}",
                f"{each.rps:,.1f}",
                "" if each.p95_ms is None else f"{each.p95_ms:,.1f}",
                size(each.memory_bytes),
                each.state.value + (f": {each.reason}" if each.reason else ""),
            ]
            for each in self.functions
        ]
        header = ["function", "tier", "replicas", "calls/s", "p95 ms", "memory", "state"]
        where = f"{self.target}: release {self.release[:12]} at {self.url or 'no address'}"
        return table(header, rows, "functions") + notes([where])


@dataclass(frozen=True, slots=True)
class Checked:
    """The documents that `deploy` would apply, and the check that found them valid.

    missing: what `deploy` will still ask for; placeholders stand for it.
    """

    objects: tuple[dict[str, Any], ...]
    by: Literal["server", "schemas"]
    missing: tuple[str, ...] = ()


@runtime_checkable
class Validates(Protocol):
    """A target whose dry run has the very objects that it would apply."""

    def validate(self, desired: Desired) -> Checked:
        """Have everything checked; change nothing. Raises DeployError where it is refused."""


@runtime_checkable
class Breakable(Protocol):
    """A target whose deployment can be broken on purpose."""

    def faults(self) -> FaultSite:
        """The ways to break it. Raises NotDeployedError."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What a store knows of the deployed releases and their cluster does not.

    decoys: digests of their decoys. odds: of the cold and frozen shards of the one that serves, by
    digest.
    """

    decoys: frozenset[str] = frozenset()
    odds: Mapping[str, ShardOdds] = field(default_factory=dict)


@runtime_checkable
class Alerting(Protocol):
    """A target that says who touched what nobody should."""

    def alerts(
        self, lines: int, follow: bool, watched: Callable[[], Watched] = Watched
    ) -> Iterator[Alert]:
        """The last `lines` alerts in order of time, then what comes.

        `watched` tells what the target does not know by itself, now and after every deploy.

        Raises:
            NotDeployedError: nothing is deployed.
        """


class Target(Protocol):
    """A place to run functions. Every method may raise DeployError or a subclass of it.

    Several models may be deployed in it (`erless.deploy.deployed_models`): every method is about
    one, and raises SeveralModelsError where it is not said which.
    """

    name: str

    def by_model(self) -> Sequence[Target]:
        """This target once per deployed model, each about that one; one where a model is named."""

    def replaced_model(self, desired: Desired) -> str:
        """The model that answers queries where `desired` goes; empty for a deployment of its own.

        Raises:
            OtherModelError: another model does, and `desired` may not take its place.
        """

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        """What `deploy` would do now; changes nothing. Compared too where `deploy` refuses."""

    def deploy(self, desired: Desired, progress: Progress, timeout_s: float) -> Deployment:
        """Start what is missing, wait until all of it is ready, cut over, let the old one drain.

        Idempotent. Before the cut-over a failure leaves the old release serving; interrupted, a
        second call completes it.

        Raises:
            DeployError: a function failed (its own reason), or the time is over.
            ConflictError: another deploy is under way, or another model answers queries.
        """

    def status(self) -> Status:
        """What runs now. Raises NotDeployedError where nothing does."""

    def deployments(self) -> tuple[Deployment, ...]:
        """The kept releases of the model, newest first."""

    def rollback(self, release: str | None, progress: Progress, timeout_s: float) -> Deployment:
        """Make a kept release current again; None: the one before the current."""

    def logs(self, function: str | None, lines: int, follow: bool) -> Iterator[str]:
        """The last `lines` of one function or all, then what comes."""

    def destroy(self, progress: Progress, timeout_s: float) -> None:
        """Drain and remove all that erless owns of the model. Nothing there: nothing to do."""


def served_model(deployments: Iterable[Deployment]) -> str:
    """The name of the model that answers queries now; empty where none does, or it is not known."""
    return next((deployment.model for deployment in deployments if deployment.current), "")


def place_to_restore(digests: Sequence[str], current: int | None, prefix: str | None) -> int:
    """The place, among the kept releases, of the one that a rollback goes to.

    Args:
        digests: of the kept releases, the last deployed first.
        current: place of the one that answers queries; None: nothing is deployed.
        prefix: the beginning of a digest; None: the release before the current one.

    Raises:
        NotDeployedError: there is no such release.
    """
    if current is None:
        raise NotDeployedError("nothing is deployed here")
    if prefix is None:
        if current + 1 >= len(digests):
            raise NotDeployedError("no release is kept from before the current one")
        return current + 1
    for place, digest in enumerate(digests):
        if digest.startswith(prefix):
            return place
    kept = ", ".join(digest[:12] for digest in digests)
    raise NotDeployedError(f"no kept release begins with {prefix!r}; kept are {kept}")
