"""Where child processes find this erless."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["python_path"]

ROOT = Path(__file__).resolve().parents[4]  # `functions/` lies beside `erless/`


def python_path() -> str:
    """PYTHONPATH for `python -m erless...`, wherever the child stands: ours after `ROOT`."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
