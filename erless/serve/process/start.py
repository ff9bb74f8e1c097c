"""Where a function's process begins: what must be set before numpy is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import get_args

from erless.specs.functions import FunctionKind

__all__ = ["main", "start"]

KINDS: tuple[FunctionKind, ...] = get_args(FunctionKind)


def start(kind: FunctionKind) -> int:
    """Run the function of `kind` that the environment describes; returns the exit code."""
    threads = os.environ.get("ERLESS_THREADS", "")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", threads if threads.isdigit() else "1")
    from erless.serve.process.process import run

    return run(kind, os.environ)


def main(arguments: Sequence[str]) -> int:
    """`start` with the kind as the only argument; returns the exit code."""
    for kind in KINDS:
        if list(arguments) == [kind]:
            return start(kind)
    sys.stderr.write(f"usage: python -m erless.serve {'|'.join(KINDS)}\n")
    return os.EX_USAGE
