"""The processors that images are for: what registries, pip, the kernel and compilers call each."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from erless.errors import ImageError
from erless.specs.planning import Architecture

__all__ = ["Processor", "own_processor", "processor"]


@dataclass(frozen=True, slots=True)
class Processor:
    """A kind of processor.

    Args:
        name: as registries and Kubernetes have it.
        machine: as the kernel has it, and the names of compiled modules.
    """

    name: Architecture
    machine: str

    @property
    def compiler(self) -> str:
        """Debian's C compiler for it, from any other."""
        return f"{self.machine}-linux-gnu-gcc"

    @property
    def wheels(self) -> tuple[str, ...]:
        """The platforms of wheels that run on it, in pip's words."""
        glibc = (28, 27, 24, 17)
        return tuple(f"manylinux_2_{minor}_{self.machine}" for minor in glibc)

    @property
    def module_suffix(self) -> str:
        """How the file of a compiled module ends, for the Python that runs here."""
        return f".{sys.implementation.cache_tag}-{self.machine}-linux-gnu.so"


_PROCESSORS = (Processor("amd64", "x86_64"), Processor("arm64", "aarch64"))


def processor(name: Architecture) -> Processor:
    """The processor of that name."""
    return next(each for each in _PROCESSORS if each.name == name)


def own_processor() -> Processor:
    """The one that this runs on.

    Raises:
        ImageError: no image can be for it.
    """
    machine = platform.machine()
    for each in _PROCESSORS:
        if machine in (each.machine, each.name):
            return each
    names = ", ".join(each.name for each in _PROCESSORS)
    raise ImageError(f"this machine is {machine}; images are for {names}: pass --arch")
