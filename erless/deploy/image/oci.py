"""Images as documents: base + layers + what to start → an OCI archive, and an archive → a registry.

An archive is the OCI image layout as one tar file: `oci-layout`, `index.json`, `blobs/sha256/…`. It
holds one image, or an index of images for several processors.
`skopeo copy oci-archive:sparse.tar …`, podman and containerd read it too.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erless.deploy.image.layer import Layer
from erless.deploy.image.reference import ImageReference
from erless.deploy.image.registry import Registry
from erless.errors import ImageError
from erless.specs.planning import Architecture
from erless.storage.atomic import os_errors, staged_file

__all__ = ["Base", "Image", "ImageArchive", "append", "load_base", "push_archive", "write_archive"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": (
        "application/vnd.oci.image.layer.v1.tar+gzip"
    ),
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
}
CREATED = "1970-01-01T00:00:00Z"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Base:
    """An image to build on: its layers' descriptors and files, and its configuration."""

    name: str
    layers: tuple[Document, ...]
    config: Document
    blobs: dict[str, Path]


@dataclass(frozen=True, slots=True)
class Image:
    """An image for one processor: its manifest, and everything that it names."""

    manifest: bytes
    architecture: str
    blobs: dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class ImageArchive:
    """An archive on disk. digest: of its image's manifest, or of the index of its images."""

    path: Path
    digest: str
    size: int


def load_base(reference: ImageReference, scratch: Path, architecture: Architecture) -> Base:
    """Pull a base's configuration and layers, of the image for `architecture`.

    Raises:
        ImageError: the registry does not know it, or does not answer, or it is for others.
    """
    registry = Registry(reference)
    _, manifest = registry.manifest(reference.version, architecture)
    blobs = {}
    for layer in [manifest["config"], *manifest["layers"]]:
        target = scratch / layer["digest"].replace(":", "-")
        if not target.exists():
            registry.pull(layer["digest"], target)
        blobs[layer["digest"]] = target
    config = json.loads(blobs[manifest["config"]["digest"]].read_bytes())
    found = config.get("architecture", "amd64")
    if found != architecture:
        raise ImageError(f"{reference.host}/{reference.name} is for {found}, not {architecture}")
    layers = [
        {**layer, "mediaType": LAYERS.get(layer["mediaType"], layer["mediaType"])}
        for layer in manifest["layers"]
    ]
    return Base(f"{reference.host}/{reference.name}", tuple(layers), config, blobs)


def append(
    base: Base, layers: list[Layer], settings: Document, environment: dict[str, str]
) -> Image:
    """`base` with `layers` on top.

    Args:
        base: the layers below.
        layers: from the lowest.
        settings: `Entrypoint`, `User`, `WorkingDir`, … of the OCI configuration.
        environment: variables, added to the base's.
    """
    inherited = base.config.get("config", {})
    variables = dict(variable.split("=", 1) for variable in inherited.get("Env", []))
    merged = [f"{name}={value}" for name, value in (variables | environment).items()]
    config = {
        "architecture": base.config.get("architecture", "amd64"),
        "os": base.config.get("os", "linux"),
        "created": CREATED,
        "config": {
            **{key: value for key, value in inherited.items() if key not in ("Cmd", "Healthcheck")},
            **settings,
            "Env": merged,
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": [*base.config["rootfs"]["diff_ids"], *(layer.diff_id for layer in layers)],
        },
        "history": [
            *base.config.get("history", []),
            *({"created": CREATED, "created_by": "erless image build"} for _ in layers),
        ],
    }
    text = _canonical(config)
    manifest = _canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": len(text), "digest": _sha256(text)},
            "layers": [*base.layers, *(layer.descriptor() for layer in layers)],
        }
    )
    blobs: dict[str, bytes | Path] = {
        layer["digest"]: base.blobs[layer["digest"]] for layer in base.layers
    }
    blobs |= {layer.digest: layer.path for layer in layers}
    blobs |= {_sha256(text): text, _sha256(manifest): manifest}
    return Image(manifest, config["architecture"], blobs)


def write_archive(images: Sequence[Image], target: Path) -> ImageArchive:
    """Write images for different processors, at least one, as one archive."""
    blobs = {digest: content for image in images for digest, content in image.blobs.items()}
    top, media_type = images[0].manifest, MANIFEST
    if len(images) > 1:
        entries = [
            _entry(image.manifest, MANIFEST)
            | {"platform": {"architecture": image.architecture, "os": "linux"}}
            for image in images
        ]
        top = _canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        media_type = INDEX
        blobs[_sha256(top)] = top
    layout = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [_entry(top, media_type)]}
    with staged_file(target) as stage, os_errors(stage), tarfile.open(stage, "w") as archive:
        _put(archive, "oci-layout", _canonical({"imageLayoutVersion": "1.0.0"}))
        _put(archive, "index.json", _canonical(layout))
        for digest in sorted(blobs):
            _put(archive, f"blobs/{digest.replace(':', '/')}", blobs[digest])
    return ImageArchive(target, _sha256(top), target.stat().st_size)


def _entry(manifest: bytes, media_type: str) -> Document:
    return {"mediaType": media_type, "size": len(manifest), "digest": _sha256(manifest)}


def _put(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    header = tarfile.TarInfo(name)
    header.mode = 0o644
    if isinstance(content, bytes):
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))
        return
    header.size = content.stat().st_size
    with content.open("rb") as file:
        archive.addfile(header, file)


def push_archive(path: Path, reference: ImageReference, scratch: Path) -> str:
    """Push what is in an archive under `reference`'s tag; returns it by digest.

    Raises:
        ImageError: not an archive, or the registry refused.
        ArtifactError: there is no such file.
    """
    registry = Registry(reference)
    with os_errors(path, "read"):
        file = path.open("rb")
    try:
        with file, tarfile.open(fileobj=file) as archive:
            layout = json.loads(_member(archive, "index.json").read())
            digest = layout["manifests"][0]["digest"]
            text = _blob(archive, digest).read()
            document = json.loads(text)
            for entry in document.get("manifests", ()):  # an index of images
                manifest = _blob(archive, entry["digest"]).read()
                _push_blobs(archive, json.loads(manifest), registry, scratch)
                registry.tag(manifest.decode(), entry["digest"])
            if "manifests" not in document:
                _push_blobs(archive, document, registry, scratch)
    except (tarfile.TarError, KeyError, IndexError, ValueError) as error:
        raise ImageError(f"{path} is not an OCI archive: {error}") from error
    registry.tag(text.decode(), reference.tag)
    return reference.at(digest)


def _push_blobs(
    archive: tarfile.TarFile, manifest: Document, registry: Registry, scratch: Path
) -> None:
    """Push the configuration and layers of an image."""
    for layer in [manifest["config"], *manifest["layers"]]:
        file = scratch / layer["digest"].replace(":", "-")
        with file.open("wb") as out:
            shutil.copyfileobj(_blob(archive, layer["digest"]), out)
        registry.push(file, layer["digest"])
        file.unlink()


def _blob(archive: tarfile.TarFile, digest: str) -> Any:
    return _member(archive, f"blobs/{digest.replace(':', '/')}")


def _member(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.extractfile(name)
    if member is None:
        raise KeyError(name)
    return member


def _canonical(document: Document) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
