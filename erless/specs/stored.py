"""Manifests as they lie in a store: list, find and load releases and shards.

Every stage that reads a release starts here: pack's inventory, the functions, the targets.
"""

from __future__ import annotations

from typing import TypeVar

from erless.errors import ArtifactError, StoreError
from erless.specs.artifact import Artifact
from erless.specs.release import ReleaseManifest, ShardManifest, release_name, shard_name
from erless.storage.store import Store, StoredObject

__all__ = ["find_release", "list_releases", "load_release", "load_shard"]

A = TypeVar("A", bound=Artifact)


def _load(store: Store, name: str, kind: type[A], digest: str) -> A:
    """Read a manifest and check it against the name it has."""
    artifact = kind.parse(store.read(name), f"{store.url}/{name}")
    if artifact.digest != digest:
        raise ArtifactError(f"{store.url}/{name}: altered: its digest is {artifact.digest}")
    return artifact


def load_release(store: Store, digest: str) -> ReleaseManifest:
    """The release with `digest`.

    Raises:
        ArtifactError: missing, altered or of a newer schema.
    """
    return _load(store, release_name(digest), ReleaseManifest, digest)


def load_shard(store: Store, digest: str) -> ShardManifest:
    """The shard with `digest`.

    Raises:
        ArtifactError: missing, altered or of a newer schema.
    """
    return _load(store, shard_name(digest), ShardManifest, digest)


def list_releases(store: Store) -> list[tuple[str, StoredObject]]:
    """Digest and manifest of each release, newest first."""
    found = store.list("releases/")
    named = [(each.name.removeprefix("releases/").removesuffix(".json"), each) for each in found]
    return sorted(named, key=lambda item: (-item[1].modified_s, item[0]))


def find_release(store: Store, prefix: str) -> ReleaseManifest:
    """The one release whose digest begins with `prefix`; "" finds the newest.

    Raises:
        StoreError: none, or several.
        ArtifactError: its manifest is damaged.
    """
    releases = list_releases(store)
    found = [digest for digest, _ in releases if digest.startswith(prefix)]
    if not found:
        what = f"release {prefix}" if prefix else "release"
        raise StoreError(f"{store.url} holds no {what}")
    if prefix and len(found) > 1:
        raise StoreError(f"{store.url}: {len(found)} releases begin with {prefix}")
    return load_release(store, found[0])
