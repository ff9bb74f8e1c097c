"""What goes into a function's image besides its base: its dependencies, and erless itself.

Python files come with their compiled form: a pod's root is read-only, so nothing would be compiled
there, and compiling anew costs every cold start half a second.
"""

from __future__ import annotations

import py_compile
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from erless.deploy.image.kernels import PACKAGE, kernels_for
from erless.deploy.image.layer import Item
from erless.deploy.image.processors import Processor, own_processor
from erless.deploy.programs import run_program
from erless.errors import DependencyError
from erless.specs.functions import FunctionKind

__all__ = ["APP", "REQUIREMENTS", "application_items", "dependency_items"]

APP = "app"  # in the image
SITE = f"{APP}/site-packages"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")  # what the functions import, but torch
SUFFIXES = {".py", ".json", ".csv"}
PIP_TIMEOUT_S = 1800
# what pip notes about how and when it installed; not what is installed
NOTES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def application_items(processor: Processor, scratch: Path) -> list[Item]:
    """The erless package that runs here, with compiled Python and compiled kernels.

    Raises:
        ImageError: there are no kernels for `processor`, and they cannot be compiled.
    """
    kernels = kernels_for(processor, scratch)
    items = [Item(f"{APP}/{PACKAGE.name}/dlrm/{kernels.name}", kernels)]
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix not in SUFFIXES or not path.is_file() or "__pycache__" in path.parts:
            continue
        name = path.relative_to(PACKAGE.parent)
        items.append(Item(f"{APP}/{name.as_posix()}", path))
        if path.suffix == ".py":
            items.append(_compiled(path, name, scratch))
    return items


def _compiled(path: Path, name: Path, scratch: Path) -> Item:
    """Bytecode that Python takes without looking at the source's time."""
    folder = f"{APP}/{name.parent.as_posix()}/__pycache__"
    tag = sys.implementation.cache_tag
    target = scratch / "compiled" / f"{name}.{tag}.pyc"
    target.parent.mkdir(parents=True, exist_ok=True)
    py_compile.compile(
        str(path),
        str(target),
        dfile=f"/{APP}/{name.as_posix()}",
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return Item(f"{folder}/{name.stem}.{tag}.pyc", target)


def dependency_items(
    kind: FunctionKind, processor: Processor, scratch: Path, *, torch: bool, wheels: Path | None
) -> list[Item]:
    """What the function imports, at the versions installed here, as pip installs it.

    Args:
        kind: of the function.
        processor: that it runs on.
        scratch: a folder to install into.
        torch: torch too (exported towers, GPUs).
        wheels: a folder of wheels instead of the package index.

    Raises:
        DependencyError: pip failed; with its own words.
    """
    target = scratch / f"site-{kind}-{processor.name}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--target",
        str(target),
        "--constraint",
        str(_constraints(scratch)),
        "--requirement",
        str(REQUIREMENTS),
    ]
    if processor != own_processor():
        command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
        command += [f"--platform={platform}" for platform in processor.wheels]
    command += ["--no-index", "--find-links", str(wheels)] if wheels else []
    command += ["torch"] if torch else []
    done = run_program(command, PIP_TIMEOUT_S, DependencyError)
    if done.returncode:
        source = f"folder {wheels}" if wheels else "package index"
        raise DependencyError(
            f"the {source} does not give what a {kind} imports ({REQUIREMENTS}) at the "
            f"versions installed here for {processor.name}: {_words(done.stderr)}"
        )
    shutil.rmtree(target / "bin", ignore_errors=True)  # scripts name this machine's Python
    return list(_installed(target, scratch))


def _words(text: str) -> str:
    """Why pip failed: its first error; without an index that is a conflict which there is not.

    >>> _words("WARNING: Retrying (Retry(total=0, …\\nERROR: Cannot install numpy")
    'it does not answer'
    >>> _words("ERROR: No matching distribution found for numpy==9\\n")
    'No matching distribution found for numpy==9'
    """
    lines = text.splitlines() or ["pip failed"]
    if any(line.startswith("WARNING: Retrying") for line in lines):
        return "it does not answer"
    failed = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (failed or lines[-1:])[0]


def _constraints(scratch: Path) -> Path:
    """A file that pins every distribution to the version that erless runs with here."""
    # "2.1+cpu": what follows the plus names a build of torch, which the package index may not have
    versions = {
        distribution.metadata["Name"]: distribution.version.partition("+")[0]
        for distribution in distributions()
    }
    file = scratch / "constraints.txt"
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def _installed(target: Path, scratch: Path) -> Iterator[Item]:
    for path in sorted(target.rglob("*")):
        if not path.is_file() or "__pycache__" in path.parts or path.name in NOTES:
            continue
        name = path.relative_to(target)
        yield Item(f"{SITE}/{name.as_posix()}", path)
        if path.suffix == ".py":
            try:
                item = _compiled(path, Path("site-packages") / name, scratch)
            except py_compile.PyCompileError:
                continue  # templates and files for other versions of Python
            yield item
