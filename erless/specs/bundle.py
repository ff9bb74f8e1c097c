"""The model bundle's manifest, `model.json`.

model/
  model.json                   this document
  tables/<name>.safetensors    one tensor `rows`, (rows, dim) float32
  tower.safetensors            built-in tower: bottom.I.weight/bias, top.I.weight/bias
  tower.pt2                    or a `torch.export` archive
  front.pt2                    of a graph that computes before its lookups, likewise
  request_front.pt2            likewise, of what comes once per request
  vocabulary/<feature>.…       of features whose ids a vocabulary turns into rows
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator

from erless.errors import ArtifactError
from erless.progress import Progress
from erless.specs.artifact import Artifact, FileEntry
from erless.specs.features import VocabularyIds
from erless.specs.model import GraphTower, ModelSpec, TableSpec
from erless.storage.atomic import os_errors, path_inside
from erless.storage.digests import digest_file

__all__ = ["MANIFEST", "TABLE_TENSOR", "BundleManifest"]

MANIFEST = "model.json"
TABLE_TENSOR = "rows"


class BundleManifest(Artifact):
    """A model and the files that hold it: one file per table, in the model's order."""

    KIND: ClassVar[str] = "erless model bundle"
    SCHEMA_VERSION: ClassVar[int] = 2  # 2: features, graphs, vocabularies

    model: ModelSpec
    tables: tuple[FileEntry, ...]
    tower: FileEntry
    front: FileEntry | None = None
    request_front: FileEntry | None = None

    @model_validator(mode="after")
    def _one_file_per_table(self) -> Self:
        if len(self.tables) != len(self.model.tables):
            raise ValueError(
                f"{len(self.tables)} files for the model's {len(self.model.tables)} tables"
            )
        for table, entry in zip(self.model.tables, self.tables, strict=True):
            if entry.path != f"tables/{table.name}.safetensors":
                raise ValueError(f"table {table.name} cannot lie in {entry.path}")
        graph = self.model.tower if isinstance(self.model.tower, GraphTower) else None
        for name, file, gives in (
            ("front", self.front, graph and graph.front_gives),
            ("request front", self.request_front, graph and graph.request_front_gives),
        ):
            if bool(gives) != (file is not None):
                raise ValueError(f"the model's {name} and its file do not go together")
        return self

    @classmethod
    def open(cls, folder: Path) -> BundleManifest:
        """Read `folder/model.json` and check that each file is there in full size.

        Raises:
            ArtifactError: no bundle there, a file is missing or of another size.
        """
        if not folder.is_dir():
            raise ArtifactError(f"{folder} is not a model bundle: no such directory")
        manifest = cls.load(folder / MANIFEST)
        for entry in manifest.files():
            path = path_inside(folder, entry.path)
            with os_errors(path, "read"):
                size = path.stat().st_size
            if size != entry.size_bytes:
                raise ArtifactError(
                    f"{path}: {size:,} bytes, expected {entry.size_bytes:,}: truncated or altered"
                )
        return manifest

    @property
    def vocabularies(self) -> tuple[FileEntry, ...]:
        """The vocabulary files of the features that have one, in the features' order."""
        rules = [feature.rule for feature in self.model.features]
        return tuple(rule.file for rule in rules if isinstance(rule, VocabularyIds))

    def files(self) -> tuple[FileEntry, ...]:
        """All files but the manifest."""
        fronts = [file for file in (self.front, self.request_front) if file]
        return (*self.tables, self.tower, *fronts, *self.vocabularies)

    def table_file(self, folder: Path, table: TableSpec) -> Path:
        """The file of `table`, for a bundle at `folder`."""
        names = [table.name for table in self.model.tables]
        return folder / self.tables[names.index(table.name)].path

    def verify(self, folder: Path, progress: Progress | None = None) -> None:
        """Read every file whole and compare with its digest.

        Raises:
            ArtifactError: a file's content is not what the bundle was written with.
        """
        for entry in self.files():
            digest = digest_file(path_inside(folder, entry.path), progress)
            if (digest.size_bytes, digest.sha256) != (entry.size_bytes, entry.sha256):
                raise ArtifactError(f"{folder / entry.path}: altered: sha256 does not match")
