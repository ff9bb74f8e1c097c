"""Where a function's process begins: what must be set before numpy is imported."""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["start"]


def start(kind: Literal["sparse", "dense", "gateway"]) -> int:
    """Be the function of `kind` that the environment describes; returns the exit code."""
    threads = os.environ.get("ERLESS_THREADS", "")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", threads if threads.isdigit() else "1")
    from erless.serve.process.process import run

    return run(kind, os.environ)
