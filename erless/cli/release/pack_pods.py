"""`erless pack --engine kubernetes`: portions become the indexes of Jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.cluster.cluster_options import (
    ContextOption,
    ImageOption,
    KubeconfigOption,
    NamespaceOption,
    cluster_config,
    cluster_settings_of,
)
from erless.cli.options import project

if TYPE_CHECKING:
    from erless.deploy.kubernetes.api import Api
    from erless.deploy.kubernetes.cluster_settings import ClusterSettings
    from erless.pack.job import PackJob
    from erless.pack.packer import Packed, Packer
    from erless.pack.portions import PackStep, Portions
    from erless.progress import Progress

__all__ = ["JobOptions", "PodOptions", "job_objects", "pack_by_pods"]

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


@dataclass(frozen=True)
class PodOptions(JobOptions):
    """Pods that share the work, and where they run."""

    namespace: NamespaceOption = None
    kubeconfig: KubeconfigOption = None
    context: ContextOption = None
    image: ImageOption = None


def pack_by_pods(
    packer: Packer, options: PodOptions, endpoint_url: str | None, progress: Progress
) -> Packed:
    """Let Jobs make what is missing, then write the release.

    Raises:
        OptionError: bundle or store are not in a bucket, or there is no image.
        WorkerError: an index failed for good.
        DeployError: the cluster refused.
    """
    from erless.deploy.kubernetes.api import connect
    from erless.deploy.kubernetes.render.policies import account
    from erless.pack.parallel import pack_in_portions

    chosen = {name: getattr(options, name) for name in ("namespace", "kubeconfig", "context")}
    config = cluster_config(project(), chosen)
    settings = cluster_settings_of(config, options.image).with_endpoint(endpoint_url)
    jobs = _published(packer, options, settings)
    api = connect(settings.options.kubeconfig, settings.options.context)
    api.apply(account(jobs.job.digest, settings))
    return pack_in_portions(packer, jobs.job.sizes, _Pods(api, jobs), progress)


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

    jobs = _published(packer, options, settings)
    return jobs.job.digest, [account(jobs.job.digest, settings), *jobs.documents()]


def _published(packer: Packer, options: JobOptions, settings: ClusterSettings) -> _Jobs:
    """The Jobs, whose inputs are in the store now."""
    from erless.pack.job import PackJob
    from erless.pack.portions import Portions, PortionSizes

    size = max(1, int(options.portion_gb * 1e9))
    sizes = PortionSizes(size, size)
    job = PackJob.publish(
        packer.inputs, packer.keys, packer.store, sizes, settings.options.endpoint_url
    )
    return _Jobs(job, Portions(packer.inputs, sizes), settings, options.pods)


class _Jobs:
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


class _Pods:
    """Makes portions by the pods of a Job."""

    def __init__(self, api: Api, jobs: _Jobs) -> None:
        self._api, self._jobs = api, jobs

    def run(self, step: PackStep, numbers: Sequence[int], done: Callable[[int], None]) -> None:
        """Run the Job of `step`: all its indexes, of which those not in `numbers` find no work."""
        from erless.deploy.kubernetes.indexed_job import run_indexed_job

        def tell(number: int) -> None:
            if number in numbers:
                done(number)

        run_indexed_job(self._api, self._jobs.document(step), tell)
