"""What a process or pod that makes portions is told: one document, on its input or in the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from pydantic import Field

from erless.errors import OptionError
from erless.pack.inputs import PackInputs
from erless.pack.keys import Keys
from erless.pack.portions import PortionSizes
from erless.pack.ranks import WINDOW_ROWS
from erless.specs.artifact import Artifact, FileEntry
from erless.specs.bundle import MANIFEST as BUNDLE_MANIFEST
from erless.specs.profile import MANIFEST as PROFILE_MANIFEST
from erless.specs.stored import keep_by_digest
from erless.storage.atomic import os_errors, path_inside
from erless.storage.store import Blob, Ignore, Store

__all__ = ["MODEL", "PLAN", "PROFILE", "PackJob", "job_name"]

MODEL, PROFILE, PLAN = "model", "profile", "plan.json"  # where they lie among a job's files


def job_name(digest: str) -> str:
    """Where a job lies in its store."""
    return f"jobs/{digest}.json"


class PackJob(Artifact):
    """A pack that others share in.

    `bundle`, `profile` and `plan` are places on this machine; a pod has `files` instead, blobs of
    the store by the name that they had, such as `profile/profile.json`. Where `tables_at` names a
    prefix in a bucket, the bundle's tables are there and its other files here.
    """

    KIND: ClassVar[str] = "erless pack job"

    store: str
    endpoint_url: str | None = None
    bundle: str = ""
    profile: str = ""
    plan: str = ""
    tables_at: str | None = None
    files: dict[str, FileEntry] = Field(default_factory=dict)
    usual_bytes: int
    split_bytes: int
    window_rows: int = WINDOW_ROWS

    @classmethod
    def here(cls, inputs: PackInputs, store: Store, sizes: PortionSizes) -> PackJob:
        """For processes of this machine."""
        return cls.create(
            store=store.url,
            endpoint_url=inputs.endpoint_url,
            bundle=str(inputs.bundle_folder.absolute()),
            profile=str(inputs.profile_folder.absolute()),
            plan=str(inputs.plan_path.absolute()),
            tables_at=inputs.tables_at,
            usual_bytes=sizes.usual_bytes,
            split_bytes=sizes.split_bytes,
            window_rows=inputs.window_rows,
        )

    @classmethod
    def publish(
        cls,
        inputs: PackInputs,
        keys: Keys,
        store: Store,
        sizes: PortionSizes,
        endpoint_url: str | None,
    ) -> PackJob:
        """For pods: what they read besides the tables is put into `store`, and the job with it.

        Args:
            inputs: what is packed, of a bundle in a bucket.
            keys: the store's.
            store: a bucket.
            sizes: of the portions.
            endpoint_url: of the S3 API, as pods reach it.

        Raises:
            OptionError: pods could not reach bundle or store.
            StorageError: the disk or bucket refused.
        """
        if inputs.tables_at is None or store.folder is not None:
            raise OptionError(
                "pods read the bundle, and write the release, in a bucket: --model s3://… and "
                "--store s3://… (`aws s3 cp --recursive` brings a bundle there)"
            )
        job = cls.create(
            store=store.url,
            endpoint_url=endpoint_url,
            tables_at=inputs.tables_at,
            files=_published(inputs, keys, store),
            usual_bytes=sizes.usual_bytes,
            split_bytes=sizes.split_bytes,
            window_rows=inputs.window_rows,
        )
        keep_by_digest(store, job_name(job.digest), job.text)
        return job

    @property
    def line(self) -> bytes:
        """The job as one line."""
        return json.dumps(json.loads(self.text)).encode() + b"\n"

    @property
    def sizes(self) -> PortionSizes:
        """How large portions are."""
        return PortionSizes(self.usual_bytes, self.split_bytes)

    @contextmanager
    def inputs(self, store: Store) -> Iterator[PackInputs]:
        """What is packed: in place, or fetched from `store`.

        Raises:
            PlanError, ArtifactError: as `PackInputs`.
            StorageError: the disk or bucket refused.
        """
        with TemporaryDirectory(prefix="erless-pack-") as name:
            folder = Path(name)
            for file, entry in self.files.items():
                path = path_inside(folder, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                store.fetch(Blob(entry.path, entry.size_bytes, entry.sha256), path, Ignore())
            yield PackInputs(
                folder / (self.bundle or MODEL),  # an absolute path stays what it is
                folder / (self.profile or PROFILE),
                folder / (self.plan or PLAN),
                tables_at=self.tables_at,
                endpoint_url=self.endpoint_url,
                window_rows=self.window_rows,
            )


def _published(inputs: PackInputs, keys: Keys, store: Store) -> dict[str, FileEntry]:
    """The inputs' files but for tables, as blobs of `store`, by their names in a job."""
    paths = {
        f"{MODEL}/{BUNDLE_MANIFEST}": inputs.bundle_folder / BUNDLE_MANIFEST,
        f"{PROFILE}/{PROFILE_MANIFEST}": inputs.profile_folder / PROFILE_MANIFEST,
        PLAN: inputs.plan_path,
    }
    for table in inputs.model.tables:
        entry = inputs.counts(table)
        if entry is not None:
            paths[f"{PROFILE}/{entry.path}"] = path_inside(inputs.profile_folder, entry.path)
    files = {}
    with store.staging() as stage:
        for name, path in paths.items():
            copy = stage / "input"
            with os_errors(path, "read"):
                shutil.copyfile(path, copy)
            files[name] = keys.add(copy, path.suffix.removeprefix("."))
    return files
