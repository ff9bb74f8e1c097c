"""The Jobs of `erless pack --engine kubernetes`, as they are applied and as they are rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from erless.deploy.kubernetes.cluster_settings import ClusterSettings
    from erless.pack.job import PackJob
    from erless.pack.packer import Packer
    from erless.pack.portions import PackStep, Portions

__all__ = ["JobOptions", "PackJobs", "job_objects", "published_jobs"]

GIB = 1 << 30
POD_MEMORY_BYTES = 2 * GIB  # chunks, routing of a window, parts of an upload: measured 0.5 GB
POD_VCPU = 2.0  # four threads, of which the busiest takes one
SPARE_BYTES = 2 * GIB  # of a pod's disk: what the profile counted, sorted by window


@dataclass(frozen=True)
class JobOptions:
    """Pods that share the work."""

    pods: Annotated[int, typer.Option(help="Pods at a time.", min=1)] = 16
    portion_gb: Annotated[
        float, typer.Option(help="GB of rows that one pod reads, about.", min=0.000001)
    ] = 16.0


def job_objects(
    packer: Packer, options: JobOptions, settings: ClusterSettings
) -> tuple[str, list[dict[str, Any]]]:
    """The job's digest, and the objects that `pack_by_pods` applies, in that order.

    What the pods read besides the tables is put into the store, as there.

    Raises:
        OptionError: bundle or store are not in a bucket.
        ConfigError: there is no image.
    """
    from erless.deploy.kubernetes.render.policies import account

    jobs = published_jobs(packer, options, settings)
    return jobs.job.digest, [account(jobs.job.digest, settings), *jobs.documents()]


def published_jobs(packer: Packer, options: JobOptions, settings: ClusterSettings) -> PackJobs:
    """The Jobs, whose inputs are in the store now. Raises as `job_objects`."""
    from erless.pack.job import PackJob
    from erless.pack.portions import Portions, PortionSizes

    size = max(1, int(options.portion_gb * 1e9))
    sizes = PortionSizes(size, size)
    job = PackJob.publish(
        packer.inputs, packer.keys, packer.store, sizes, settings.options.endpoint_url
    )
    return PackJobs(job, Portions(packer.inputs, sizes), settings, options.pods)


class PackJobs:
    """The Jobs of one pack, one for each step that has portions."""

    def __init__(
        self, job: PackJob, portions: Portions, settings: ClusterSettings, pods: int
    ) -> None:
        self.job = job
        self._portions, self._settings, self._pods = portions, settings, pods

    def document(self, step: PackStep) -> dict[str, Any]:
        """The Job of `step`."""
        from erless.deploy.kubernetes import names
        from erless.deploy.kubernetes.render.jobs import IndexedWork, indexed_job
        from erless.pack.portions import PackStep
        from erless.pack.worker import FINAL

        job, portions = self.job, self._portions.of(step)
        command = ["python3", "-m", "erless.pack.worker", str(step)]
        command += ["--store", job.store, "--job", job.digest]
        if job.endpoint_url:
            command += ["--endpoint-url", job.endpoint_url]
        region = self._settings.options.region
        work = IndexedWork(
            name=f"erless-pack-{step}-{names.short(job.digest)}",
            digest=job.digest,
            wave=list(PackStep).index(step),
            role="cold",
            command=command,
            parts=len(portions),
            at_once=self._pods,
            vcpu=POD_VCPU,
            memory_bytes=POD_MEMORY_BYTES,
            scratch_bytes=max(portion.size_bytes for portion in portions) + SPARE_BYTES,
            never=FINAL,
            environment={"AWS_REGION": region} if region else {},
        )
        return indexed_job(work, self._settings)

    def documents(self) -> list[dict[str, Any]]:
        """All of them, in the order in which they must run."""
        from erless.pack.portions import PackStep

        return [self.document(step) for step in PackStep if self._portions.of(step)]
