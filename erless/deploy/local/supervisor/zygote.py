"""A process that has imported what functions need, and forks a replica in milliseconds.

    python -m erless.deploy.local.supervisor.zygote FD

Starting Python and numpy takes 0.3 s of CPU and 30 MB; a fork takes 10 ms and shares those pages
until somebody writes to them. The supervisor sends a request over the stream socket FD: a length,
the descriptors, then JSON; the answer is the replica's pid. The replica is forked twice, so that it
becomes the child of the supervisor (a subreaper), who waits for it as for any other.

One thread, no event loop, nothing open but the socket: that is what makes forking safe.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["LENGTH", "MOST_FDS", "main", "receive", "send"]

LENGTH = struct.Struct("!I")
MOST_FDS = 8
# by name: a target knows no function's code, only what `python -m` runs (docs/functions.md)
PRELOADED = (
    "erless.serve.process.process",
    "erless.serve.functions.sparse",
    "erless.serve.functions.decoy",  # so that one wakes as fast as the others
    "erless.serve.gateway.gateway",
)


def send(channel: socket.socket, document: dict[str, Any], fds: list[int] | None = None) -> None:
    """Write one message."""
    text = json.dumps(document).encode()
    socket.send_fds(channel, [LENGTH.pack(len(text))], fds or [])
    channel.sendall(text)


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read one message.

    Raises:
        EOFError: the other side has gone.
    """
    head, fds, _, _ = socket.recv_fds(channel, LENGTH.size, MOST_FDS)
    if len(head) < LENGTH.size:
        raise EOFError
    (size,) = LENGTH.unpack(head)
    text = bytearray()
    while len(text) < size:
        part = channel.recv(size - len(text))
        if not part:
            raise EOFError
        text += part
    return json.loads(text), list(fds)


def main() -> None:
    """Preload, then fork until the supervisor goes away."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a replica must not touch, and so copy, these pages
    send(channel, {"ready": os.getpid()})
    while True:
        try:
            request, fds = receive(channel)
        except (EOFError, ConnectionError):
            return
        try:
            send(channel, {"pid": _fork(request, fds, channel)})
        finally:
            for descriptor in fds:
                os.close(descriptor)


def _fork(request: dict[str, Any], fds: list[int], channel: socket.socket) -> int:
    """The pid of a replica whose parent has ended already."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        replica = os.fork()
        if replica == 0:
            os.close(reading)
            os.close(writing)
            channel.close()
            become_replica(request, fds)
        os.write(writing, LENGTH.pack(replica))
        os._exit(0)
    os.close(writing)
    text = os.read(reading, LENGTH.size)
    os.close(reading)
    os.waitpid(between, 0)
    (pid,) = LENGTH.unpack(text)
    return int(pid)


def become_replica(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Take the replica's descriptors, environment and folder, then run its module."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log, *inherited = fds
        null = os.open(os.devnull, os.O_RDONLY)
        for source, place in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, place)
        os.close(null)
        os.close(log)
        os.environ.clear()
        os.environ.update(request["env"])
        names = zip(request["fds"], inherited, strict=True)
        os.environ.update({name: str(descriptor) for name, descriptor in names})
        os.chdir(request["cwd"])
        with contextlib.suppress(OSError):  # a full disk: a restarted supervisor then ends us early
            Path(request["record"]).write_text(str(os.getpid()), encoding="ascii")
        sys.argv = list(request["command"])
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
