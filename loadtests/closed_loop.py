"""A fixed number of queries always in flight, from one event loop: little CPU beside the servers'.

Locust shows how a deployment behaves under traffic; here servers that share this machine's cores
with the client are compared, and a client that takes most of a core would hide what they can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop

from erless.http.client.endpoint import CallError, Endpoint, Reply
from erless.http.messages import JSON_LENGTH
from erless.observe.loadtest.encoded_queries import Body, Expected, read_answer

__all__ = ["ClosedLoop", "head_of", "run_closed_loop"]

CHECK_EVERY = 16  # answers compared with the monolith's
CONNECTION_S = 3600.0


@dataclass
class ClosedLoop:
    """What came of a run. Latencies are of answered queries."""

    latency_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    largest_error: float = 0.0
    took_s: float = 0.0

    @property
    def qps(self) -> float:
        """Answers per second."""
        return len(self.latency_ms) / self.took_s


def head_of(body: Body, path: str, authority: bytes) -> bytes:
    """The head of the request that carries `body` to `path`."""
    return b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n%b: %d\r\n\r\n" % (
        path.encode(),
        authority,
        len(body.data),
        JSON_LENGTH,
        body.json_length,
    )


class _Run:
    def __init__(self, url: str, path: str, bodies: Sequence[Body], expected: Expected | None):
        self._endpoint = Endpoint(url, CONNECTION_S, lambda: None)
        self._bodies, self._expected = bodies, expected
        self._heads = [head_of(body, path, self._endpoint.authority) for body in bodies]
        self.outcome = ClosedLoop()

    async def connection(self, number: int, step: int, until: float) -> None:
        """One query after the other."""
        loop = asyncio.get_running_loop()
        outcome = self.outcome
        while loop.time() < until:
            place = number % len(self._bodies)
            answered: asyncio.Future[Reply | CallError] = loop.create_future()

            def take(
                result: Reply | CallError,
                place: int = place,
                check: bool = number % CHECK_EVERY < step,
                answered: asyncio.Future[Reply | CallError] = answered,
            ) -> None:
                if check and isinstance(result, Reply) and result.status == 200:
                    self._compare(place, result)  # its bytes are valid only now
                answered.set_result(result)

            self._endpoint.send([self._heads[place], self._bodies[place].data], take)
            result = await answered
            if isinstance(result, CallError):
                outcome.failures.append(str(result))
            elif result.status != 200:
                outcome.failures.append(f"status {result.status}")
            else:
                outcome.latency_ms.append(result.took_s * 1e3)
            number += step

    def _compare(self, place: int, reply: Reply) -> None:
        if self._expected is None:
            return
        size = int(reply.headers.get(JSON_LENGTH, b"0"))
        prediction = read_answer(bytes(reply.body), size).prediction
        error = self._expected.error(self._bodies[place].index, prediction)
        self.outcome.largest_error = max(self.outcome.largest_error, error)

    async def drive(self, connections: int, seconds: float) -> None:
        """Keep `connections` queries in flight for `seconds`."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.gather(
            *(
                self.connection(connection, connections, begin + seconds)
                for connection in range(connections)
            )
        )
        self.outcome.took_s = loop.time() - begin
        self._endpoint.close()


def run_closed_loop(
    url: str,
    path: str,
    bodies: Sequence[Body],
    connections: int,
    seconds: float,
    expected: Expected | None = None,
) -> ClosedLoop:
    """Keep `connections` queries in flight at `url` for `seconds`; compare some with `expected`."""

    async def run() -> ClosedLoop:
        driven = _Run(url, path, bodies, expected)
        await driven.drive(connections, seconds)
        return driven.outcome

    return uvloop.run(run())
