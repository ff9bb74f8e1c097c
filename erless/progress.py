"""How long-running stages report their progress, without knowing who shows it.

A stage takes a `Progress` and calls it; the CLI draws a bar from it (`erless.cli.bars`), tests and
library callers pass nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

__all__ = ["Progress", "Silent", "Step", "Unit"]

Unit = Literal["bytes", "rows", "samples", "queries", "accesses", "steps"]


class Step(Protocol):
    """One running step of a stage."""

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""


class Progress(Protocol):
    """Where a stage announces its steps."""

    @contextmanager
    def step(self, label: str, total: int | None, unit: Unit) -> Iterator[Step]:
        """A step of `total` units (None: not known beforehand) begins, and ends with the block."""
        yield Silent()


class Silent:
    """Progress that nobody watches."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    @contextmanager
    def step(self, label: str, total: int | None, unit: Unit) -> Iterator[Step]:
        """Do nothing."""
        yield self
