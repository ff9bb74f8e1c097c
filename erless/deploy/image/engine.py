"""Images by a container engine: docker, podman or buildah, whichever is here and answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from erless.deploy.image.kernels import PACKAGE
from erless.deploy.image.reference import parse_reference
from erless.deploy.programs import run_program
from erless.errors import ImageError
from erless.specs.functions import FunctionKind

__all__ = ["ENGINES", "build", "find_engine", "push", "source_root"]

ENGINES = ("docker", "podman", "buildah")
DOCKERFILE = "functions/Dockerfile"
ANSWER_S, BUILD_S = 20, 3600


def source_root() -> Path:
    """The checkout that erless runs from, which holds the Dockerfile.

    Raises:
        ImageError: erless is installed without its sources.
    """
    root = PACKAGE.parent
    if not (root / DOCKERFILE).is_file():
        raise ImageError(f"{root} is no checkout of erless: {DOCKERFILE} is not there")
    return root


def find_engine() -> str | None:
    """The first engine that is installed and works; docker's client without a daemon does not."""
    for name in ENGINES:
        if shutil.which(name) is None:
            continue
        try:
            done = run_program([name, "info"], ANSWER_S, ImageError)
        except ImageError:
            continue
        if done.returncode == 0:
            return name
    return None


def build(engine: str, kind: FunctionKind, image: str, base: str | None, *, torch: bool) -> None:
    """Build a function's target of the Dockerfile as `image`.

    Raises:
        ImageError: the build failed; its output went to stderr.
    """
    verb = "bud" if engine == "buildah" else "build"
    target = "gateway-torch" if torch and kind == "gateway" else kind
    command = [engine, verb, "--file", DOCKERFILE, "--target", target, "--tag", image]
    command += ["--build-arg", f"BASE={base}"] if base else []
    _run([*command, "."], source_root(), f"{engine} could not build the {kind} image")


def push(engine: str, image: str) -> str:
    """Push `image`; returns it by digest.

    Raises:
        ImageError: the registry refused, or the engine knows no digest afterwards.
    """
    _run([engine, "push", image], Path.cwd(), f"{engine} could not push {image}")
    if engine == "buildah":
        from erless.deploy.image.registry import resolve_digest

        return resolve_digest(parse_reference(image))
    done = run_program([engine, "image", "inspect", image], ANSWER_S, ImageError)
    name = image.rpartition(":")[0]
    try:
        digests = json.loads(done.stdout)[0]["RepoDigests"]
        return str(next(digest for digest in digests if digest.startswith(f"{name}@")))
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        raise ImageError(f"{engine} knows no digest of {image} after the push") from error


def _run(command: Sequence[str], folder: Path, failure: str) -> None:
    """Run an engine's command, its output on stderr for people to follow."""
    try:
        done = subprocess.run(
            command, cwd=folder, check=False, timeout=BUILD_S, stdin=subprocess.DEVNULL, stdout=2
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"{failure}: {error}") from error
    if done.returncode:
        raise ImageError(f"{failure}: exit code {done.returncode}")
