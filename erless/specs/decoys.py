"""Decoy shards in a store: functions that nobody calls, so that whoever does is an intruder.

    STORE/
      shards/<digest>.json      a `DecoyManifest`, where a shard's manifest would be
      decoys/<release>.json     a `DecoySet`: which of a deployed release's shards are decoys

A decoy's function is started as any sparse function is: by the digest of its manifest. Only who
reads the store can tell the two apart.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from erless.errors import ArtifactError
from erless.specs.artifact import Artifact, Frozen
from erless.specs.model import Pooling
from erless.specs.plan import Plan, Precision, ShardPlan
from erless.specs.release import ReleaseManifest, ReleaseShard, ShardManifest, shard_name
from erless.specs.stored import keep_by_digest, load_by_digest, load_shard
from erless.storage.store import Store

__all__ = [
    "DECOYS",
    "DecoyManifest",
    "DecoySet",
    "DecoyShard",
    "DecoySlice",
    "decoy_name",
    "decoys_name",
    "keep_decoys",
    "load_decoys",
    "load_shard_or_decoy",
    "planned_shard",
]

DECOYS = "decoys/"
DIGITS = 8  # of a digest, in a decoy's name
_NAME = re.compile(r"decoys/([0-9a-f]{64})\.json")


class DecoySlice(Frozen):
    """The rows of one table that a decoy pretends to hold."""

    table: str
    table_rows: int = Field(gt=0)
    dim: int = Field(gt=0)
    pooling: Pooling
    precision: Precision
    rows: int = Field(gt=0, description="of the table, about so many")
    mean: float = Field(description="of an element of a row")
    spread: float = Field(ge=0, description="standard deviation of an element")


class DecoyManifest(Artifact):
    """All that a decoy's function needs."""

    KIND: ClassVar[str] = "erless decoy"

    seed: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="of its rows: a secret as the store's rows are"
    )
    slices: tuple[DecoySlice, ...] = Field(min_length=1)


class DecoyShard(Frozen):
    """One decoy as a release's own shards are described.

    like: digest of the shard whose place in the plan it imitates.
    scale: its size ÷ that one's.
    """

    shard: ReleaseShard
    like: str = Field(pattern=r"^[0-9a-f]{64}$")
    scale: float = Field(gt=0)


class DecoySet(Artifact):
    """The decoys that stand beside the shards of a release."""

    KIND: ClassVar[str] = "erless decoys"

    release: str = Field(pattern=r"^[0-9a-f]{64}$")
    shards: tuple[DecoyShard, ...]


def decoy_name(tier: str, digest: str) -> str:
    """What people call a decoy, and a sleeping shard beside decoys: no number tells their order.

    >>> decoy_name("cold", "0123456789abcdef")
    'cold-01234567'
    """
    return f"{tier}-{digest[:DIGITS]}"


def decoys_name(release: str) -> str:
    """The name in a store of the decoys of the release with digest `release`.

    Raises:
        ArtifactError: not a digest.
    """
    name = f"{DECOYS}{release}.json"
    if not _NAME.fullmatch(name):
        raise ArtifactError(f"{release!r} is not a digest: 64 hexadecimal digits are")
    return name


def load_decoys(store: Store, release: str) -> tuple[DecoyShard, ...]:
    """The decoys of a release; none where nobody placed any.

    Raises:
        ArtifactError: the document is damaged, or of a newer schema.
    """
    name = decoys_name(release)
    if not store.list(name):
        return ()
    return DecoySet.parse(store.read(name), f"{store.url}/{name}").shards


def keep_decoys(
    store: Store, release: str, manifests: tuple[DecoyManifest, ...], shards: tuple[DecoyShard, ...]
) -> None:
    """Have `shards` be the decoys of a release from now on; `manifests` are those made for it.

    Raises:
        StorageError: the disk or bucket refused.
    """
    for manifest in manifests:
        keep_by_digest(store, shard_name(manifest.digest), manifest.text)
    name = decoys_name(release)
    if shards:
        store.replace(name, DecoySet.create(release=release, shards=shards).text)
    elif store.list(name):
        store.delete(name)


def load_shard_or_decoy(store: Store, digest: str) -> ShardManifest | DecoyManifest:
    """What the function with `digest` serves. Errors as `load_shard`."""
    text = store.read(shard_name(digest))
    if f'"{DecoyManifest.KIND}"'.encode() in text[:200]:
        return load_by_digest(store, shard_name(digest), DecoyManifest, digest)
    return load_shard(store, digest)


def planned_shard(release: ReleaseManifest, plan: Plan, decoy: DecoyShard) -> ShardPlan | None:
    """How a decoy would be planned, were it a shard; None where `plan` lacks what it imitates.

    It is what it imitates, at its own size, and asleep until it is touched.
    """
    names = {shard.name for shard in release.shards if shard.digest == decoy.like}
    for planned in plan.shards:
        if planned.name in names:
            scaling = planned.scaling.model_copy(update={"min_scale": 0, "initial_scale": 0})
            return planned.model_copy(
                update={
                    "name": decoy.shard.name,
                    "scaling": scaling,
                    "memory_bytes": round(planned.memory_bytes * decoy.scale),
                    "kept": None,
                }
            )
    return None
