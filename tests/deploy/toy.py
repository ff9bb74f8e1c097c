"""A function that keeps docs/functions.md's contract and does no arithmetic: `python -m` this.

It starts in 0.1 s where a real one takes seconds, and fails on demand:

    TOY_LOAD_S   seconds from start to ready
    TOY_FAIL     ends while loading, with this as its last words, exit code 65
    TOY_FAIL_FILE  the same while this file exists, with what it holds
    TOY_SLOW_S   seconds that a call takes
    TOY_BLOCK_S  seconds for which GET /block blocks everything, asleep
    TOY_SPIN_S   seconds for which GET /spin blocks everything, at work

GET /unready makes it say that it is not ready any more, and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

DRAIN_S = 10.0  # a client may be starved so long before it sends what it connected for


class Toy:
    def __init__(self) -> None:
        self.state = "loading"
        self.clients: set[asyncio.Task[None]] = set()
        self.busy = self.answered = 0
        self.concurrency_s, self.changed_s = 0.0, time.monotonic()
        self.buckets = {0.01: 0, 1.0: 0, float("inf"): 0}

    def count(self, change: int) -> None:
        now = time.monotonic()
        self.concurrency_s += self.busy * (now - self.changed_s)
        self.changed_s, self.busy = now, self.busy + change

    def metrics(self) -> str:
        self.count(0)
        bounds = {bound: str(bound).replace("inf", "+Inf") for bound in self.buckets}
        lines = [
            f'erless_requests_total{{code="200"}} {self.answered}',
            f"erless_concurrency_seconds_total {self.concurrency_s}",
            f"erless_in_flight {self.busy}",
        ]
        lines += [
            f'erless_request_seconds_bucket{{le="{bounds[bound]}"}} {count}'
            for bound, count in self.buckets.items()
        ]
        return "\n".join(lines) + "\n"

    async def infer(self) -> str:
        self.count(1)
        began = time.monotonic()
        await asyncio.sleep(float(os.environ.get("TOY_SLOW_S", "0")))
        self.count(-1)
        self.answered += 1
        for bound in self.buckets:
            self.buckets[bound] += time.monotonic() - began <= bound
        return json.dumps(
            {
                "pid": os.getpid(),
                "release": os.environ.get("TOY_NAME", ""),
                "shards": os.environ.get("ERLESS_SHARD_URLS", ""),
            }
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                ready = self.state == "ready"
                status, body = 200, "{}"
                if path == "/metrics":
                    body = self.metrics()
                elif path == "/v2/health/ready":
                    reason = "rows.bin: altered" if self.state == "damaged" else ""
                    answer = {"state": self.state, "reason": reason}
                    status, body = (200 if ready else 503), json.dumps(answer)
                elif path == "/unready":
                    self.state = "damaged"
                elif path == "/block":
                    time.sleep(float(os.environ["TOY_BLOCK_S"]))
                elif path == "/spin":
                    until_s = time.monotonic() + float(os.environ["TOY_SPIN_S"])
                    while time.monotonic() < until_s:
                        pass
                elif path == "/infer":
                    body = await self.infer()
                end = b"connection: close" in head.lower() or self.state == "draining"
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n"
                    f"connection: {'close' if end else 'keep-alive'}\r\n\r\n{body}".encode()
                )
                await writer.drain()
                if end:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()  # all is written

    def accept(self, listener: socket.socket) -> bool:
        """Take one connection; it counts from here on, whether its task has begun or not."""
        try:
            client, _ = listener.accept()
        except OSError:
            return False
        task = asyncio.get_running_loop().create_task(self.adopt(client))
        self.clients.add(task)
        task.add_done_callback(self.clients.discard)
        return True

    async def adopt(self, client: socket.socket) -> None:
        await self.serve(*await asyncio.open_connection(sock=client))

    def listen(self, variable: str) -> socket.socket:
        listener = socket.socket(fileno=int(os.environ[variable]))
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener.fileno(), self.accept, listener)
        return listener

    async def drain(self, *listeners: socket.socket) -> None:
        """Answer everybody who has connected, even who has not asked yet."""
        self.state = "draining"
        for listener in listeners:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            while self.accept(listener):  # after a killed supervisor nobody else would
                pass
            listener.close()
        if self.clients:
            await asyncio.wait(self.clients, timeout=DRAIN_S)

    async def run(self) -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        admin = self.listen("ERLESS_ADMIN_FD")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), float(os.environ.get("TOY_LOAD_S", "0")))
            os._exit(0)  # stopped while loading
        failing = Path(os.environ.get("TOY_FAIL_FILE", "/nonexistent"))
        reason = failing.read_text() if failing.exists() else os.environ.get("TOY_FAIL")
        if reason is not None:
            line = {"time": time.time(), "level": "error", "message": reason}
            print(json.dumps(line), file=sys.stderr, flush=True)
            os._exit(65)
        public = self.listen("ERLESS_LISTEN_FD")
        self.state = "ready"
        await ended.wait()
        await self.drain(public, admin)
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(Toy().run())
