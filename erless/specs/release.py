"""A release in a store: one immutable version of a model, cut into shards.

    STORE/                        a directory, or s3://bucket/prefix
      store.json                  marks a store of ours, with its schema
      blobs/<sha256>.<kind>       every file, named by its content
      shards/<digest>.json        a `ShardManifest`: all that one sparse function needs
      releases/<digest>.json      a `ReleaseManifest`, written last: what the gateway needs
      order/<number>.json         which release was packed as that number (`erless.specs.stored`)
      keys/<key>.json             the output of an input, so that packing it again does nothing

All paths in a manifest are relative to the store. A shard's manifest names neither plan nor
profile, so two releases that hold the same rows at the same precision share the shard (and the
function that serves it), whatever their plans call it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Self

from pydantic import Field, model_serializer, model_validator

from erless.errors import ArtifactError
from erless.specs.artifact import Artifact, FileEntry, Frozen
from erless.specs.model import ModelSpec, Pooling
from erless.specs.plan import Precision, Tier

__all__ = [
    "ROUTING_LIMIT",
    "Folded",
    "GatewayFiles",
    "ReleaseManifest",
    "ReleaseShard",
    "ShardManifest",
    "ShardSlice",
    "release_name",
    "shard_name",
]

ROUTING_LIMIT = 255  # shards of a release, the resident ones among them: a code of one byte
_LATER = ("front", "request_front", "vocabularies", "folds")
_HEX = re.compile(r"[0-9a-f]{64}")


def shard_name(digest: str) -> str:
    """The name in a store of the shard manifest with `digest`.

    Raises:
        ArtifactError: not a digest.
    """
    return f"shards/{_checked(digest)}.json"


def release_name(digest: str) -> str:
    """The name in a store of the release manifest with `digest`.

    Raises:
        ArtifactError: not a digest.
    """
    return f"releases/{_checked(digest)}.json"


def _checked(digest: str) -> str:
    if not _HEX.fullmatch(digest):
        raise ArtifactError(f"{digest!r} is not a digest: 64 hexadecimal digits are")
    return digest


def _without_cache(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if (key, value) != ("cache_bytes", None)}


class ShardSlice(Frozen):
    """The rows of one table in one shard; `file` holds the tensors `rows` and the row-id index.

    `rows` are in ascending order of row id; their layout is `erless.dlrm.quantize`'s. The index
    (`erless.dlrm.rows.RowIndex`) gives a row id's position among them. Those of the disk tier begin
    at a multiple of 4096 bytes of the file, and `checksums` has the CRC-32C of each 4096 of them.
    """

    table: str
    table_rows: int = Field(gt=0, description="rows of the whole table: the range of row ids")
    dim: int = Field(gt=0)
    pooling: Pooling
    rows: int = Field(gt=0, description="rows of the table that this shard holds")
    file: FileEntry
    precision: Precision | None = Field(None, description="where it is not the shard's")

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out the precision where it is the shard's, so that digests stay what they were."""
        return {
            key: value
            for key, value in dump(self).items()
            if value is not None or key != "precision"
        }


class ShardManifest(Artifact):
    """All that a sparse function needs: it is named, and verified, by `digest`."""

    KIND: ClassVar[str] = "erless shard"

    precision: Precision
    slices: tuple[ShardSlice, ...] = Field(min_length=1, description="in the model's table order")
    cache_bytes: int | None = Field(
        None, ge=0, description="of the disk tier: memory for rows that were read; else null"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what a shard in memory does not have, so that its digest stays what it was."""
        return _without_cache(dump(self))

    @model_validator(mode="after")
    def _each_table_once(self) -> Self:
        names = [part.table for part in self.slices]
        if len(set(names)) < len(names):
            raise ValueError("a table has two slices")
        for part in self.slices:
            if part.rows > part.table_rows:
                raise ValueError(
                    f"{part.rows:,} rows of table {part.table}, which has {part.table_rows:,}"
                )
        return self

    @property
    def rows(self) -> int:
        """Rows of all tables in the shard."""
        return sum(part.rows for part in self.slices)

    @property
    def row_bytes(self) -> int:
        """Bytes of the stored rows, without the index."""
        return sum(part.rows * self.precision_of(part).row_bytes(part.dim) for part in self.slices)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(part.file.size_bytes for part in self.slices)

    def precision_of(self, part: ShardSlice) -> Precision:
        """How the rows of one of its slices are stored."""
        return part.precision or self.precision

    def files(self) -> tuple[FileEntry, ...]:
        """All files of the shard."""
        return tuple(part.file for part in self.slices)


class ReleaseShard(Frozen):
    """One shard as the plan placed it. Its number, in routing, is its place in the release."""

    name: str
    tier: Tier
    precision: Precision
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its ShardManifest")
    tables: tuple[str, ...] = Field(min_length=1)
    rows: int = Field(gt=0)
    row_bytes: int = Field(ge=0, description="bytes of the stored rows")
    size_bytes: int = Field(ge=0, description="bytes of its files: rows and indexes")
    largest_error: float = Field(
        ge=0, description="largest |stored - fp32| over all elements, measured while packing"
    )
    cache_bytes: int | None = Field(None, ge=0, description="as in its manifest")
    kept_from: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="the release that it was packed for"
    )
    spare_rows: int = Field(0, ge=0, description="rows that it holds and others answer for")
    exact: dict[str, Precision] = Field(
        default_factory=dict, description="precision of single tables, where it is another"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """As of `ShardManifest`; and what only some shards have."""
        later = ("kept_from", "spare_rows", "exact")
        fields = _without_cache(dump(self))
        return {key: value for key, value in fields.items() if value or key not in later}

    def precision_of(self, table: str) -> Precision:
        """How the rows of one of its tables are stored."""
        return self.exact.get(table, self.precision)


class GatewayFiles(Frozen):
    """What the gateway loads besides the resident shards.

    routing: the shard of each row of each table (`erless.specs.routes`).
    defaults: one float32 tensor (dim,) per slice, `<shard number>.<table>`: the vector that stands
        in for a row whose shard is not awake, the mean of the slice's rows, each weighted by its
        accesses + 1.
    """

    routing: FileEntry
    defaults: FileEntry


class Folded(Frozen):
    """What a release was made of by compaction: `generation` of `release`."""

    release: str = Field(pattern=r"^[0-9a-f]{64}$")
    generation: int = Field(ge=1)


class ReleaseManifest(Artifact):
    """One immutable deployed version: this bundle, cut by this plan."""

    KIND: ClassVar[str] = "erless release"

    bundle_digest: str
    plan_digest: str
    profile_digest: str
    model: ModelSpec
    shards: tuple[ReleaseShard, ...] = Field(min_length=1, max_length=ROUTING_LIMIT)
    gateway: GatewayFiles
    tower: FileEntry
    bundle: FileEntry = Field(description="the bundle's model.json")
    plan: FileEntry = Field(description="plan.json")
    profile: FileEntry = Field(description="profile.json")
    front: FileEntry | None = None
    request_front: FileEntry | None = None
    vocabularies: tuple[FileEntry, ...] = Field(
        (), description="of the features whose ids have one, in the features' order"
    )
    folds: Folded | None = Field(
        None,
        description="the generation whose rows and weights are stored here; bundle, plan and "
        "profile are those of its release",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what a plain DLRM does not have, so that its digests stay what they were."""
        fields = dump(self)
        return {key: value for key, value in fields.items() if value or key not in _LATER}

    @model_validator(mode="after")
    def _all_rows_of_the_model(self) -> Self:
        names = [shard.name for shard in self.shards]
        if len(set(names)) < len(names):
            raise ValueError("two shards have one name")
        model_tables = {table.name for table in self.model.tables}
        for shard in self.shards:
            strange = next((name for name in shard.tables if name not in model_tables), None)
            if strange is not None:
                raise ValueError(f"shard {shard.name}: the model has no table {strange}")
        shard_rows = sum(shard.rows - shard.spare_rows for shard in self.shards)
        rows = sum(table.rows for table in self.model.tables)
        if shard_rows != rows:
            raise ValueError(f"the shards answer for {shard_rows:,} rows, the model has {rows:,}")
        return self

    @property
    def remote(self) -> tuple[ReleaseShard, ...]:
        """The shards that are functions of their own."""
        return tuple(shard for shard in self.shards if shard.tier is not Tier.RESIDENT)

    @property
    def resident(self) -> tuple[ReleaseShard, ...]:
        """The shards that every gateway replica holds."""
        return tuple(shard for shard in self.shards if shard.tier is Tier.RESIDENT)

    def shard(self, name: str) -> ReleaseShard:
        """The shard called `name`.

        Raises:
            KeyError: there is none.
        """
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise KeyError(name)

    @property
    def tower_files(self) -> tuple[FileEntry, ...]:
        """The tower and what is computed before the lookups."""
        return tuple(file for file in (self.tower, self.front, self.request_front) if file)

    def files(self) -> tuple[FileEntry, ...]:
        """The release's own files: all but those of its shards."""
        return (
            self.gateway.routing,
            self.gateway.defaults,
            *self.tower_files,
            *self.vocabularies,
            self.bundle,
            self.plan,
            self.profile,
        )
