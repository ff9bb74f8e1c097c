"""A function's life: settings, sockets, loading, ready, drain, exit code.

| exit code | |
|---|---|
| 0 | drained after SIGTERM or SIGINT |
| 1 | a crash |
| 65 | an artifact is missing or damaged |
| 74 | the store cannot be read |
| 75 | the drain took too long |
| 78 | a variable is wrong or missing |
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import uvloop

from erless.errors import ArtifactError, ConfigError, ErlessError, ModelError, StoreError
from erless.http.messages import Limits
from erless.http.server.server import HttpServer
from erless.serve.logs import Log
from erless.serve.malloc import keep_heap
from erless.serve.metrics import Metrics
from erless.serve.process.workers import Board, Worker, run_workers
from erless.serve.protocol.app import App, Served, process_age_s
from erless.serve.settings import Kind, Settings, read_settings
from erless.version import __version__

__all__ = ["run"]

TERMINATION_LOG = Path("/dev/termination-log")
LINGER_S = 0.3  # idle connections of a draining function stay open so long
BACKLOG = 1024
GC_OBJECTS = 20_000  # between two collections; Python's 700 cost 1.5 % of a gateway's CPU

# Loads in a thread; what it returns makes the Served, on the event loop.
Loader = Callable[[Settings, Metrics], Callable[[], Served]]


def _load_sparse(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    from erless.serve.functions.sparse import load_sparse

    served = load_sparse(settings, metrics)
    return lambda: served


def _load_dense(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    from erless.serve.functions.dense import DenseFunction, load_dense

    opened, predict = load_dense(settings, metrics)
    return lambda: DenseFunction(opened, predict, settings, metrics)


def _load_gateway(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    from erless.serve.gateway.gateway import Gateway, load_gateway

    opened, predict = load_gateway(settings, metrics)
    return lambda: Gateway(opened, predict, settings, metrics)


_LOADERS: dict[Kind, Loader] = {
    "sparse": _load_sparse,
    "dense": _load_dense,
    "gateway": _load_gateway,
}


def run(kind: Kind, variables: Mapping[str, str]) -> int:
    """Be the function of `kind` that the environment describes; returns the exit code."""
    try:
        settings = read_settings(kind, variables)
    except ConfigError as error:
        return _refuse(Log("info", function=kind), error, os.EX_CONFIG)
    return run_function(settings, _LOADERS[kind])


def run_function(settings: Settings, loader: Loader) -> int:
    """Run until a signal; returns the exit code."""
    log = Log(settings.log, function=settings.kind, digest=settings.digest[:12])
    np.seterr(all="ignore")  # what overflows is found where it would reach a client
    try:
        if settings.workers == 1:
            return uvloop.run(_life(settings, loader, log))
        listener = _bound(settings, log)
    except ErlessError as error:
        return _refuse(log, error, _exit_code(error))
    except OSError as error:
        return _refuse(log, error, os.EX_CONFIG)

    def work(listener: socket.socket, board: Board, slot: int) -> int:
        try:
            return uvloop.run(_life(settings, loader, log, Worker(listener, board, slot)))
        except ErlessError as error:
            return _refuse(log, error, _exit_code(error))

    return run_workers(listener, settings.workers, log, work)


def _exit_code(error: ErlessError) -> int:
    if isinstance(error, ConfigError):
        return os.EX_CONFIG
    if isinstance(error, ArtifactError | StoreError | ModelError):
        return os.EX_DATAERR
    return os.EX_IOERR


def _refuse(log: Log, error: Exception, code: int) -> int:
    log.error(str(error), exit_code=code)
    if TERMINATION_LOG.exists():
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(f"{error}\n", encoding="utf-8")
    return code


async def _life(settings: Settings, loader: Loader, log: Log, worker: Worker | None = None) -> int:
    loop = asyncio.get_running_loop()
    parent = os.getppid()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    release = "" if settings.kind == "sparse" else settings.digest
    metrics = Metrics(settings.kind, settings.digest, release, __version__, time.monotonic)
    app = App(settings, metrics, log, time.monotonic)
    # a gateway replaces its connections to shards by itself; its clients keep theirs while they may
    age_s = settings.connection_age_s if settings.kind == "gateway" else math.inf
    limits = Limits(body_bytes=settings.max_body_bytes, age_s=age_s)
    server = HttpServer(app, limits, lambda status: metrics.failed("query"))
    if worker is None:
        later = _listen(server, settings, log)
    elif worker.greets:
        later = None
        server.listen(worker.listener)
    else:
        later = worker.listener
    log.info("loading", pid=os.getpid())
    served = await _loaded(settings, loader, metrics, stop)
    if served is None:
        app.state = "draining"
        await server.drain(LINGER_S, settings.drain_s)  # who asks is told that nothing is loaded
        log.info("stopped while loading")
        _leave()
    server.borrow = served.prompt
    server.lane = app.answer if served.lane is not None else None
    keep_heap()
    gc.collect()
    gc.freeze()  # what is loaded stays: collections need not look at it again
    gc.set_threshold(GC_OBJECTS)  # queries leave no cycles behind; errors may
    metrics.load_s = process_age_s()
    if worker is not None:
        worker.share(metrics, loop)
        await worker.together(stop)
    app.ready(served)
    if worker is not None:
        worker.serve(metrics)
    if later is not None:
        server.listen(later, shared=worker is None)
    log.info("ready", seconds=round(metrics.load_s, 3), model=served.model)
    await stop.wait()
    app.state = "draining"
    log.info("draining", in_flight=metrics.in_flight)
    # whoever shared our socket with others has died: those that follow listen on one of their own
    orphaned = os.getppid() != parent
    drained = await server.drain(LINGER_S, settings.drain_s, alone=orphaned)
    served.close()
    log.info("stopped", drained=drained)
    return 0 if drained else os.EX_TEMPFAIL


def _listen(server: HttpServer, settings: Settings, log: Log) -> socket.socket | None:
    """Listen where we were told; returns the socket to accept from only once ready."""
    if settings.admin_fd is not None:
        server.listen(_inherited("ERLESS_ADMIN_FD", settings.admin_fd))
    if settings.listen_fd is not None:
        return _inherited("ERLESS_LISTEN_FD", settings.listen_fd)
    server.listen(_bound(settings, log))
    return None


def _bound(settings: Settings, log: Log) -> socket.socket:
    """A socket that listens on the port we were told."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        address = (settings.host, settings.port)
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    log.info("listening", host=settings.host, port=listener.getsockname()[1])
    return listener


def _inherited(name: str, descriptor: int) -> socket.socket:
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{name} is {descriptor}: no listening socket: {error}") from error


async def _loaded(
    settings: Settings, loader: Loader, metrics: Metrics, stop: asyncio.Event
) -> Served | None:
    """What is served; None where we were told to stop before it was loaded."""
    loop = asyncio.get_running_loop()
    loading = loop.run_in_executor(None, loader, settings, metrics)
    stopped = loop.create_task(stop.wait())
    either: list[asyncio.Future[Any]] = [loading, stopped]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        return None
    stopped.cancel()
    return (await loading)()


def _leave() -> NoReturn:
    """Exit at once: a load is under way in a thread that cannot be stopped."""
    sys.stderr.flush()
    os._exit(0)
