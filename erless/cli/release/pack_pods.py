"""`erless pack --engine kubernetes`: portions become the indexes of Jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from erless.cli.cluster.cluster_options import (
    ContextOption,
    ImageOption,
    KubeconfigOption,
    NamespaceOption,
    cluster_config,
    cluster_settings_of,
)
from erless.cli.cluster.pack_jobs import JobOptions, PackJobs, published_jobs
from erless.cli.options import project

if TYPE_CHECKING:
    from erless.deploy.kubernetes.api import Api
    from erless.pack.packer import Packed, Packer
    from erless.pack.portions import PackStep
    from erless.progress import Progress

__all__ = ["PodOptions", "pack_by_pods"]


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
    jobs = published_jobs(packer, options, settings)
    api = connect(settings.options.kubeconfig, settings.options.context)
    api.apply(account(jobs.job.digest, settings))
    return pack_in_portions(packer, jobs.job.sizes, _Pods(api, jobs), progress)


class _Pods:
    """Makes portions by the pods of a Job."""

    def __init__(self, api: Api, jobs: PackJobs) -> None:
        self._api, self._jobs = api, jobs

    def run(self, step: PackStep, numbers: Sequence[int], done: Callable[[int], None]) -> None:
        """Run the Job of `step`: all its indexes, of which those not in `numbers` find no work."""
        from erless.deploy.kubernetes.indexed_job import run_indexed_job

        def tell(number: int) -> None:
            if number in numbers:
                done(number)

        run_indexed_job(self._api, self._jobs.document(step), tell)
