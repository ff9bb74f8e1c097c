"""`erless.Client` and `erless.AsyncClient`: queries to a gateway, from Python."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from erless.api.inputs import as_tensors
from erless.errors import ServeError
from erless.serve.protocol.client import ClientTls, QueryClient

__all__ = ["AsyncClient", "Client", "Prediction"]

AGAIN = (502, 503)  # no answer, or too busy: predicting changes nothing, so it may be asked again
SHOWN = 10  # samples in a notebook
PAUSE_S = 0.05  # before the second try; doubled with each, ± half


@dataclass(frozen=True)
class Prediction:
    """An answer: `outputs` by name, and what the gateway says of them.

    release, generation: that answered. degraded: a sleeping function's rows were replaced by
    default vectors. took_s: of the call that was answered.
    """

    outputs: Mapping[str, NDArray[Any]]
    release: str
    generation: int
    degraded: bool
    took_s: float

    @property
    def scores(self) -> NDArray[Any]:
        """The first output: a DLRM's predictions, (B,)."""
        return next(iter(self.outputs.values()))

    def _repr_html_(self) -> str:
        """As a notebook shows it: the first samples, and what answered."""
        from erless.pages.page import notes, table

        columns = {name: array.reshape(len(array), -1) for name, array in self.outputs.items()}
        samples = min(SHOWN, *(len(array) for array in columns.values()))
        rows = [
            [str(row), *(" ".join(f"{x:.6g}" for x in array[row]) for array in columns.values())]
            for row in range(samples)
        ]
        answered = f"release {self.release[:12]}, generation {self.generation}"
        took = f"{self.took_s * 1e3:.2f} ms{', degraded' if self.degraded else ''}"
        return table(["sample", *columns], rows, "outputs") + notes([f"{answered}, {took}"])


class Client:
    """A client of the gateway at `url`; one call at a time, on one connection that is kept.

        with erless.Client("http://127.0.0.1:8080") as client:
            scores = client.predict({"user": [3, 17], "item": [[1, 2], [5]]}).scores

    Args:
        url: `http://host:port`, as `erless status` shows it.
        token: bearer token, where the gateway wants one.
        deadline_ms: of a query, all tries together; the gateway is told what is left of it.
        retries: further tries where no gateway answers or it is too busy.
        prepare: what each query goes through first, where the model has no front of its own to do
            so: a raw event → the mapping or DataFrame of inputs. It runs here, not in the gateway.
        address: `host:port` to connect to, where the URL's own host is not known here.
        ca: PEM file of the authorities that may have signed the gateway's certificate, where the
            system does not know them.
        certificate: PEM file of a certificate and its key, where an ingress asks clients for one; a
            pair of files where they are apart.
        verify: False talks to whoever answers at an https URL; for experiments alone.

    Raises:
        ServeError: the URL makes no sense.
        ConfigError: a file cannot be used for TLS.
    """

    def __init__(  # noqa: PLR0913  options that each stand for themselves
        self,
        url: str,
        *,
        token: str | None = None,
        deadline_ms: float = 10_000.0,
        retries: int = 2,
        prepare: Callable[[Any], Any] | None = None,
        address: str = "",
        ca: str | Path | None = None,
        certificate: str | Path | tuple[str | Path, str | Path] | None = None,
        verify: bool = True,
    ) -> None:
        self.url, self._deadline_ms, self._retries = url, deadline_ms, retries
        pair = certificate if isinstance(certificate, tuple) else (certificate, None)
        authorities, own, key = (None if file is None else str(file) for file in (ca, *pair))
        tls = ClientTls(authorities, own, key, verify)
        self._client = QueryClient(
            url, token, timeout_s=deadline_ms / 1e3, address=address, tls=tls
        )
        self._prepare = prepare
        self._metadata: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def metadata(self) -> dict[str, Any]:
        """The served model: its inputs, outputs, release. Asked once.

        Raises:
            ServeError: the gateway does not answer.
        """
        if self._metadata is None:
            self._metadata = self._client.metadata
        return self._metadata

    def predict(self, query: Any, *, deadline_ms: float | None = None) -> Prediction:
        """The model's outputs for `query`.

        Args:
            query: a mapping of inputs or tables to arrays or lists, or a pandas DataFrame whose
                columns are these, see `erless.api.inputs`; or what `prepare` makes such of.
            deadline_ms: of this query, instead of the client's.

        Raises:
            QueryError: the query does not fit the model.
            ServeError: no answer came within the deadline; with the gateway's reason and status.
        """
        limit_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        end = time.monotonic() + limit_ms / 1e3
        prepared = query if self._prepare is None else self._prepare(query)
        tensors = as_tensors(prepared, self.metadata)
        for attempt in range(self._retries + 1):
            left_ms = max(1.0, (end - time.monotonic()) * 1e3)
            try:
                outputs, answer = self._client.infer(tensors, left_ms)
            except ServeError as error:
                pause_s = PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311
                last = attempt == self._retries or time.monotonic() + pause_s > end
                if last or error.status not in AGAIN:
                    raise
                time.sleep(pause_s)
            else:
                return Prediction(
                    outputs, answer.release, answer.generation, answer.degraded, answer.took_s
                )
        raise AssertionError


class AsyncClient:
    """`Client` for asyncio: up to `connections` queries at once, on threads.

        async with erless.AsyncClient(url) as client:
            answers = await asyncio.gather(*(client.predict(query) for query in queries))

    Args:
        url: of the gateway.
        connections: kept to it; further queries wait for one.
        options: `Client`'s.
    """

    def __init__(self, url: str, *, connections: int = 8, **options: Any) -> None:
        self._clients = [Client(url, **options) for _ in range(connections)]
        self._free: asyncio.Queue[Client] = asyncio.Queue()
        for client in self._clients:
            self._free.put_nowait(client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()

    async def predict(self, query: Any, *, deadline_ms: float | None = None) -> Prediction:
        """See `Client.predict`."""
        client = await self._free.get()
        try:
            return await asyncio.to_thread(client.predict, query, deadline_ms=deadline_ms)
        finally:
            self._free.put_nowait(client)
