"""A function's image without an engine: base + dependencies + erless → archive."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from erless.deploy.image.content import APP, application_items, dependency_items
from erless.deploy.image.layer import Layer, write_layer
from erless.deploy.image.oci import Base, Image, ImageArchive, append, load_base, write_archive
from erless.deploy.image.processors import Processor, own_processor, processor
from erless.deploy.image.reference import parse_reference
from erless.errors import BaseImageError, ImageError
from erless.specs.functions import FunctionKind
from erless.specs.planning import Architecture

__all__ = ["build_archive", "default_base"]

USER = "65532:65532"


def default_base(version: tuple[int, int] = sys.version_info[:2]) -> str:
    """The official image of the Python that runs here: the compiled kernels are for its minor.

    >>> default_base((3, 12))
    'python:3.12-slim-bookworm'
    """
    return f"python:{version[0]}.{version[1]}-slim-bookworm"


def build_archive(
    kind: FunctionKind,
    base: str,
    target: Path,
    scratch: Path,
    *,
    architectures: Sequence[Architecture] = (),
    dependencies: bool = True,
    torch: bool = False,
    wheels: Path | None = None,
) -> ImageArchive:
    """Write the image of a function to `target`, an OCI archive; of several processors, as one.

    Args:
        kind: of the function.
        base: reference of an image with this Python's version.
        target: the archive's file.
        scratch: a folder to work in; it may be kept between functions.
        architectures: of the processors that it is for; empty: of this machine's.
        dependencies: whether to add what erless imports; False: the base has it.
        torch: add torch.
        wheels: a folder of wheels instead of the package index.

    Raises:
        BaseImageError: the base cannot be had, or has another Python.
        DependencyError: pip failed.
        ImageError: another part failed.
    """
    processors = [processor(name) for name in architectures] or [own_processor()]
    images = []
    for each in processors:
        below = _read_base(base, each, scratch)
        _check_python(below)
        layers = []
        if dependencies:
            items = dependency_items(kind, each, scratch, torch=torch, wheels=wheels)
            file = scratch / f"{kind}-{each.name}-dependencies.tar.gz"
            layers.append(write_layer(items, file))
        file = scratch / f"{kind}-{each.name}-erless.tar.gz"
        layers.append(write_layer(application_items(each, scratch), file))
        images.append(_image(kind, below, layers))
    return write_archive(images, target)


def _image(kind: FunctionKind, below: Base, layers: list[Layer]) -> Image:
    settings = {
        "Entrypoint": ["python3", "-m", "erless.serve", kind],
        "WorkingDir": f"/{APP}",
        "User": USER,
        "ExposedPorts": {"8080/tcp": {}},
    }
    environment = {
        "PYTHONPATH": f"/{APP}:/{APP}/site-packages",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return append(below, layers, settings, environment)


def _read_base(base: str, processor: Processor, scratch: Path) -> Base:
    """The image to build on, from its registry."""
    try:
        return load_base(parse_reference(base), scratch, processor.name)
    except ImageError as error:
        raise BaseImageError(str(error)) from error


def _check_python(base: Base) -> None:
    """Compiled kernels and bytecode are for one minor version; official images say theirs."""
    variables = dict(
        variable.split("=", 1) for variable in base.config.get("config", {}).get("Env", [])
    )
    version = variables.get("PYTHON_VERSION")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version and not version.startswith(f"{running}."):
        raise BaseImageError(
            f"base {base.name} has Python {version}; erless is compiled for {running} here"
        )
