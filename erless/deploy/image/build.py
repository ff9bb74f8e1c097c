"""A function's image without an engine: base + dependencies + erless → archive."""

from __future__ import annotations

import sys
from pathlib import Path

from erless.deploy.image.content import APP, application_items, dependency_items
from erless.deploy.image.layer import write_layer
from erless.deploy.image.oci import Base, Image, append, load_base
from erless.deploy.image.reference import parse_reference
from erless.errors import BaseImageError, ImageError
from erless.specs.functions import FunctionKind

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
    dependencies: bool = True,
    torch: bool = False,
    wheels: Path | None = None,
) -> Image:
    """Write the image of a function to `target`, an OCI archive.

    Args:
        kind: of the function.
        base: reference of an image with this Python's version.
        target: the archive's file.
        scratch: a folder to work in; it may be kept between functions.
        dependencies: whether to add what erless imports; False: the base has it.
        torch: add torch.
        wheels: a folder of wheels instead of the package index.

    Raises:
        BaseImageError: the base cannot be had, or has another Python.
        DependencyError: pip failed.
        ImageError: another part failed.
    """
    below = _read_base(base, scratch)
    _check_python(below)
    layers = []
    if dependencies:
        items = dependency_items(kind, scratch, torch=torch, wheels=wheels)
        layers.append(write_layer(items, scratch / f"{kind}-dependencies.tar.gz"))
    layers.append(write_layer(application_items(scratch), scratch / f"{kind}-erless.tar.gz"))
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
    return append(below, layers, settings, environment, target)


def _read_base(base: str, scratch: Path) -> Base:
    """The image to build on, from its registry."""
    try:
        return load_base(parse_reference(base), scratch)
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
