"""Indexed Jobs: work that is cut into numbered parts, a pod each, tried again part by part.

Nothing of it is a function: no queries come, so its pods have no ports and no probes, and labels of
their own. An eviction, a drained or a spot node costs a part nothing of its tries (podFailurePolicy
on DisruptionTarget); an exit code that says "never" ends the part at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.render.cluster_function import Object
from erless.deploy.kubernetes.render.pods import MIB, millicores, placed_pod, restricted

__all__ = ["CONTAINER", "INDEX_LABEL", "JOB_LABEL", "WAVE", "IndexedWork", "indexed_job"]

CONTAINER = "work"
JOB_LABEL = "batch.kubernetes.io/job-name"  # set by Kubernetes
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
TRIES_AGAIN = 4  # of one part
KEPT_S = 3600  # a finished Job whose coordinator is gone removes itself
SCRATCH = "/scratch"
WAVE = "argocd.argoproj.io/sync-wave"  # Argo CD waits for the Jobs of a wave before the next


@dataclass(frozen=True, slots=True)
class IndexedWork:
    """What the pods of one Job do.

    name: of the Job. digest: of what it works on. wave: Jobs of earlier ones come first. role:
    whose placement its pods share, as a function's. command: of the container; the index comes in
    JOB_COMPLETION_INDEX. never: the exit code that trying again does not mend. scratch_bytes: of
    the node's disk, for one part.
    """

    name: str
    digest: str
    wave: int
    role: str
    command: Sequence[str]
    parts: int
    at_once: int
    vcpu: float
    memory_bytes: int
    scratch_bytes: int
    never: int
    environment: Mapping[str, str]


def indexed_job(work: IndexedWork, settings: ClusterSettings) -> Object:
    """The Job of `work`.

    Raises:
        ConfigError: no image for sparse functions, which it runs in, or one without a digest.
    """
    options = settings.options
    labels = {"app.kubernetes.io/name": "erless", names.KIND: "pack"}
    environment = {"TMPDIR": SCRATCH, **work.environment}
    memory = f"{math.ceil(work.memory_bytes / MIB)}Mi"
    scratch = f"{math.ceil(work.scratch_bytes / MIB)}Mi"
    container: Object = {
        "name": CONTAINER,
        "image": settings.image("sparse"),
        "command": list(work.command),
        "env": [{"name": name, "value": value} for name, value in sorted(environment.items())],
        "resources": {
            "requests": {
                "cpu": millicores(work.vcpu / options.cpu_overcommit),
                "memory": memory,
                "ephemeral-storage": scratch,
            },
            "limits": {"memory": memory, "ephemeral-storage": scratch},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **restricted(),
    }
    if options.credentials_secret:
        container["envFrom"] = [{"secretRef": {"name": options.credentials_secret}}]
    pod = {
        **placed_pod(work.role, settings),
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": scratch}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": names.metadata(
            work.name,
            work.digest,
            namespace=options.namespace,
            labels=labels,
            annotations={WAVE: str(work.wave)},
        ),
        "spec": {
            "completionMode": "Indexed",
            "completions": work.parts,
            "parallelism": min(work.at_once, work.parts),
            "backoffLimitPerIndex": TRIES_AGAIN,
            "maxFailedIndexes": 0,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "FailIndex",
                        "onExitCodes": {
                            "containerName": CONTAINER,
                            "operator": "In",
                            "values": [work.never],
                        },
                    },
                ]
            },
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
