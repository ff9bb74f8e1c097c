"""What all artifacts share: a schema version, a content digest, strict loading, atomic saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from erless.errors import ArtifactError
from erless.specs.strict.findings import first_finding
from erless.storage.atomic import os_errors, staged_file
from erless.storage.digests import digest_json
from erless.storage.strict_json import MOST_BYTES, read_json

__all__ = ["Artifact", "FileEntry", "FromElsewhere", "Frozen", "RelativePath"]


class Frozen(BaseModel):
    """A value class: immutable; a field that it does not have is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class FromElsewhere(Frozen):
    """A value class that another program, or another version of ours, writes.

    Terraform's outputs and a supervisor's state may have fields that we do not read: they are
    ignored.
    """

    model_config = ConfigDict(extra="ignore")


# Relative, with slashes. No part begins with a dot, so none leads up, and none is hidden.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}"
RelativePath = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART}){{0,7}}$")]


class FileEntry(Frozen):
    """One file of an artifact: `path` is relative to the artifact's folder, and inside it."""

    path: RelativePath
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
            ArtifactError: missing, not JSON, another kind, a newer schema, a field that is invalid
                or unknown, or content that does not match its digest.
        """
        with os_errors(path, "read"), path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: bytes, where: str) -> Self:
        """The artifact that `text`, read from `where`, holds; checked as `load` does.

        Raises:
            ArtifactError: as `load`.
        """
        document = read_json(text, where)
        if not isinstance(document, dict) or document.get("kind") != cls.KIND:
            raise ArtifactError(f"{where}: not a {cls.KIND}")
        version = document.get("schema_version")
        if type(version) is not int or not 1 <= version <= cls.SCHEMA_VERSION:
            raise ArtifactError(
                f"{where}: {cls.KIND} schema {version}; "
                f"this erless reads up to {cls.SCHEMA_VERSION}"
            )
        if document.get("digest") != _digest(document):
            raise ArtifactError(f"{where}: altered: its content does not match its digest")
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            keys, words = first_finding(error)
            raise ArtifactError(
                ": ".join((where, *filter(None, [".".join(keys)]), words))
            ) from error

    @property
    def text(self) -> bytes:
        """The artifact as folders and stores keep it: JSON, indented."""
        document = self.model_dump(mode="json")
        return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write the artifact to `path`, atomically.

        Raises:
            StorageError: the disk refused.
        """
        text = self.text
        with staged_file(path) as stage, os_errors(stage):
            stage.write_bytes(text)


def _digest(document: dict[str, Any]) -> str:
    return digest_json({key: value for key, value in document.items() if key != "digest"})
