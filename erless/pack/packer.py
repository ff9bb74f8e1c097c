"""Plan + bundle + profile → release, in one reading of each table.

Everything is named by its content and nothing depends on when or where it was made. `keys/`
remembers what an input became: before a slice is made its key (table file, counts, ranks,
precision) is looked up, so packing twice does nothing, a changed shard is made alone, a run that
was cut off goes on where it stopped, and many workers with `--shard` share the work. Whoever finds
all shards there writes the release manifest, last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError, PlanError, StoreError
from erless.pack.quantize import decode, encode, stored_dtype, stored_width
from erless.pack.split import Cut, TableRanks, Window, cuts_of, index_blocks
from erless.pack.stream import CHUNK_BYTES, Pipeline, SourceTable, StreamWriter
from erless.progress import Progress, Silent, Step
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST as BUNDLE_MANIFEST
from erless.specs.bundle import BundleManifest
from erless.specs.model import TableSpec
from erless.specs.plan import Plan, Precision
from erless.specs.profile import MANIFEST as PROFILE_MANIFEST
from erless.specs.profile import Profile
from erless.specs.release import (
    GatewayFiles,
    ReleaseManifest,
    ReleaseShard,
    ShardManifest,
    ShardSlice,
    release_name,
    shard_name,
)
from erless.storage.digests import digest_file, digest_json
from erless.storage.stores import Blob, Store
from erless.storage.tensors import write_tensors

__all__ = ["Packed", "Packer"]

LAYOUT = 1  # of a slice's and the gateway's files; part of every key


@dataclass(frozen=True, slots=True)
class Packed:
    """What a pack did. `release` is None while other workers' shards are missing."""

    release: ReleaseManifest | None
    missing: tuple[str, ...]
    slices_written: int
    slices_kept: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class _Slice:
    """One table's rows in one shard: the unit of packing."""

    shard: int
    table: TableSpec
    precision: Precision
    rows: int
    key: str


@dataclass(slots=True)
class _Output:
    """A slice while it is written."""

    slice: _Slice
    writer: StreamWriter
    blocks: list[NDArray[np.uint64]] = field(default_factory=list)
    rows: int = 0
    weight: float = 0.0
    weighted: Any = None
    error: float = 0.0


class Packer:
    """One plan about to be packed into one store.

    Args:
        bundle: folder of the model bundle.
        profile: folder of the profile that the plan was made from.
        plan: the plan's file.
        store: where the release goes.
        verify: read what the store has already, and make again what is damaged.
        progress: told how far it is.

    Raises:
        PlanError: the three do not belong together, or the plan misses a row.
        ArtifactError: one of them is missing, truncated or altered.
    """

    def __init__(
        self,
        bundle: Path,
        profile: Path,
        plan: Path,
        store: Store,
        *,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.bundle_folder, self.profile_folder, self.plan_path = bundle, profile, plan
        self.store, self.verify, self.progress = store, verify, progress or Silent()
        self.bundle = BundleManifest.open(bundle)
        self.profile = Profile.load(profile / PROFILE_MANIFEST)
        self.plan = Plan.load(plan)
        self._check_belong()
        self.cuts = cuts_of(self.plan, self.bundle.model)
        self._slices = self._plan_slices()
        self._sizes: dict[str, int] = {}
        self._made: dict[str, dict[str, Any]] = {}
        self._written = self._kept = self._bytes = 0

    def _check_belong(self) -> None:
        for what, digest in (
            ("plan", self.plan.model_digest),
            ("profile", self.profile.model_digest),
        ):
            if digest != self.bundle.digest:
                raise PlanError(
                    f"the {what} was made for bundle {digest[:12]}, this is {self.bundle.digest[:12]}"  # noqa: E501
                )
        if self.plan.profile_digest != self.profile.digest:
            raise PlanError(
                f"the plan was made from profile {self.plan.profile_digest[:12]}, this is "
                f"{self.profile.digest[:12]}"
            )

    def _plan_slices(self) -> list[_Slice]:
        found = []
        for table, entry in zip(self.bundle.model.tables, self.bundle.tables, strict=True):
            counts = self._counts(table)
            by_shard: dict[int, list[Cut]] = {}
            for cut in self.cuts[table.name]:
                by_shard.setdefault(cut.shard, []).append(cut)
            for shard, cuts in sorted(by_shard.items()):
                precision = self.plan.shards[shard].precision
                key = digest_json(
                    {
                        "what": "slice",
                        "layout": LAYOUT,
                        "table": entry.sha256,
                        "counts": counts.sha256 if counts else "",
                        "ranks": [[cut.start, cut.stop] for cut in cuts],
                        "precision": precision.value,
                    }
                )
                rows = sum(cut.stop - cut.start for cut in cuts)
                found.append(_Slice(shard, table, precision, rows, key))
        return found

    def _counts(self, table: TableSpec) -> FileEntry | None:
        for each in self.profile.tables:
            if each.table == table.name:
                if each.rows != table.rows:
                    raise PlanError(
                        f"table {table.name} has {table.rows:,} rows, the profile {each.rows:,}"
                    )
                return each.counts
        return None

    def pack(self, shard: int | None = None) -> Packed:
        """Make what is missing: of shard number `shard`, or all; then the release, if complete.

        Raises:
            PlanError: there is no such shard.
            ModelError: a row that its precision cannot hold.
            StorageError: the disk or bucket refused.
        """
        if shard is not None and not 0 <= shard < len(self.plan.shards):
            raise PlanError(f"there is no shard {shard}: the plan has {len(self.plan.shards)}")
        with self.store.held(exclusive=False), self.store.staging() as stage:
            self._take_stock()
            for table in self.bundle.model.tables:
                missing = [
                    each
                    for each in self._slices
                    if each.table is table
                    and shard in (None, each.shard)
                    and not self._has(each.key)
                ]
                if missing:
                    self._pack_table(table, missing, stage)
            release = self._finish(stage)
            kept = [e for e in self._slices if shard in (None, e.shard)]
            names = {
                self.plan.shards[e.shard].name for e in self._slices if e.key not in self._made
            }
        return Packed(
            release, tuple(sorted(names)), self._written, len(kept) - self._written, self._bytes
        )

    def _take_stock(self) -> None:
        self._sizes = {each.name: each.size_bytes for each in self.store.list("blobs/")}
        known = {each.name for each in self.store.list("keys/")}
        for each in self._slices:
            if f"keys/{each.key}.json" in known:
                self._recall(each.key)

    def _recall(self, key: str) -> None:
        """Remember what `key` became, if all of it is still there."""
        try:
            record = json.loads(self.store.read(f"keys/{key}.json"))
            files = [FileEntry(**each) for each in record["files"]]
        except (ArtifactError, ValueError, KeyError, TypeError):
            return  # never made, or a damaged record: make it again
        for entry in files:
            if self._sizes.get(entry.path) != entry.size_bytes:
                return
            if self.verify:
                try:
                    with self.progress.step("verify", entry.size_bytes, "bytes") as step:
                        self.store.check(_blob(entry), step)
                except ArtifactError:
                    self.store.delete(entry.path)
                    return
        self._made[key] = record

    def _has(self, key: str) -> bool:
        return key in self._made

    def _remember(self, key: str, record: dict[str, Any]) -> None:
        self._made[key] = record
        self.store.replace(f"keys/{key}.json", _json(record))

    def _keep(self, staged: Path, entry: FileEntry, step: Step) -> FileEntry:
        self.store.adopt(staged, _blob(entry), step)
        self._sizes[entry.path] = entry.size_bytes
        self._bytes += entry.size_bytes
        return entry

    def _pack_table(self, table: TableSpec, missing: Sequence[_Slice], stage: Path) -> None:
        """Read the table once and write every slice of it that is missing."""
        number = self.bundle.model.tables.index(table)
        entry = self.bundle.tables[number]
        chunk_rows = max(64, CHUNK_BYTES // table.row_bytes)
        source = SourceTable(self.bundle_folder / entry.path, entry, chunk_rows)
        if source.info.shape != (table.rows, table.dim) or source.info.dtype_name != "F32":
            raise ArtifactError(
                f"{source.file.path}: rows are {source.info.dtype_name} {source.info.shape}, "
                f"expected F32 ({table.rows}, {table.dim})"
            )
        with (
            ExitStack() as files,
            Pipeline() as pipeline,
            self.progress.step(f"pack {table.name}", table.table_bytes, "bytes") as step,
        ):
            outputs = [
                _Output(each, files.enter_context(_writer(each, stage, pipeline)))
                for each in missing
            ]
            windows = self._ranks(table).windows(self.cuts[table.name])
            _split(source, windows, outputs, step)
            for each in outputs:
                if each.rows != each.slice.rows:
                    raise ArtifactError(
                        f"table {table.name}: {each.rows:,} rows for shard {each.slice.shard}, "
                        f"expected {each.slice.rows:,}"
                    )
                if each.blocks:
                    for blocks in each.blocks:
                        each.writer.write("index", blocks)
                size, sha256 = each.writer.close()
                file = FileEntry(path=f"blobs/{sha256}.safetensors", size_bytes=size, sha256=sha256)
                self._keep(each.writer.path, file, Silent())
                default = (each.weighted / each.weight).astype(np.float32)
                record = {"files": [file.model_dump()], "error": each.error}
                self._remember(each.slice.key, {**record, "default": default.tolist()})
                self._written += 1

    def _ranks(self, table: TableSpec) -> TableRanks:
        entry = self._counts(table)
        if entry is None:
            return TableRanks(table.rows, None)
        path = self.profile_folder / entry.path
        found = digest_file(path)
        if (found.size_bytes, found.sha256) != (entry.size_bytes, entry.sha256):
            raise ArtifactError(f"{path}: altered: sha256 does not match the profile's")
        return TableRanks(table.rows, path)

    def _finish(self, stage: Path) -> ReleaseManifest | None:
        """Write shard manifests, the gateway's files and the release, if all slices are there."""
        shards = []
        complete = True
        for number, planned in enumerate(self.plan.shards):
            own = [each for each in self._slices if each.shard == number]
            for each in own:
                if not self._has(each.key):
                    self._recall_late(each.key)
            if not all(self._has(each.key) for each in own):
                complete = False
                continue
            manifest = ShardManifest.create(
                precision=planned.precision,
                slices=tuple(
                    ShardSlice(
                        table=each.table.name,
                        table_rows=each.table.rows,
                        dim=each.table.dim,
                        pooling=each.table.pooling,
                        rows=each.rows,
                        file=FileEntry(**self._made[each.key]["files"][0]),
                    )
                    for each in own
                ),
            )
            self._write_manifest(shard_name(manifest.digest), manifest)
            shards.append(
                ReleaseShard(
                    name=planned.name,
                    tier=planned.tier,
                    precision=planned.precision,
                    digest=manifest.digest,
                    tables=tuple(each.table.name for each in own),
                    rows=manifest.rows,
                    row_bytes=manifest.row_bytes,
                    size_bytes=manifest.size_bytes,
                    largest_error=max(self._made[each.key]["error"] for each in own),
                )
            )
        return self._release(tuple(shards), stage) if complete else None

    def _recall_late(self, key: str) -> None:
        """Another worker may have finished this slice since we took stock."""
        try:
            record = json.loads(self.store.read(f"keys/{key}.json"))
        except ArtifactError:
            return
        self._sizes |= {each.name: each.size_bytes for each in self.store.list("blobs/")}
        if all(self._sizes.get(each["path"]) == each["size_bytes"] for each in record["files"]):
            self._made[key] = record

    def _release(self, shards: tuple[ReleaseShard, ...], stage: Path) -> ReleaseManifest:
        tower = self.bundle_folder / self.bundle.tower.path
        release = ReleaseManifest.create(
            bundle_digest=self.bundle.digest,
            plan_digest=self.plan.digest,
            profile_digest=self.profile.digest,
            model=self.bundle.model,
            shards=shards,
            gateway=GatewayFiles(routing=self._routing(stage), defaults=self._defaults(stage)),
            tower=self._copy(tower, stage, self.bundle.tower),
            bundle=self._copy(self.bundle_folder / BUNDLE_MANIFEST, stage),
            plan=self._copy(self.plan_path, stage),
            profile=self._copy(self.profile_folder / PROFILE_MANIFEST, stage),
        )
        self._write_manifest(release_name(release.digest), release)
        return release

    def _routing(self, stage: Path) -> FileEntry:
        model = self.bundle.model
        counts = [self._counts(table) for table in model.tables]
        cuts = [[[c.start, c.stop, c.shard] for c in self.cuts[t.name]] for t in model.tables]
        key = digest_json(
            {
                "what": "routing",
                "layout": LAYOUT,
                "tables": [[table.name, table.rows] for table in model.tables],
                "counts": [each.sha256 if each else "" for each in counts],
                "cuts": cuts,
            }
        )
        self._recall(key)
        if not self._has(key):
            path = stage / "routing.safetensors"
            declared = {table.name: (np.uint8, (table.rows,)) for table in model.tables}
            total = sum(table.rows for table in model.tables)
            with (
                Pipeline() as pipeline,
                StreamWriter(path, declared, pipeline) as writer,
                self.progress.step("route", total, "rows") as step,
            ):
                for table in model.tables:
                    for window in self._ranks(table).windows(self.cuts[table.name]):
                        writer.write(table.name, window.routes)
                        step.advance(len(window.routes))
                size, sha256 = writer.close()
            entry = FileEntry(path=f"blobs/{sha256}.safetensors", size_bytes=size, sha256=sha256)
            self._keep(path, entry, Silent())
            self._remember(key, {"files": [entry.model_dump()]})
        return FileEntry(**self._made[key]["files"][0])

    def _defaults(self, stage: Path) -> FileEntry:
        path = stage / "defaults.safetensors"
        write_tensors(
            path,
            {
                f"{each.shard}.{each.table.name}": np.array(
                    self._made[each.key]["default"], np.float32
                )
                for each in self._slices
            },
        )
        return self._add(path, "safetensors")

    def _copy(self, path: Path, stage: Path, expected: FileEntry | None = None) -> FileEntry:
        """Keep a copy of one of the inputs."""
        copy = stage / path.name
        shutil.copyfile(path, copy)
        entry = self._add(copy, path.suffix.removeprefix("."))
        if expected and entry.sha256 != expected.sha256:
            raise ArtifactError(f"{path}: altered: sha256 does not match the bundle's")
        return entry

    def _add(self, staged: Path, kind: str) -> FileEntry:
        """Keep a staged file as a blob, unless the store has it."""
        size, sha256 = digest_file(staged)
        entry = FileEntry(path=f"blobs/{sha256}.{kind}", size_bytes=size, sha256=sha256)
        if self._sizes.get(entry.path) != size or self.verify:
            self._keep(staged, entry, Silent())
        return entry

    def _write_manifest(self, name: str, manifest: ShardManifest | ReleaseManifest) -> None:
        text = _json(manifest.model_dump(mode="json"))
        try:
            self.store.create(name, text)
        except StoreError:
            self.store.replace(name, text)  # its name is its content's digest: that one is damaged


def _writer(each: _Slice, stage: Path, pipeline: Pipeline) -> StreamWriter:
    dim, rows = each.table.dim, each.rows
    tensors: dict[str, tuple[Any, tuple[int, ...]]] = {
        "rows": (stored_dtype(each.precision), (rows, stored_width(each.precision, dim)))
    }
    if rows < each.table.rows:
        tensors["index"] = (np.uint64, (-(-each.table.rows // 192), 4))
    return StreamWriter(stage / f"{each.key}.safetensors", tensors, pipeline)


def _split(source: SourceTable, windows: Any, outputs: list[_Output], step: Step) -> None:
    """Send each chunk's rows to the slices they belong to."""
    pending: Window = next(windows)
    begin = 0
    for each in outputs:
        _index(each, pending)
    for chunk in source:
        done = 0
        while done < len(chunk):
            if begin == pending.begin + len(pending.routes):
                pending = next(windows)
                for each in outputs:
                    _index(each, pending)
            inside = begin - pending.begin
            size = min(len(chunk) - done, len(pending.routes) - inside)
            rows = chunk[done : done + size]
            routes = pending.routes[inside : inside + size]
            counts = pending.counts[inside : inside + size]
            for each in outputs:
                _take(each, rows, routes, counts)
            done, begin = done + size, begin + size
        step.advance(chunk.nbytes)
    for _ in windows:
        raise AssertionError("windows go beyond the table")


def _index(each: _Output, window: Window) -> None:
    if each.slice.rows < each.slice.table.rows:
        rank = int(each.blocks[-1][-1, 0] >> np.uint64(16)) if each.blocks else 0
        if each.blocks:
            rank += int(np.bitwise_count(each.blocks[-1][-1, 1:]).sum())
        each.blocks.append(index_blocks(window.routes == each.slice.shard, rank))


def _take(
    each: _Output,
    chunk: NDArray[np.float32],
    routes: NDArray[np.uint8],
    counts: NDArray[np.float32],
) -> None:
    """Append the rows of `chunk` that belong to the slice, and add them to its mean."""
    places = np.flatnonzero(routes == each.slice.shard)
    if not len(places):
        return
    rows = chunk if len(places) == len(chunk) else chunk.take(places, axis=0)
    weights = counts[places] + np.float32(1)
    total = _weighted_sum(rows, weights)
    each.weighted = total if each.weighted is None else each.weighted + total
    each.weight += float(weights.sum(dtype=np.float64))
    stored = encode(rows, each.slice.precision)
    if each.slice.precision is not Precision.FP32:
        values = decode(stored, each.slice.precision, rows.shape[1])
        values -= rows
        each.error = max(each.error, float(np.abs(values, out=values).max()))
    each.writer.write("rows", stored)
    each.rows += len(rows)


def _weighted_sum(rows: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Σ weight·row (dim,), the same to the bit on every machine: no BLAS, a fixed order."""
    total = np.zeros(rows.shape[1])
    for begin in range(0, len(rows), 4096):
        part = slice(begin, begin + 4096)
        total += np.add.reduce(rows[part] * weights[part, None], axis=0)
    return total


def _blob(entry: FileEntry) -> Blob:
    return Blob(entry.path, entry.size_bytes, entry.sha256)


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
