"""What a store holds: list, show, verify and prune its releases."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from erless.errors import ArtifactError, StoreError
from erless.progress import Progress, Silent
from erless.specs.artifact import FileEntry
from erless.specs.decoys import decoys_name, load_decoys, load_shard_or_decoy
from erless.specs.generations import generation_prefix, kept_by_generations
from erless.specs.heat import heat_prefix
from erless.specs.release import release_name, shard_name
from erless.specs.stored import list_releases, load_release, load_shard, stale_records
from erless.storage.store import Blob, Store, StoredObject
from erless.storage.strict_json import read_json

__all__ = ["Damage", "Pruned", "prune", "verify"]

VERIFY_THREADS = 4
_PRUNED = (
    "shards/",
    "decoys/",
    "keys/",
    "generations/",
    "states/",
    "heat/",
    "blobs/",
    "pieces/",
    "jobs/",
)
GRACE_S = 24 * 3600.0  # a pack that runs longer than this between a blob and its manifest loses it


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was packed."""

    name: str
    fact: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` removed, or would."""

    releases: tuple[str, ...]
    objects: int
    size_bytes: int


def verify(store: Store, digest: str, progress: Progress | None = None) -> list[Damage]:
    """Read every file of the release `digest`; returns what is damaged, nothing if all is well.

    Raises:
        StorageError: the disk or bucket refused.
    """
    damage: list[Damage] = []
    files: dict[str, FileEntry] = {}
    try:
        release = load_release(store, digest)
    except ArtifactError as error:
        return [Damage(release_name(digest), str(error))]
    for entry in release.files():
        files[entry.path] = entry
    for shard in release.shards:
        try:
            for entry in load_shard(store, shard.digest).files():
                files[entry.path] = entry
        except ArtifactError as error:
            damage.append(Damage(shard_name(shard.digest), str(error)))
    try:
        for decoy in load_decoys(store, digest):
            load_shard_or_decoy(store, decoy.shard.digest)
    except ArtifactError as error:
        damage.append(Damage(decoys_name(digest), str(error)))
    try:
        for entry in kept_by_generations(store, digest).files:
            files[entry.path] = entry
    except ArtifactError as error:
        damage.append(Damage(generation_prefix(digest), str(error)))
    total = sum(entry.size_bytes for entry in files.values())
    with (
        (progress or Silent()).step("verify", total, "bytes") as step,
        ThreadPoolExecutor(VERIFY_THREADS) as pool,
    ):

        def check(entry: FileEntry) -> Damage | None:
            try:
                store.check(Blob(entry.path, entry.size_bytes, entry.sha256), step)
            except ArtifactError as error:
                return Damage(entry.path, str(error))
            return None

        damage += [damaged for damaged in pool.map(check, files.values()) if damaged]
    return damage


def prune(
    store: Store, *, keep: set[str], grace_s: float = GRACE_S, dry_run: bool = False
) -> Pruned:
    """Remove all releases but `keep`, then all that no remaining release refers to.

    What is younger than `grace_s` stays, since a packer may be about to refer to it. Releases go
    first, so a stop in between leaves only files that nothing refers to.

    Raises:
        StoreError: a packer is writing to the store (a directory), or `keep` names no release.
        ArtifactError: a release to keep is damaged, so what it refers to is not known.
    """
    with store.locked(exclusive=True):
        releases = dict(list_releases(store))
        unknown = sorted(keep - set(releases))
        if unknown:
            raise StoreError(f"{store.url} holds no release {unknown[0]}")
        horizon = time.time() - grace_s
        doomed = [
            digest
            for digest, manifest in releases.items()
            if digest not in keep and manifest.modified_s <= horizon
        ]
        remaining = [digest for digest in releases if digest not in doomed]
        origins = _origins(store, remaining)  # what a kept shard holds is told where it was packed
        doomed = [digest for digest in doomed if digest not in origins]
        remaining = [digest for digest in releases if digest not in doomed]
        needed = _needed(store, remaining)
        everything = [stored for prefix in _PRUNED for stored in store.list(prefix)]
        orphans = [
            stored
            for stored in everything
            if stored.modified_s <= horizon and not _refers(store, stored, needed)
        ]
        stale = [
            record for record in stale_records(store, remaining) if record.modified_s <= horizon
        ]
        gone = [releases[digest] for digest in doomed] + stale + orphans
        if not dry_run:
            for stored in gone:
                store.delete(stored.name)
            store.sweep(horizon)
    return Pruned(tuple(doomed), len(gone), sum(stored.size_bytes for stored in gone))


def _origins(store: Store, digests: list[str]) -> set[str]:
    """The releases that shards which these releases kept were packed for."""
    shards = [shard for digest in digests for shard in load_release(store, digest).shards]
    return {shard.kept_from for shard in shards if shard.kept_from}


def _needed(store: Store, digests: list[str]) -> set[str]:
    """Names of all that the releases refer to."""
    names: set[str] = set()
    for digest in digests:
        release = load_release(store, digest)
        names |= {entry.path for entry in release.files()}
        for shard in release.shards:
            names.add(shard_name(shard.digest))
            names |= {entry.path for entry in load_shard(store, shard.digest).files()}
        names |= {decoys_name(digest)}
        names |= {shard_name(decoy.shard.digest) for decoy in load_decoys(store, digest)}
        names |= {stored.name for stored in store.list(heat_prefix(digest))}
        changes = kept_by_generations(store, digest)
        names |= changes.names | {entry.path for entry in changes.files}
    return names


def _refers(store: Store, stored: StoredObject, needed: set[str]) -> bool:
    """Whether a stored object is needed; a key is while its files are."""
    if not stored.name.startswith("keys/"):
        return stored.name in needed
    try:
        files = read_json(store.read(stored.name), stored.name)["files"]
        return all(entry["path"] in needed for entry in files)
    except (ValueError, KeyError, TypeError, ArtifactError):
        return False
