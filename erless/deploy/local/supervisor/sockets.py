"""The functions' public sockets: loopback only, held by the supervisor, shared by all replicas.

They are bound with SO_REUSEPORT (the kernel then lets this user alone bind the port again), so that
a supervisor that was killed can be followed by one that listens on the same port while the orphans
still serve: no connection is refused in between.
"""

from __future__ import annotations

import errno
import socket

from erless.errors import DeployError

__all__ = ["LOOPBACK", "listen"]

LOOPBACK = "127.0.0.1"
BACKLOG = 4096  # connections that wait for a replica; the kernel caps it at net.core.somaxconn


def listen(port: int, *, takeover: bool = False) -> socket.socket:
    """A listening socket on loopback; port 0 picks a free one.

    Args:
        port: where.
        takeover: orphans of ours may hold the port; else a taken port is an error.

    Raises:
        DeployError: the port is taken, or not ours to use.
    """
    if port and not takeover:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(probe, port)  # without SO_REUSEPORT: fails where anybody listens
            probe.listen()
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(opened, port)
        opened.listen(BACKLOG)
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


def _bind(opened: socket.socket, port: int) -> None:
    try:
        opened.bind((LOOPBACK, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DeployError(f"port {port} on {LOOPBACK} is taken by another process") from error
        raise DeployError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}") from error
