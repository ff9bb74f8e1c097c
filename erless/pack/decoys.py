"""Draw the decoys of a release, and keep them in its store.

A decoy takes tables, precision and tier of a shard that may sleep, and a size like the sizes of
those. It keeps its identity as long as that shard is deployed: one that were new in every release,
among shards that are not, would stand out, and so would one that stays when all others change.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erless.dlrm.quantize import decode
from erless.errors import PlanError
from erless.specs.decoys import (
    DECOYS,
    DecoyManifest,
    DecoyShard,
    DecoySlice,
    decoy_name,
    keep_decoys,
    load_decoys,
)
from erless.specs.placement import read_blob
from erless.specs.release import ReleaseManifest, ReleaseShard, ShardManifest, ShardSlice
from erless.specs.stored import load_shard
from erless.storage.store import Blob, Store

__all__ = ["plant_decoys"]

SPREAD_OF_SIZES = 0.3  # standard deviation of a decoy's log size around a real shard's
SAMPLE_BYTES = 64 << 20  # a larger file is not fetched to see how its elements are distributed


@dataclass(frozen=True, slots=True)
class _Moments:
    mean: float
    spread: float


def plant_decoys(
    store: Store, release: ReleaseManifest, likes: Sequence[str], *, write: bool = True
) -> tuple[DecoyShard, ...]:
    """Have one decoy for each of `likes` stand beside the release's shards from now on.

    Those that there are already stay, as do those of earlier releases whose shard is still here.

    Args:
        store: of the release.
        release: whose shards they stand beside.
        likes: digests of shards to imitate, one for each decoy.
        write: False draws them and keeps nothing.

    Raises:
        PlanError: a shard to imitate is not the release's, or its rows lie on a disk.
        ArtifactError: the store's decoys, or a shard, are damaged.
        StorageError: the disk or bucket refused.
    """
    shards = {shard.digest: shard for shard in release.remote}
    known = _known(store, release.digest)
    planted: list[DecoyShard] = []
    made: list[DecoyManifest] = []
    for like in likes:
        shard = shards.get(like)
        if shard is None or shard.cache_bytes is not None:
            why = "is not one of its functions" if shard is None else "lies on disks"
            raise PlanError(f"release {release.digest[:12]}: shard {like[:12]} {why}")
        kept = next((decoy for decoy in known if decoy.like == like), None)
        if kept is not None:
            known.remove(kept)
            planted.append(kept)
            continue
        manifest, decoy = _draw(store, shard)
        made.append(manifest)
        planted.append(decoy)
    if write and tuple(planted) != load_decoys(store, release.digest):
        keep_decoys(store, release.digest, tuple(made), tuple(planted))
    return tuple(planted)


def _known(store: Store, release: str) -> list[DecoyShard]:
    """All decoys in the store, those of `release` first, each once."""
    digests = [
        stored.name.removeprefix(DECOYS).removesuffix(".json")
        for stored in sorted(store.list(DECOYS), key=lambda stored: -stored.modified_s)
    ]
    ordered = sorted(digests, key=lambda digest: digest != release)
    decoys = [decoy for digest in ordered for decoy in load_decoys(store, digest)]
    return list({decoy.shard.digest: decoy for decoy in decoys}.values())


def _draw(store: Store, like: ReleaseShard) -> tuple[DecoyManifest, DecoyShard]:
    seed = secrets.token_bytes(32)
    random = np.random.default_rng(int.from_bytes(seed))
    scale = math.exp(random.normal(0.0, SPREAD_OF_SIZES))
    manifest = load_shard(store, like.digest)
    slices = tuple(
        _slice(store, manifest, part, scale * math.exp(random.normal(0.0, SPREAD_OF_SIZES / 3)))
        for part in manifest.slices
    )
    decoy = DecoyManifest.create(seed=secrets.token_hex(32), slices=slices)
    rows = sum(part.rows for part in slices)
    row_bytes = sum(part.rows * part.precision.row_bytes(part.dim) for part in slices)
    beside = like.size_bytes - like.row_bytes  # indexes, which tables of the same rows have
    shard = like.model_copy(
        update={
            "name": decoy_name(like.tier.value, decoy.digest),
            "digest": decoy.digest,
            "rows": rows,
            "row_bytes": row_bytes,
            "size_bytes": row_bytes + beside,
            "kept_from": None,
            "spare_rows": 0,
        }
    )
    size_ratio = shard.size_bytes / like.size_bytes if like.size_bytes else 1.0
    return decoy, DecoyShard(shard=shard, like=like.digest, scale=size_ratio)


def _slice(store: Store, manifest: ShardManifest, part: ShardSlice, scale: float) -> DecoySlice:
    precision = manifest.precision_of(part)
    moments = _moments(store, manifest, part)
    return DecoySlice(
        table=part.table,
        table_rows=part.table_rows,
        dim=part.dim,
        pooling=part.pooling,
        precision=precision,
        rows=max(1, min(part.table_rows, round(part.rows * scale))),
        mean=moments.mean,
        spread=moments.spread,
    )


def _moments(store: Store, manifest: ShardManifest, part: ShardSlice) -> _Moments:
    """How the elements of a slice are distributed, as far as a look at its file is cheap."""
    if part.file.size_bytes > SAMPLE_BYTES:
        return _Moments(0.0, 1.0 / math.sqrt(part.dim))
    file = part.file
    stored = read_blob(store, Blob(file.path, file.size_bytes, file.sha256))["rows"]
    values = decode(stored[:4096], manifest.precision_of(part), part.dim)
    return _Moments(float(values.mean()), float(values.std()))
