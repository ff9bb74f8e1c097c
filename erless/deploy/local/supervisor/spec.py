"""What the supervisor runs, and what it keeps in `state.json`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from erless.specs.artifact import FromElsewhere
from erless.specs.functions import GATEWAY, FunctionKind
from erless.specs.plan import Scaling

__all__ = ["IDENTITY", "IDENTITY_PREFIX", "FunctionSpec", "ReleaseSpec", "StoredState", "Timing"]


# Variables of functions that speak mutual TLS (docs/functions.md).
IDENTITY, IDENTITY_PREFIX = "ERLESS_IDENTITY", "ERLESS_IDENTITY_PREFIX"


class FunctionSpec(FromElsewhere):
    """One function. Two releases that name the same `key` share it, with its replicas.

    env: of each replica, besides the sockets; a gateway's shard URLs are added when their ports
    are known.
    """

    key: str = Field(pattern=r"^[a-z0-9\-]{1,60}$", description="kind and digest of what it serves")
    name: str = Field(description="as the plan calls it")
    kind: FunctionKind
    tier: str = ""
    digest: str
    module: str = Field(description="`python -m` this, with the kind as argument")
    env: dict[str, str]
    scaling: Scaling
    vcpu: float = 1.0
    memory_bytes: int = Field(0, ge=0, description="that a replica is planned to need")
    requests_per_vcpu_s: float = Field(0.0, ge=0, description="that one vCPU can serve")
    disk_bytes: int = Field(0, ge=0, description="files that it reads from the disk as it serves")
    share: float = Field(0.0, ge=0, description="of all gathers, as planned; 0: not watched")
    rows_per_call: float = Field(1.0, ge=0, description="that a call gathers, as planned")
    decoy: bool = Field(False, description="nobody calls it: whoever does raises an alert")

    @property
    def changes_size(self) -> bool:
        """Whether its autoscaler decides on each replica's vCPU too."""
        return self.scaling.autoscaler == "status" and self.requests_per_vcpu_s > 0

    @property
    def largest_vcpu(self) -> float:
        """What a replica may grow to, and starts with, so that it is ready soon."""
        return max(self.vcpu, self.scaling.max_vcpu or 0.0) if self.changes_size else self.vcpu

    @property
    def identity(self) -> Path | None:
        """The folder of its certificate; None where it speaks no mutual TLS."""
        return Path(self.env[IDENTITY]) if IDENTITY in self.env else None

    @property
    def uri(self) -> str:
        """The URI in that certificate."""
        return self.env.get(IDENTITY_PREFIX, "") + (self.identity.name if self.identity else "")

    @property
    def scheme(self) -> str:
        """Of the URL at which others reach it."""
        tls = self.identity if self.kind != GATEWAY else self.env.get("ERLESS_TLS_CERTIFICATE")
        return "https" if tls else "http"


class ReleaseSpec(FromElsewhere):
    """One deployed release: its functions, the gateway among them.

    key: identifies the functions with their environment and scaling.
    full_copy_bytes: one model-wise replica.
    """

    key: str
    release: str = Field(description="digest")
    deployed_at: str
    model: str = ""
    full_copy_bytes: int = 0
    functions: tuple[FunctionSpec, ...] = Field(min_length=1)

    @property
    def gateway(self) -> FunctionSpec:
        """The function that answers queries."""
        return next(function for function in self.functions if function.kind == GATEWAY)

    @property
    def behind(self) -> tuple[FunctionSpec, ...]:
        """The functions that the gateway calls: all but itself."""
        return tuple(function for function in self.functions if function.kind != GATEWAY)


class Timing(FromElsewhere):
    """Periods and time limits of the supervisor. Tests take smaller numbers."""

    poll_s: float = Field(2.0, gt=0, description="metrics, decisions: Knative's tick")
    ready_poll_s: float = Field(0.02, gt=0, description="a starting replica is asked so often")
    answer_s: float = Field(5.0, gt=0, description="a poll takes at most so long")
    sample_s: float = Field(0.25, gt=0, description="a replica's process is looked at so often")
    probe_s: float = Field(1.0, gt=0, description="a replica is asked whether it is ready so often")
    stopped_s: float = Field(0.5, gt=0, description="a stopped replica is killed after so long")
    hung_s: float = Field(1.5, gt=0, description="one that sleeps and does not answer, after this")
    silence_s: float = Field(20.0, gt=0, description="one that is busy and does not answer")
    start_silence_s: float = Field(60.0, gt=0, description="one that starts and does not answer")
    drain_s: float = Field(30.0, gt=0, description="from SIGTERM to SIGKILL")
    identity_s: float = Field(86_400.0, gt=0, description="a certificate of mutual TLS lasts")
    backoff_s: float = Field(0.5, gt=0, description="after the second crash in a row; doubles")
    backoff_most_s: float = Field(30.0, gt=0)
    steady_s: float = Field(
        5.0, gt=0, description="a replica that lived so long did not crash-loop"
    )
    rate_window_s: float = Field(30.0, gt=0, description="of the rates that status shows")


class StoredState(FromElsewhere):
    """`state.json`: everything a restarted supervisor needs. Releases newest first."""

    schema_version: int = 1
    port: int = Field(0, description="that the user asked for; 0: any")
    ports: dict[str, int] = Field(default_factory=dict, description="function key → port")
    current: str | None = Field(None, description="key of a release")
    releases: tuple[ReleaseSpec, ...] = ()
    keep: int = Field(3, ge=1, description="releases")
    limits: bool = Field(False, description="cgroup limits where available")
    timing: Timing = Timing()
    webhook: str | None = Field(None, description="where alerts are sent")

    def release(self, key: str | None) -> ReleaseSpec | None:
        """The kept release with `key`."""
        return next((release for release in self.releases if release.key == key), None)
