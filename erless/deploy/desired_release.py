"""What shall run, read from a store: a release, its plan, and its decoys."""

from __future__ import annotations

from pathlib import Path

from erless.deploy.target import Desired, Target
from erless.errors import ArtifactError
from erless.specs.decoys import load_decoys
from erless.specs.plan import Plan
from erless.specs.stored import find_release
from erless.storage.stores import open_store

__all__ = ["load_desired", "standing_decoys"]


def load_desired(
    location: str,
    release: str = "",
    endpoint_url: str | None = None,
    *,
    replace_model: bool = False,
) -> Desired:
    """The release whose digest begins with `release` ("": the newest) in the store at `location`.

    Args:
        location: a folder, or s3://bucket/prefix.
        release: digits that a digest begins with.
        endpoint_url: of another S3 service than Amazon's.
        replace_model: the release may take the place of one of another model.

    Raises:
        StoreError: no such store or release.
        ArtifactError: release or plan are damaged, or do not belong together.
        StorageError: the disk or service refused.
    """
    store = open_store(location, endpoint_url=endpoint_url)
    release_manifest = find_release(store, release)
    where_plan = f"{store.url}/{release_manifest.plan.path}"
    plan = Plan.parse(store.read(release_manifest.plan.path), where_plan)
    if plan.digest != release_manifest.plan_digest:
        raise ArtifactError(
            f"{where_plan}: plan {plan.digest[:12]}, expected {release_manifest.plan_digest[:12]}"
        )
    where = location if location.startswith("s3://") else str(Path(location).resolve())
    decoys = load_decoys(store, release_manifest.digest)
    return Desired(where, release_manifest, plan, endpoint_url, replace_model, decoys)


def standing_decoys(desired: Desired, target: Target) -> int:
    """How many decoys stand beside what `target` serves now, as the store of `desired` has it.

    Raises:
        DeployError: the target does not tell.
        StorageError: the disk or service refused.
    """
    serving = next((kept.release for kept in target.deployments() if kept.current), None)
    if serving is None:
        return 0
    store = open_store(desired.store, endpoint_url=desired.endpoint_url)
    return len(load_decoys(store, serving))
