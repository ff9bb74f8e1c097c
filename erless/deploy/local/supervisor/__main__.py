"""`python -m erless.deploy.local.supervisor [--foreground] STATE_FOLDER`: run until destroyed.

It forks first, before anything heavy is imported: the caller waits for the short-lived parent, and
the supervisor belongs to nobody's terminal. `--foreground` is for a service manager, which wants to
know the process that it started.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

FOREGROUND = "--foreground"


def main() -> None:
    """Detach and supervise the folder named on the command line."""
    if sys.argv[1] != FOREGROUND:
        if os.fork():
            os._exit(0)
        os.setsid()
    from erless.deploy.local.supervisor.process import run

    run(sys.argv[-1])


if __name__ == "__main__":
    main()
