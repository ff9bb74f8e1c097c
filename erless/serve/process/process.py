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
import faulthandler
import gc
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import uvloop

from erless.errors import ArtifactError, ConfigError, ErlessError, ModelError, StoreError
from erless.http.budget import MemoryBudget
from erless.http.messages import Request, ServerLimits
from erless.http.server.server import HttpServer
from erless.serve.alarm import Alarm, CanaryToken
from erless.serve.files import source_of
from erless.serve.identity import secure_server
from erless.serve.logs import Log
from erless.serve.malloc import keep_heap
from erless.serve.memory import LEAST_BYTES, flight_bytes
from erless.serve.metrics import Metrics
from erless.serve.process.quota import export_throttling
from erless.serve.process.scrub import Scrubber
from erless.serve.process.sockets import bind_socket, connection_limit, inherited_socket
from erless.serve.process.workers import Board, Worker, run_workers
from erless.serve.protocol.app import App
from erless.serve.protocol.served import CallsFunctions, Served, WatchesIds
from erless.serve.settings import Kind, Settings, read_settings
from erless.serve.traces import open_traces
from erless.specs.decoys import DecoyManifest, load_shard_or_decoy
from erless.version import __version__

if TYPE_CHECKING:
    from erless.serve.protocol.grpc.api import GrpcApi

__all__ = ["run"]

TERMINATION_LOG = Path("/dev/termination-log")
PROBED = (b"/v2/health/", b"/metrics")  # where no supervisor has a socket of its own
LINGER_S = 0.3  # idle connections of a draining function stay open so long
GC_OBJECTS = 20_000  # between two collections; Python's 700 cost 1.5 % of a gateway's CPU

# Loads in a thread; what it returns makes the Served, on the event loop.
Loader = Callable[[Settings, Metrics], Callable[[], Served]]


def _load_sparse(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    from erless.serve.functions.sparse import load_sparse

    source = source_of(settings)
    manifest = load_shard_or_decoy(source.open(), settings.digest)
    if isinstance(manifest, DecoyManifest):
        from erless.serve.functions.decoy import load_decoy

        decoy = load_decoy(source, manifest, settings, metrics)
        return lambda: decoy
    if manifest.cache_bytes is not None:
        from erless.serve.functions.disk import DiskFunction, load_disk

        opened = load_disk(source, settings)
        return lambda: DiskFunction(source, opened, settings, metrics)
    served = load_sparse(source, settings, metrics)
    return lambda: served


def _load_dense(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    from erless.serve.functions.dense import load_dense

    return load_dense(settings, metrics)


def _load_gateway(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    from erless.serve.gateway.gateway import Gateway, load_gateway

    loaded = load_gateway(settings)
    return lambda: Gateway(loaded, settings, metrics)


_LOADERS: dict[Kind, Loader] = {
    "sparse": _load_sparse,
    "dense": _load_dense,
    "gateway": _load_gateway,
}


def run(kind: Kind, variables: Mapping[str, str]) -> int:
    """Run the function of `kind` that the environment describes; returns the exit code."""
    try:
        settings = read_settings(kind, variables)
    except ConfigError as error:
        return _refuse(Log("info", function=kind), error, os.EX_CONFIG)
    return run_function(settings, _LOADERS[kind])


def run_function(settings: Settings, loader: Loader) -> int:
    """Run until a signal; returns the exit code."""
    log = Log(settings.log, function=settings.kind, digest=settings.digest[:12])
    faulthandler.enable()  # a file that is cut short while it is mapped ends us by SIGBUS
    np.seterr(all="ignore")  # answers are checked for numbers that are not finite
    try:
        if settings.workers == 1:
            return uvloop.run(serve_until_signal(settings, loader, log))
        listener = bind_socket(settings.host, settings.port, log)
    except ErlessError as error:
        return _refuse(log, error, _exit_code(error))
    except OSError as error:
        return _refuse(log, error, os.EX_CONFIG)

    def work(listener: socket.socket, board: Board, slot: int) -> int:
        try:
            return uvloop.run(
                serve_until_signal(settings, loader, log, Worker(listener, board, slot))
            )
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


async def serve_until_signal(
    settings: Settings, loader: Loader, log: Log, worker: Worker | None = None
) -> int:
    """Load, serve, and drain after SIGTERM or SIGINT; returns the exit code.

    Args:
        settings: of the function.
        loader: loads what is served.
        log: of this process.
        worker: its place among the workers of the function, where there are several.
    """
    parent = os.getppid()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    function = _Function(settings, log, worker)
    function.listen()
    log.info("loading", pid=os.getpid())
    served = await _load_unless_stopped(settings, loader, function.metrics, stop)
    if served is None:
        await function.drain()  # queries are answered 503: nothing is loaded
        log.info("stopped while loading")
        _leave()
    if isinstance(served, CallsFunctions):
        await _until_stopped(served.wait_for_functions(), stop)
    await function.get_ready(served, stop)
    await stop.wait()
    log.info("draining", in_flight=function.metrics.in_flight)
    # our parent has died: replicas that follow listen on a socket of their own
    drained = await function.drain(alone=os.getppid() != parent)
    ended = function.close()
    served.close()
    log.info("stopped", drained=drained)
    code = 0 if drained else os.EX_TEMPFAIL
    if not ended:
        _leave(code)
    return code


class _Function:
    """One process of a function: its server, its sockets, its state. Create it on the event loop.

    Args:
        settings, log, worker: as of `serve_until_signal`.
    """

    def __init__(self, settings: Settings, log: Log, worker: Worker | None) -> None:
        self._settings, self._log, self._worker = settings, log, worker
        release = "" if settings.kind == "sparse" else settings.digest
        self.metrics = Metrics(settings.kind, settings.digest, release, __version__, time.monotonic)
        export_throttling(self.metrics)
        self._budget = MemoryBudget(LEAST_BYTES)  # until all is loaded
        self._traces = open_traces(settings, log)
        self._app = App(settings, self.metrics, log, time.monotonic, self._budget, self._traces)
        # a gateway replaces its connections to shards by itself: shards keep them
        age_s = settings.connection_age_s if settings.kind == "gateway" else math.inf
        grpc = _grpc_api(self._app) if settings.grpc else None
        self._server = HttpServer(
            grpc or self._app,
            ServerLimits(
                body_bytes=settings.max_body_bytes,
                age_s=age_s,
                connections=connection_limit(settings.max_connections),
                client_connections=settings.max_client_connections,
            ),
            lambda status: self.metrics.failed("query"),
            self._budget,
        )
        if grpc is not None:
            self._server.allow_http2(grpc.refuse)
        self._alarm = Alarm(settings, log, self.metrics, time.monotonic)
        if settings.canary:
            self._server.watch(CanaryToken(settings.canary, self._alarm).look)
        secure_server(self._server, settings, log.warning)
        self._scrubber: Scrubber | None = None
        self._listener: socket.socket | None = None  # accepted from only once ready

    def listen(self) -> None:
        """Accept connections while loading, on the sockets that are for that."""
        settings, worker = self._settings, self._worker
        if worker is not None:
            if worker.greets:
                self._server.listen(worker.listener)
            else:
                self._listener = worker.listener
            return
        if settings.admin_fd is not None:
            admin = inherited_socket("ERLESS_ADMIN_FD", settings.admin_fd)
            self._server.listen(admin, private=True)
        if settings.listen_fd is not None:
            self._listener = inherited_socket("ERLESS_LISTEN_FD", settings.listen_fd)
        else:
            self._server.listen(bind_socket(settings.host, settings.port, self._log))

    async def get_ready(self, served: Served, stop: asyncio.Event) -> None:
        """Serve `served`, together with the other workers."""
        self._server.allow_shortcuts(
            self._app.answer_whole if served.fast_path is not None else None,
            served.answers_synchronously,
        )
        if served.decoy:
            self._server.watch(self._touched)
        if self._settings.ids_in_order and isinstance(served, WatchesIds):
            served.watch_ids(partial(self._alarm.touched, "sequence"))
        keep_heap()
        gc.collect()
        gc.freeze()  # what is loaded stays: collections need not look at it again
        gc.set_threshold(GC_OBJECTS)  # queries leave no cycles behind; errors may
        settings = self._settings
        reserved = settings.rewritten_bytes or 0
        in_flight = flight_bytes(settings.memory_in_flight_bytes, settings.workers, reserved)
        self._budget.resize(in_flight)
        self.metrics.load_s = process_age_s()
        worker = self._worker
        if worker is not None:
            worker.share(self.metrics, asyncio.get_running_loop())
            await worker.wait_for_others(stop)
        self._app.get_ready(served)
        if worker is not None:
            worker.serve(self.metrics)
        if self._listener is not None:
            self._server.listen(self._listener, shared=worker is None)
        self._look_after(served)
        disk = {"disk": served.facts["disk"]} if "disk" in served.facts else {}
        seconds = round(self.metrics.load_s, 3)
        self._log.info("ready", seconds=seconds, model=served.model, **disk)

    def _touched(self, request: Request) -> None:
        """Raise an alert of a request to a decoy, unless it is Knative that looks after its pod."""
        if self._settings.admin_fd is None and request.path.startswith(PROBED):
            return
        self._alarm.touched("decoy", request)

    def _look_after(self, served: Served) -> None:
        """From now on read the mapped files again in the background; a damaged one ends serving."""
        loop = asyncio.get_running_loop()

        def fail(reason: str) -> None:
            self._log.error(reason)
            self._app.fail(reason)

        def damaged(reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(fail, reason)

        bytes_s = self._settings.scrub_bytes_s / self._settings.workers
        self._scrubber = Scrubber(served.mapped, bytes_s, damaged)
        self._scrubber.start()

    def close(self) -> bool:
        """Let go of what was opened beside what is served; whether no thread is left at it."""
        return self._app.close()

    async def drain(self, *, alone: bool = False) -> bool:
        """Answer what is in flight; False where that took too long. See `HttpServer.drain`."""
        self._app.begin_drain()
        if self._scrubber is not None:
            self._scrubber.stop()
        drained = await self._server.drain(LINGER_S, self._settings.drain_s, alone=alone)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        return drained


def _grpc_api(app: App) -> GrpcApi:
    """The gRPC API in front of `app`. Raises ConfigError where its libraries are missing."""
    try:
        import h2  # noqa: F401 - what speaks HTTP/2; see HttpServer.allow_http2

        from erless.serve.protocol.grpc.api import GrpcApi
    except ImportError as error:
        raise ConfigError(
            f"ERLESS_GRPC is 1 and {error.name} is not installed: pip install 'erless[grpc]'"
        ) from None
    return GrpcApi(app)


async def _load_unless_stopped(
    settings: Settings, loader: Loader, metrics: Metrics, stop: asyncio.Event
) -> Served | None:
    """The loaded function; None where a signal came before."""
    loop = asyncio.get_running_loop()
    loading = loop.run_in_executor(None, loader, settings, metrics)
    await _first_of(loading, stop)
    return (await loading)() if loading.done() else None


async def _until_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Await `work`; a signal cancels it."""
    task = asyncio.get_running_loop().create_task(work)
    await _first_of(task, stop)
    if not task.done():
        task.cancel()
        return
    await task


async def _first_of(work: asyncio.Future[Any], stop: asyncio.Event) -> None:
    """Wait for `work` or for a signal."""
    stopped = asyncio.get_running_loop().create_task(stop.wait())
    await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()


def process_age_s() -> float:
    """Seconds since the kernel started this process."""
    started = int(
        Path("/proc/self/stat")
        .read_text(encoding="utf-8", errors="replace")
        .rpartition(")")[2]
        .split()[19]
    )
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _leave(code: int = 0) -> NoReturn:
    """Exit at once: a load is under way in a thread that cannot be stopped."""
    sys.stderr.flush()
    os._exit(code)
