"""Manifests as they lie in a store: list, find and load releases and shards.

Every stage that reads a release starts here: pack's inventory, the functions, the targets.

Releases are ordered by numbers that the store gives out, not by the times of their files: a clock
may be set back, and a copied store has new times. `order/<number>.json` names the release that was
packed as that number. A number is taken by creating its document, which succeeds once, so packers
that end at the same moment get numbers one after the other. Releases without a number, which an
older erless packed, come after all that have one, by their files' times.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from pydantic import Field, ValidationError

from erless.errors import ArtifactError, StoreError
from erless.specs.artifact import Artifact, Frozen
from erless.specs.release import ReleaseManifest, ShardManifest, release_name, shard_name
from erless.specs.strict.findings import first_finding
from erless.storage.store import Store, StoredObject
from erless.storage.strict_json import read_json

__all__ = [
    "find_release",
    "keep_by_digest",
    "list_releases",
    "load_by_digest",
    "load_release",
    "load_shard",
    "record_release",
    "stale_records",
]

ORDER = "order/"
ATTEMPTS = 100  # each that fails is another packer that got a number
_ORDER_NAME = re.compile(r"order/(\d{8,})\.json")

A = TypeVar("A", bound=Artifact)


def load_by_digest(store: Store, name: str, kind: type[A], digest: str) -> A:
    """Read the manifest called `name` and check that it has the `digest` in that name.

    Raises:
        ArtifactError: missing, altered or of a newer schema.
    """
    artifact = kind.parse(store.read(name), f"{store.url}/{name}")
    if artifact.digest != digest:
        raise ArtifactError(f"{store.url}/{name}: altered: its digest is {artifact.digest}")
    return artifact


def keep_by_digest(store: Store, name: str, text: bytes) -> None:
    """Keep a document whose name says what it holds.

    Raises:
        StorageError: the disk or bucket refused.
    """
    try:
        store.create(name, text)
    except StoreError:
        store.replace(name, text)  # another content under that name: a damaged copy


def load_release(store: Store, digest: str) -> ReleaseManifest:
    """The release with `digest`.

    Raises:
        ArtifactError: missing, altered or of a newer schema.
    """
    return load_by_digest(store, release_name(digest), ReleaseManifest, digest)


def load_shard(store: Store, digest: str) -> ShardManifest:
    """The shard with `digest`.

    Raises:
        ArtifactError: missing, altered or of a newer schema.
    """
    return load_by_digest(store, shard_name(digest), ShardManifest, digest)


def record_release(store: Store, digest: str) -> None:
    """Give a release that was just packed the store's next number; one that has one keeps it.

    Raises:
        StoreError: other packers took every number that was tried.
        ArtifactError: a record of the order is damaged.
    """
    refusal: StoreError | None = None
    for _ in range(ATTEMPTS):
        numbers = _numbers(store)
        if any(_release_of(store, number) == digest for number in reversed(numbers)):
            return
        number = numbers[-1] + 1 if numbers else 1
        try:
            store.create(_order_name(number), _Record(release=digest).text())
        except StoreError as error:
            refusal = error  # by another packer: take the next one
        else:
            return
    raise StoreError(f"{store.url}: no number for release {digest[:12]}") from refusal


def list_releases(store: Store) -> list[tuple[str, StoredObject]]:
    """Digest and manifest of each release, the last packed first.

    Raises:
        ArtifactError: a record of the order is damaged.
    """
    numbers = {_release_of(store, number): number for number in _numbers(store)}
    releases = _releases(store)
    return sorted(
        releases.items(), key=lambda item: (-numbers.get(item[0], 0), -item[1].modified_s, item[0])
    )


def find_release(store: Store, prefix: str) -> ReleaseManifest:
    """The one release whose digest begins with `prefix`; "" finds the last packed.

    Raises:
        StoreError: none, or several.
        ArtifactError: its manifest, or a record of the order, is damaged.
    """
    releases = _releases(store)
    matching = [digest for digest in releases if digest.startswith(prefix)]
    if not matching:
        release = f"release {prefix}" if prefix else "release"
        raise StoreError(f"{store.url} holds no {release}")
    if prefix and len(matching) > 1:
        raise StoreError(f"{store.url}: {len(matching)} releases begin with {prefix}")
    return load_release(store, matching[0] if prefix else _last_packed(store, releases))


def stale_records(store: Store, releases: Collection[str]) -> list[StoredObject]:
    """Records of the order whose release is none of `releases`."""
    objects = {stored.name: stored for stored in store.list(ORDER)}
    return [
        objects[_order_name(number)]
        for number in _numbers(store)
        if _release_of(store, number) not in releases and _order_name(number) in objects
    ]


def _releases(store: Store) -> dict[str, StoredObject]:
    """The manifest of each release, by the digest in its name."""
    return {
        stored.name.removeprefix("releases/").removesuffix(".json"): stored
        for stored in store.list("releases/")
    }


def _last_packed(store: Store, releases: Mapping[str, StoredObject]) -> str:
    for number in reversed(_numbers(store)):
        digest = _release_of(store, number)
        if digest in releases:
            return digest
    return min(releases, key=lambda digest: (-releases[digest].modified_s, digest))


class _Record(Frozen):
    """The document `order/<number>.json`."""

    release: str = Field(pattern=r"^[0-9a-f]{64}$")

    def text(self) -> bytes:
        return (self.model_dump_json() + "\n").encode()


def _order_name(number: int) -> str:
    return f"{ORDER}{number:08d}.json"


def _numbers(store: Store) -> list[int]:
    """The numbers that were given out and whose releases were not pruned, rising."""
    names = (_ORDER_NAME.fullmatch(stored.name) for stored in store.list(ORDER))
    return sorted(int(name.group(1)) for name in names if name)


def _release_of(store: Store, number: int) -> str:
    name = _order_name(number)
    document = read_json(store.read(name), f"{store.url}/{name}")
    try:
        return _Record.model_validate(document, strict=True).release
    except ValidationError as error:
        keys, words = first_finding(error)
        where = f"{store.url}/{name}"
        raise ArtifactError(f"{where}: {'.'.join(keys) or 'the record'} {words}") from error
