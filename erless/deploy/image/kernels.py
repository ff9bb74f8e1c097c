"""The compiled kernels of an image: those that run here, or compiled for another processor."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from erless.deploy.image.processors import Processor, own_processor
from erless.deploy.programs import run_program
from erless.errors import ImageError

__all__ = ["PACKAGE", "kernels_for"]

PACKAGE = Path(__file__).resolve().parents[2]  # erless/
SOURCES = PACKAGE / "dlrm" / "kernels"
# as setup.py has them
FLAGS = ("-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-fPIC", "-shared", "-DNDEBUG")
COMPILE_S = 600


def kernels_for(processor: Processor, scratch: Path) -> Path:
    """The module of compiled kernels for `processor`, compiled into `scratch` if there is none.

    Raises:
        ImageError: it is not there, and cannot be compiled here.
    """
    here = processor == own_processor()
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if here else processor.module_suffix
    built = PACKAGE / "dlrm" / f"_kernels{suffix}"
    if built.is_file():
        return built
    if here:
        raise ImageError(f"{built.parent} has no compiled kernels ({built.name}): install erless")
    sources = sorted(SOURCES.rglob("*.c"))
    compiler = shutil.which(processor.compiler)
    if not sources or compiler is None:
        lacking = f"{SOURCES} is not there: build from a checkout of erless"
        if sources:
            package = processor.compiler.removesuffix("-gcc").replace("_", "-")
            lacking = (
                f"there is no {processor.compiler} (Debian and Ubuntu: gcc-{package}); or leave "
                f"out --arch {processor.name}"
            )
        raise ImageError(f"the kernels cannot be compiled for {processor.name}: {lacking}")
    target = scratch / built.name
    command = [compiler, *FLAGS, f"-I{SOURCES}", f"-I{sysconfig.get_path('include')}"]
    command += [*map(str, sources), "-o", str(target), "-lm"]
    done = run_program(command, COMPILE_S, ImageError)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no reason"]
        raise ImageError(f"{processor.compiler} failed at the kernels: {lines[0]}")
    return target
