"""What all artifacts share: a schema version, a content digest, strict loading, atomic saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from erless.errors import ArtifactError
from erless.storage.atomic import os_errors, staged_file
from erless.storage.digests import digest_json

__all__ = ["Artifact", "FileEntry", "Frozen"]


class Frozen(BaseModel):
    """A value class: immutable; unknown fields are ignored when it is read back."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class FileEntry(Frozen):
    """One file of an artifact: `path` is relative to the artifact's folder."""

    path: str = Field(pattern=r"^[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*$")
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Artifact(Frozen):
    """A JSON document with a digest of its own content.

    `digest` is sha256 over the canonical JSON of everything but itself; since the document holds
    the digests of its files, it identifies the whole artifact.
    """

    KIND: ClassVar[str]
    SCHEMA_VERSION: ClassVar[int] = 1

    kind: str = ""
    schema_version: int = 0
    digest: str = ""

    @classmethod
    def create(cls, **fields: Any) -> Self:
        """Build the artifact and stamp kind, schema version and digest."""
        draft = cls(kind=cls.KIND, schema_version=cls.SCHEMA_VERSION, digest="", **fields)
        return draft.model_copy(update={"digest": _digest(draft.model_dump(mode="json"))})

    def amended(self, **changes: Any) -> Self:
        """This artifact with some fields changed, stamped anew."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        for stamped in Artifact.model_fields:
            del fields[stamped]
        return self.create(**{**fields, **changes})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check the artifact at `path`.

        Raises:
            ArtifactError: missing, not JSON, another kind, a newer schema, an invalid field, or
                content that does not match its digest.
        """
        with os_errors(path, "read"):
            text = path.read_bytes()
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: bytes, where: str) -> Self:
        """The artifact that `text`, read from `where`, holds; checked as `load` does.

        Raises:
            ArtifactError: as `load`.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"{where}: not JSON ({error})") from error
        if not isinstance(document, dict) or document.get("kind") != cls.KIND:
            raise ArtifactError(f"{where}: not a {cls.KIND}")
        version = document.get("schema_version")
        if not isinstance(version, int) or version > cls.SCHEMA_VERSION:
            raise ArtifactError(
                f"{where}: {cls.KIND} schema {version}; "
                f"this erless reads up to {cls.SCHEMA_VERSION}"
            )
        if document.get("digest") != _digest(document):
            raise ArtifactError(f"{where}: altered: its content does not match its digest")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{where}: {field}: {first['msg']}") from error

    def save(self, path: Path) -> None:
        """Write the artifact to `path`, atomically.

        Raises:
            StorageError: the disk refused.
        """
        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
        with staged_file(path) as stage, os_errors(stage):
            stage.write_text(text, encoding="utf-8")


def _digest(document: dict[str, Any]) -> str:
    return digest_json({key: value for key, value in document.items() if key != "digest"})
