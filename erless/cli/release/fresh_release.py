"""The release that `erless update --follow` publishes to: after a compaction, the new one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from erless.api.decoys import follow_with_decoys
from erless.cli.bars import bars
from erless.cli.deployment.target_options import PlaceOptions, resolve_target
from erless.cli.options import project, store_of
from erless.cli.run import note
from erless.deploy.desired_release import load_desired
from erless.errors import DeployError, ErlessError
from erless.pack.generations.compact import changed_share, compact
from erless.pack.generations.publish import Publisher
from erless.specs.stored import find_release
from erless.storage.stores import open_store

if TYPE_CHECKING:
    from erless.deploy.target import Target
    from erless.specs.generations import GenerationManifest

__all__ = ["FreshRelease"]

AGAIN_S = 300.0  # after a compaction that did not succeed
DEPLOY_S = 600.0  # for a compacted release to be ready, as `erless deploy` waits


class FreshRelease:
    """The release that a follower publishes to.

    Args:
        release: its digest, or the beginning of it; "": the last that was packed.
        store: that holds it; None: erless.yaml's.
        endpoint_url: of an S3 API other than AWS's.
        compact_share: bytes of changed rows ÷ bytes of its rows beyond which it is compacted; 0:
            never; None: as erless.yaml says.

    Raises:
        StoreError: the store has no such release.
    """

    def __init__(
        self,
        release: str,
        store: str | None,
        endpoint_url: str | None,
        compact_share: float | None,
    ) -> None:
        config = project()
        self._location = store_of(store, None, config)
        self._endpoint_url = endpoint_url
        self._store = open_store(self._location, endpoint_url=endpoint_url)
        declared = config.freshness.compact_share
        self._share = declared if compact_share is None else compact_share
        self._known: dict[str, int] = {}
        self._not_before = 0.0
        self.publisher = Publisher(self._store, find_release(self._store, release).digest)

    @property
    def digest(self) -> str:
        """Of the release."""
        return self.publisher.release.digest

    def compact_when_due(self, newest: GenerationManifest) -> None:
        """Fold the generations once they are the declared share of the rows, and cut over.

        Only where the release is deployed by the target of `erless.yaml`. What cannot be done is
        told, and tried again later.
        """
        if not self._share or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + AGAIN_S
        try:
            share = changed_share(self._store, self.publisher.release, newest, self._known)
            if share > self._share:
                self._compact()
            else:
                self._not_before = 0.0
        except ErlessError as error:
            note(f"not compacted: {error}; it is tried again after {AGAIN_S:g} s")

    def _compact(self) -> None:
        before = self.digest
        place, config = resolve_target(PlaceOptions())
        serving = (target for target in place.by_model() if _serves(target, before))
        destination = next(serving, None)
        if destination is None:
            raise DeployError(
                f"release {before[:12]} is not what target {place.name} serves: fold it with "
                "`erless pack --onto`, and deploy it where it is served"
            )
        with bars() as progress:
            folded = compact(self._store, before, progress)
            note(f"generation {folded.generation} of {before[:12]} → {folded.release.digest[:12]}")
            desired = load_desired(self._location, folded.release.digest, self._endpoint_url)
            desired = follow_with_decoys(desired, config, destination, note)
            destination.deploy(desired, progress, DEPLOY_S)
        note(f"release {folded.release.digest[:12]} answers")
        self.publisher.close()
        self.publisher = Publisher(self._store, folded.release.digest)
        self._known.clear()
        self._not_before = 0.0

    def __enter__(self) -> FreshRelease:
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.close()


def _serves(target: Target, release: str) -> bool:
    return any(kept.release == release and kept.current for kept in target.deployments())
