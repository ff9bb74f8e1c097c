"""The one compiled part of erless; everything else about the package is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

SOURCES = Path("erless/dlrm/kernels")
FILES = tuple(sorted(str(path) for path in SOURCES.rglob("*.c")))
HEADERS = tuple(sorted(str(path) for path in SOURCES.rglob("*.h")))


class BuildKernels(build_ext):
    """Compile, or say what is missing: there is no slow substitute to fall back to."""

    def build_extension(self, ext: Extension) -> None:
        """Compile `ext`."""
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError, OSError) as error:
            raise SystemExit(
                f"erless compiles its kernels ({SOURCES}) when it is installed, with a C11 "
                "compiler (GCC 9 or Clang 10, or newer) and Python's headers (Debian and Ubuntu: "
                f"gcc python3-dev): {error}"
            ) from error


setup(
    ext_modules=[
        Extension(
            "erless.dlrm._kernels",
            sources=list(FILES),
            depends=list(HEADERS),
            include_dirs=[str(SOURCES)],
            # No -march: the widest instruction set is chosen when the module is loaded.
            extra_compile_args=["-std=gnu11", "-O3", "-g0", "-fno-math-errno"],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
