"""What our HTTP costs and saves: the same gateway behind uvicorn, and calling shards by aiohttp.

    python -m benchmarks.http_libraries [--rounds 10]      # pip install uvicorn aiohttp

One set of shards, and one gateway for each way, asked the same queries in turns:

ours      our server, our client
general   the same, but answers of shards are read as any HTTP answer, not by the kernels
uvicorn   uvicorn with httptools and uvloop in front of the same handler, our client
aiohttp   our server, a pooled aiohttp session instead of our client (answers read as in `general`)

Printed is the gateway's CPU per query, and that of gateway and shards, with several queries in
flight and with one: medians, and medians of the ratios to `ours` of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.functions import Client, Process, fleet
from benchmarks.serving import LANES, prepare
from erless.dlrm.queries import QueryFile
from erless.http.client.connection import HttpCall
from erless.http.client.endpoint import Endpoint
from erless.http.client.reply import AddAnswer, Callback, CallError, Reply
from erless.http.messages import UP, Buffer, Request, aligned, body_offset
from erless.observe.loadtest.encoded_queries import build
from erless.serve.logs import Log
from loadtests.closed_loop import run_closed_loop

WAYS = ("ours", "general", "uvicorn", "aiohttp")


class GeneralEndpoint(Endpoint):
    """Our client without the kernels' shortcut for answers of a known form."""

    def send(
        self,
        buffers: Sequence[Buffer],
        done: Callback,
        add_answer: AddAnswer | None = None,
        *,
        apart: bool = False,
    ) -> HttpCall:
        """As `Endpoint.send`."""
        return super().send(buffers, done, apart=apart)


class AiohttpEndpoint(Endpoint):
    """Calls by an aiohttp session of its own, which keeps and reuses connections."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=120),
            timeout=aiohttp.ClientTimeout(total=60),
            auto_decompress=False,
            skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
        )
        self._used = False

    @property
    def connected(self) -> bool:
        """Whether an answer has come."""
        return self._used

    def send(
        self,
        buffers: Sequence[Buffer],
        done: Callback,
        add_answer: AddAnswer | None = None,
        *,
        apart: bool = False,
    ) -> HttpCall:
        """As `Endpoint.send`."""
        call = HttpCall(self.now(), buffers, done, None)
        call.task = self._loop.create_task(self._ask(call))
        return call

    async def _ask(self, call: HttpCall) -> None:
        whole = bytes(call.buffers[0]) if len(call.buffers) == 1 else b"".join(call.buffers)
        head, _, body = whole.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        headers = dict(field.split(": ", 1) for field in fields)
        headers.pop("content-length", None)  # aiohttp writes its own
        try:
            async with self._session.request(
                method, f"{self.url.rstrip('/')}{path}", data=body or None, headers=headers
            ) as answer:
                content = await answer.read()
        except Exception as error:
            call.task = None
            call.finish(CallError(str(error), unanswered=True))
            return
        self._used, self._answered_at, call.task = True, self.now(), None
        took = self.now() - call.began
        self.observe_latency(took)
        found = {name.lower(): value for name, value in answer.raw_headers}
        aside = aligned(len(content), body_offset(found))
        aside[:] = content
        up_ms = float(found.get(UP, b"inf"))
        call.finish(Reply(answer.status, found, aside, took, up_ms))

    def close(self) -> None:
        """Close the session too."""
        super().close()
        self._loop.create_task(self._session.close())


def serve_gateway(way: str) -> int:
    """Be the gateway of this process's environment, in one of the ways."""
    import erless.serve.gateway.gateway as module
    from erless.serve.process.start import start

    if way == "uvicorn":
        return uvloop.run(serve_by_uvicorn())
    if way == "general":
        vars(module)["Endpoint"] = GeneralEndpoint
    if way == "aiohttp":
        vars(module)["Endpoint"] = AiohttpEndpoint
    return start("gateway")


async def serve_by_uvicorn() -> int:
    """The gateway's handler behind uvicorn, until a signal."""
    import uvicorn

    from erless import __version__
    from erless.http.budget import MemoryBudget
    from erless.serve.gateway.gateway import Gateway, load_gateway
    from erless.serve.malloc import keep_heap
    from erless.serve.metrics import Metrics
    from erless.serve.process.process import GC_OBJECTS
    from erless.serve.process.sockets import bind_socket
    from erless.serve.protocol.app import App
    from erless.serve.settings import read_settings

    settings = read_settings("gateway", os.environ)
    log = Log(settings.log, function=settings.kind)
    metrics = Metrics("gateway", settings.digest, settings.digest, __version__, time.monotonic)
    app = App(settings, metrics, log, time.monotonic, MemoryBudget(1 << 30))
    served = Gateway(load_gateway(settings), settings, metrics)
    keep_heap()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    app.get_ready(served)
    config = uvicorn.Config(
        asgi(app),
        http="httptools",
        loop="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=3600,
    )
    listener = bind_socket(settings.host, settings.port, log)
    log.info("ready")
    await uvicorn.Server(config).serve(sockets=[listener])
    served.close()
    return 0


def asgi(app: Callable[[Request], Any]) -> Callable[..., Awaitable[None]]:
    """Our handler as an ASGI application."""

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        headers = dict(scope["headers"])
        size = sum(map(len, pieces))
        body = aligned(size, body_offset(headers))
        place = 0
        for piece in pieces:
            body[place : place + len(piece)] = piece
            place += len(piece)
        request = Request(
            scope["method"].encode(), scope["raw_path"], headers, body, time.monotonic()
        )
        response = app(request)
        if not hasattr(response, "status"):
            response = await response
        length = (b"content-length", b"%d" % response.size)
        kind = (b"content-type", response.content_type)
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [kind, length, *response.headers],
            }
        )
        await send({"type": "http.response.body", "body": b"".join(response.body)})

    return answer


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keep what is made here, for the next run")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, each way")
    parser.add_argument("--gateway", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gateway:
        sys.exit(serve_gateway(options.gateway))
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(work, options), indent=2))


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; what is printed."""
    release = prepare(work, options.rows, options.shards, None)
    store = str(work / f"store-{options.shards}-None")
    queries = [build(query) for query in QueryFile(work / "model" / "queries.safetensors")]
    cpu: dict[str, list[float]] = {}
    with fleet() as running:
        shards = running.shards(store, release)
        urls = json.dumps({digest: shard.url for digest, shard in shards.items()})
        gateways = {way: start_gateway(running, way, store, release.digest, urls) for way in WAYS}
        running.ready()
        clients = {way: Client(gateway.port, "rm1") for way, gateway in gateways.items()}
        answers = {way: client.infer(queries[0]) for way, client in clients.items()}
        if any(abs(answers[way] - answers["ours"]).max() > 1e-6 for way in WAYS):
            raise SystemExit("the ways do not answer alike")

        def count(way: str, lanes: int, run: Callable[[], int]) -> None:
            everything = [gateways[way], *shards.values()]
            before = [process.cpu_s() for process in everything]
            asked = run()
            spent = [p.cpu_s() - b for p, b in zip(everything, before, strict=True)]
            cpu.setdefault(f"gateway, {lanes} in flight: {way}", []).append(spent[0] / asked)
            cpu.setdefault(f"all, {lanes} in flight: {way}", []).append(sum(spent) / asked)

        def many(way: str) -> int:
            asked = run_closed_loop(
                gateways[way].url, clients[way].path, queries, LANES, options.seconds
            )
            if asked.failures:
                raise SystemExit(f"{way}: {asked.failures[0]}")
            return len(asked.latency_ms)

        def one(way: str) -> int:
            for query in queries:
                clients[way].infer(query)
            return len(queries)

        for number in range(options.rounds):
            for way in WAYS if number % 2 else reversed(WAYS):
                count(way, LANES, lambda way=way: many(way))  # type: ignore[misc]
                count(way, 1, lambda way=way: one(way))  # type: ignore[misc]
    return {
        key: shown(values, cpu[key.rpartition(": ")[0] + ": ours"]) for key, values in cpu.items()
    }


def start_gateway(running: Any, way: str, store: str, digest: str, urls: str) -> Process:
    """A gateway in one of the ways."""
    env = {"ERLESS_STORE": store, "PORT": "0", "ERLESS_RELEASE": digest, "ERLESS_SHARD_URLS": urls}
    started = Process(
        way, ["-m", "benchmarks.http_libraries", "--gateway", way], env, running.folder
    )
    running.processes.append(started)
    return started


def shown(values: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Milliseconds of a query, and how many times `ours` it takes."""
    ratios = [value / other for value, other in zip(values, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "cpu_ms": round(statistics.median(values) * 1e3, 4),
        "ratio": round(middle, 3),
        "ratio_q1": round(low, 3),
        "ratio_q3": round(high, 3),
    }


if __name__ == "__main__":
    main()
