"""What a pack is made from, checked to belong together, and the slices that it comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erless.errors import ArtifactError, PlanError
from erless.pack.ranks import WINDOW_ROWS, Cut, TableRanks, Window, cuts_of
from erless.pack.stream import SourceTable
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST as BUNDLE_MANIFEST
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.counts import open_counts
from erless.specs.model import TableSpec
from erless.specs.plan import Plan, Precision
from erless.specs.profile import MANIFEST as PROFILE_MANIFEST
from erless.specs.profile import Profile, TableAccess
from erless.specs.routes import PACKED
from erless.storage.atomic import path_inside
from erless.storage.digests import digest_file, digest_json
from erless.storage.ranged import open_ranges

__all__ = ["LAYOUT", "PackInputs", "PackSlice"]

LAYOUT = 1  # of a slice's and the gateway's files; part of every key


@dataclass(frozen=True, slots=True)
class PackSlice:
    """One table's rows in one shard: the unit of packing. `key` is a digest of all that its file
    depends on.

    `table_number` is the table's place in the model, `shard` the shard's in the plan.
    """

    shard: int
    table_number: int
    table: TableSpec
    precision: Precision
    rows: int
    key: str
    on_disk: bool = False


class PackInputs:
    """A bundle, the profile of its log, and the plan made from both.

    Args:
        bundle: folder of the model bundle.
        profile: folder of the profile that the plan was made from.
        plan: the plan's file.
        tables_at: `s3://bucket/prefix` of the bundle, where `bundle` holds all but its tables.
        endpoint_url: of the S3 API that they lie behind.
        window_rows: rows that are routed at a time, and that a mean is summed over at a time.

    Raises:
        PlanError: the three do not belong together, or the plan misses a row.
        ArtifactError: one of them is missing, truncated or altered.
    """

    def __init__(
        self,
        bundle: Path,
        profile: Path,
        plan: Path,
        *,
        tables_at: str | None = None,
        endpoint_url: str | None = None,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        self.bundle_folder, self.profile_folder, self.plan_path = bundle, profile, plan
        self.tables_at, self.endpoint_url = tables_at, endpoint_url
        self.window_rows = window_rows
        self.bundle = (
            BundleManifest.load(bundle / BUNDLE_MANIFEST)
            if tables_at
            else BundleManifest.open(bundle)
        )
        self.profile = Profile.load(profile / PROFILE_MANIFEST)
        self._accesses = {access.table: access for access in self.profile.tables}
        self.plan = Plan.load(plan)
        self.model = self.bundle.model
        self._check_belong()
        self.cuts = cuts_of(self.plan, self.model)
        self.slices = tuple(
            part
            for number, table in enumerate(self.model.tables)
            for part in self._slices_of(number, table)
            if self.plan.shards[part.shard].kept is None
        )

    def _check_belong(self) -> None:
        bundle_digest = self.bundle.digest
        for artifact, digest in (
            ("plan", self.plan.model_digest),
            ("profile", self.profile.model_digest),
        ):
            if digest != bundle_digest:
                raise PlanError(
                    f"the {artifact} was made for bundle {digest[:12]}, this is "
                    f"{bundle_digest[:12]}"
                )
        if self.plan.profile_digest != self.profile.digest:
            raise PlanError(
                f"the plan was made from profile {self.plan.profile_digest[:12]}, this is "
                f"{self.profile.digest[:12]}"
            )

    def _slices_of(self, number: int, table: TableSpec) -> list[PackSlice]:
        counts = self.counts(table)
        by_shard: dict[int, list[Cut]] = {}
        for cut in self.cuts[table.name]:
            by_shard.setdefault(cut.shard, []).append(cut)
        pack_slices = []
        for shard, cuts in sorted(by_shard.items()):
            precision = self.plan.shards[shard].precision_of(table.name)
            on_disk = self.plan.shards[shard].disk is not None
            inputs: dict[str, Any] = {
                "what": "slice",
                "layout": LAYOUT,
                "table": self.bundle.tables[number].sha256,
                "counts": counts.sha256 if counts else "",
                "ranks": [[cut.start, cut.stop] for cut in cuts],
                "precision": precision.value,
            }
            if table.rows > self.window_rows:
                inputs["mean"] = self.window_rows  # it is summed by windows
            key = digest_json(inputs | ({"storage": "disk"} if on_disk else {}))
            rows = sum(cut.stop - cut.start for cut in cuts)
            pack_slices.append(PackSlice(shard, number, table, precision, rows, key, on_disk))
        return pack_slices

    @contextmanager
    def source(self, number: int, chunk_rows: int) -> Iterator[SourceTable]:
        """The rows of table number `number`, checked to be what the model says.

        Raises:
            ArtifactError: its file is missing, damaged, or of another table.
        """
        entry, table = self.bundle.tables[number], self.model.tables[number]
        location = (
            f"{self.tables_at}/{entry.path}"
            if self.tables_at
            else str(path_inside(self.bundle_folder, entry.path))
        )
        file = open_ranges(location, self.endpoint_url)
        with closing(file):
            source = SourceTable(file, entry, chunk_rows)
            if source.info.shape != (table.rows, table.dim) or source.info.dtype_name != "F32":
                raise ArtifactError(
                    f"{file.name}: {TABLE_TENSOR} are {source.info.dtype_name} "
                    f"{source.info.shape}, expected F32 ({table.rows}, {table.dim})"
                )
            yield source

    def check_table(self, number: int) -> None:
        """Compare the file of table number `number` with the bundle's digest, where it lies here.

        In a bucket nothing is read: a table of terabytes would take as long as all the rest.

        Raises:
            ArtifactError: it is altered.
        """
        entry = self.bundle.tables[number]
        if self.tables_at is None:
            path = path_inside(self.bundle_folder, entry.path)
            if digest_file(path).sha256 != entry.sha256:
                raise ArtifactError(f"{path}: altered: sha256 does not match the bundle's")

    def counts(self, table: TableSpec) -> FileEntry | None:
        """The profile's counts file of `table`, or None where its log never touched it.

        Raises:
            PlanError: the profile is of a table of another size.
        """
        access = self._access(table)
        return access.counts if access else None

    def _access(self, table: TableSpec) -> TableAccess | None:
        access = self._accesses.get(table.name)
        if access is not None and access.rows != table.rows:
            raise PlanError(
                f"table {table.name} has {table.rows:,} rows, the profile {access.rows:,}"
            )
        if access is not None and access.histogram is not None and access.counts is None:
            raise PlanError(
                f"table {table.name}: the profile has a histogram of its {access.touched:,} rows, "
                "enough to plan but not to rank them: profile with a larger --most-rows"
            )
        return access

    def windows(
        self, table: TableSpec, scratch: Path, rows: range | None = None
    ) -> Iterator[Window]:
        """Route the rows of `table`, or those of a range that begins with a window.

        Raises:
            ArtifactError: its counts file is missing, altered or contradicts itself.
            StorageError: `scratch` is full.
        """
        cuts = self.cuts[table.name]
        return self._ranks(table).windows(cuts, scratch, self.window_rows, rows)

    def _ranks(self, table: TableSpec) -> TableRanks:
        """The rows of `table` in the profile's order."""
        access = self._access(table)
        entry = access.counts if access else None
        if access is None or entry is None:
            return TableRanks(table.rows, None)
        path = path_inside(self.profile_folder, entry.path)
        actual = digest_file(path)
        if (actual.size_bytes, actual.sha256) != (entry.size_bytes, entry.sha256):
            raise ArtifactError(f"{path}: altered: sha256 does not match the profile's")
        open_counts(self.profile_folder, access, placed=self.profile.placed)
        return TableRanks(table.rows, path)

    def routing_key(self, holders: Mapping[str, Sequence[int]]) -> str:
        """A digest of all that the gateway's routing depends on.

        Args:
            holders: table → the shards that have it, as of `erless.specs.routes`.
        """
        counts = [self.counts(table) for table in self.model.tables]
        kept = [shard.kept.model_dump() for shard in self.plan.shards if shard.kept]
        return digest_json(
            {
                **({"kept": kept} if kept else {}),
                "what": "routing",
                "layout": [LAYOUT, PACKED],
                "holders": [list(holders[table.name]) for table in self.model.tables],
                "tables": [[table.name, table.rows] for table in self.model.tables],
                "counts": [entry.sha256 if entry else "" for entry in counts],
                "cuts": [
                    [[cut.start, cut.stop, cut.shard] for cut in self.cuts[table.name]]
                    for table in self.model.tables
                ],
            }
        )
