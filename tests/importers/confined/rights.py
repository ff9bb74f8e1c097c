"""Give up all rights, then try to use each; print what happened as JSON."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from erless.importers.confined.kernel import drop_rights
from erless.importers.confined.limits import Limits, set_limits


def main(folder: Path) -> None:
    readable, written = folder / "there", folder / "written"
    held = readable.open("rb")
    set_limits(Limits(cpu_s=20, memory_bytes=256 << 20))
    enforced = drop_rights()
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: written.write_bytes(b"x"),
        "append": lambda: os.open(readable, os.O_WRONLY | os.O_APPEND),
        "truncate": lambda: os.truncate(readable, 0),
        "remove": readable.unlink,
        "rename": lambda: readable.rename(written),
        "make a folder": written.mkdir,
        "link": lambda: os.link(readable, written),
        "change rights": lambda: readable.chmod(0o777),
        "connect": lambda: socket.create_connection(("127.0.0.1", 9)),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "start a program": lambda: subprocess.run([sys.executable, "-c", ""], check=False),
        "fork": os.fork,
        "become another program": lambda: os.execv(sys.executable, [sys.executable]),  # noqa: S606
        "signal": lambda: os.kill(os.getppid(), 0),
        "raise a limit of another": lambda: resource.prlimit(
            os.getppid(), resource.RLIMIT_NOFILE, (99, 99)
        ),
        "much memory": lambda: bytearray(1 << 30),
        "read": readable.read_bytes,
        "read on": held.read,
        "list": lambda: list(folder.iterdir()),
        "thread": lambda: threading.Thread(target=int).start(),
        "ask for a limit": lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    outcomes = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            outcomes[name] = "done"
        except (OSError, MemoryError, RuntimeError) as error:
            outcomes[name] = type(error).__name__
    sys.stdout.write(json.dumps({"enforced": enforced, "outcomes": outcomes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
