"""The kinds of functions that a release runs as."""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["GATEWAY", "FunctionKind"]

FunctionKind = Literal["gateway", "sparse", "dense"]

GATEWAY: Final = "gateway"  # the kind, and the name, of the one function that clients call
