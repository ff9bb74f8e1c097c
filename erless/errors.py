"""Every error that erless raises on purpose.

    ErlessError                  a fact the user must know: what, where, measured against allowed
    ├── ConfigError              erless.yaml: absent, unknown key, wrong type, contradiction
    │   ├── OptionError          an option of the command line is missing or contradicts another
    │   └── KubeconfigError      no kubeconfig, or it leads to another cluster
    ├── MissingPackageError      a package of one of erless's extras is not installed
    ├── ArtifactError            a file of ours is missing, truncated, altered or of a newer schema
    │   └── ExistsError          what would be written is there already
    ├── StorageError             the disk or bucket refused: full, read-only, no permission
    │   ├── BucketError          the S3 API of a store refused, or did not answer
    │   ├── DiskReadError        a row of the disk tier could not be read, or was changed
    │   └── DiskBusyError        too many reads of the disk tier wait already
    ├── CheckpointError          a foreign checkpoint or dataset cannot be imported
    ├── ModelError               tables and tower do not fit together
    ├── QueryError               a query does not fit the model: table, sample and value are named
    ├── LogError                 an access log cannot be read or does not fit the model
    ├── PlanError                a plan cannot be made from these inputs
    │   └── InfeasibleError      no plan meets the constraints; carries each shortfall
    ├── TrafficError             a traffic shape or trace cannot be replayed
    ├── LoadTestError            a load could not be sent
    ├── StoreError               a release store: absent, torn, contended
    ├── SparkError               no Java, a Spark that refuses, or a job of it that failed
    ├── WorkerError              a process, pod or executor of a stage failed: its own last line
    ├── ImageError               a function's image cannot be built, pulled or pushed
    │   ├── BaseImageError       the image to build on cannot be had, or is not one to build on
    │   └── DependencyError      pip could not bring what the functions import
    ├── InfraError               Terraform: not installed, not applied, an output is missing
    ├── ServeError               a query was not answered; carries the HTTP status and a kind
    │   └── UntrustedError       a gateway's certificate is signed by nobody that is trusted
    └── DeployError              a target refused, or did not get ready: the function's own reason
        ├── NotDeployedError     nothing of erless runs there
        ├── UnreachableError     no cluster answers
        ├── ForbiddenError       the cluster does not let this user do that
        ├── ConflictError        somebody else owns or changes what we would change
        │   └── OtherModelError  a deploy would replace another model
        ├── SeveralModelsError   several models are deployed there, and none is named
        └── SupervisorEndedError  the local supervisor ended before it had answered

Library errors state facts. The CLI adds the next command to try (`erless.cli.run`).
Foreign exceptions are translated once, at the boundary, by type.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BaseImageError",
    "BucketError",
    "CheckpointError",
    "ConfigError",
    "ConflictError",
    "DependencyError",
    "DeployError",
    "DiskBusyError",
    "DiskReadError",
    "ErlessError",
    "ExistsError",
    "ForbiddenError",
    "ImageError",
    "InfeasibleError",
    "InfraError",
    "KubeconfigError",
    "LoadTestError",
    "LogError",
    "MissingPackageError",
    "ModelError",
    "NotDeployedError",
    "OptionError",
    "OtherModelError",
    "PlanError",
    "QueryError",
    "ServeError",
    "SeveralModelsError",
    "SparkError",
    "StorageError",
    "StoreError",
    "SupervisorEndedError",
    "TrafficError",
    "UnreachableError",
    "UntrustedError",
    "WorkerError",
    "first_line",
]


class ErlessError(Exception):
    """Base of all errors that are shown short. The message is one or two sentences of fact."""


class ConfigError(ErlessError):
    """`erless.yaml` (or an option) has an unknown key, a wrong value or contradicts itself."""


class OptionError(ConfigError):
    """An option of the command line is missing, has a wrong value or contradicts another."""


class KubeconfigError(ConfigError):
    """No kubeconfig leads to a cluster, or it leads to another than the one meant."""


class MissingPackageError(ErlessError):
    """A package that only some verbs need, such as torch, is not installed."""


class ArtifactError(ErlessError):
    """An artifact of ours is missing, truncated, altered, or of a newer schema."""


class ExistsError(ArtifactError):
    """What would be written is there already."""


class StorageError(ErlessError):
    """The file system or object store refused an operation (full, read-only, not permitted)."""


class BucketError(StorageError):
    """The S3 API of a store refused, or did not answer: says which, and where it was asked."""


class DiskReadError(StorageError):
    """A row of the disk tier could not be read, or is not the one that was packed.

    Args:
        message: the file, the place and the reason.
        reason: one word for metrics: `failed` (the disk refused), `short`, `altered`, `engine`.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def damage(self) -> bool:
        """Whether the file itself is not what was packed."""
        return self.reason in ("short", "altered")


class DiskBusyError(StorageError):
    """Reads of the disk tier wait beyond their bound: the query is refused, to be asked again."""


class CheckpointError(ErlessError):
    """A foreign checkpoint or dataset cannot be imported."""


class ModelError(ErlessError):
    """Tables, pooling and tower do not fit together."""


class QueryError(ErlessError):
    """A query does not fit the model."""


class LogError(ErlessError):
    """An access log cannot be read, is empty, or does not fit the model."""


class PlanError(ErlessError):
    """A plan cannot be made from these inputs."""


class InfeasibleError(PlanError):
    """No plan meets the constraints.

    Args:
        message: one sentence that names the worst violation.
        violations: one line per violated constraint: measured against allowed, what lifts it.
    """

    def __init__(self, message: str, violations: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations


class TrafficError(ErlessError):
    """A traffic shape or a recorded trace cannot be replayed."""


class LoadTestError(ErlessError):
    """A load could not be sent: the gateway is down, or the generator did not start."""


class StoreError(ErlessError):
    """A release store is absent, torn or contended."""


class SparkError(ErlessError):
    """Spark cannot be started or reached, is of another version, or gave up a job of ours."""


class WorkerError(ErlessError):
    """A process, pod or executor that does a part of a stage failed; tells its own last line."""


class ImageError(ErlessError):
    """A function's image cannot be built, pulled or pushed: the engine's or registry's reason."""


class BaseImageError(ImageError):
    """The image to build on cannot be had: no network, not permitted, or it has another Python."""


class DependencyError(ImageError):
    """pip could not bring what the functions import: no package index, or a wheel is missing."""


class InfraError(ErlessError):
    """What Terraform provisioned cannot be read: not installed, not applied, incomplete."""


class ServeError(ErlessError):
    """A query was not answered.

    Args:
        message: the reason, as the client reads it.
        status: HTTP status.
        kind: one word for metrics: `deadline`, `overload`, `shard`, `digest`, `query`, ...
    """

    def __init__(self, message: str, status: int = 500, kind: str = "internal") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class UntrustedError(ServeError):
    """A gateway's certificate is signed by nobody that is trusted, or names another host."""


class DeployError(ErlessError):
    """A target refused, or a function did not get ready; says the function's own reason."""


class ClusterError(DeployError):
    """A cluster does not get ready for erless: Knative does not start, or a kind is unknown."""


class UnreachableError(DeployError):
    """No answer from a cluster: no such host, nothing listens, or it is down for too long."""


class ForbiddenError(DeployError):
    """The cluster does not know this user, or does not permit the request."""


class NotDeployedError(DeployError):
    """Nothing of erless runs at this target."""


class ConflictError(DeployError):
    """Somebody else owns what we would change, or changes it at the same time."""


class OtherModelError(ConflictError):
    """A deploy would put one model in the place of another that answers queries."""


class SeveralModelsError(DeployError):
    """Several models are deployed in one place, and it is not said which one is meant."""


class SupervisorEndedError(DeployError):
    """The local supervisor ended before it had answered."""


def first_line(error: BaseException) -> str:
    """What a foreign exception says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
