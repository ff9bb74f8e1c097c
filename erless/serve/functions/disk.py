"""The sparse function of the disk tier: one shard's rows, read as queries ask for them.

A query whose rows the cache has is answered at once. Any other waits for its reads, while the event
loop goes on: the kernel (or a thread) tells through a file descriptor when they are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from erless.dlrm.disk import DiskLookup, DiskShard
from erless.serve.disk_files import DiskOptions, OpenDiskShard, open_disk_shard
from erless.serve.files import MappedFile, Source
from erless.serve.functions.sparse import ShardFunction
from erless.serve.metrics import Metrics
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.settings import Settings
from erless.serve.states import ShardStates

__all__ = ["DiskFunction", "load_disk"]

LOOKUP_BYTES = 160  # of the kernels' lists, for each id
COUNTERS = {
    "disk_cached": "gathers that the cache of the disk tier answered",
    "disk_rows": "rows read from the disk",
    "disk_reads": "reads of the disk: rows that share blocks share one",
    "disk_bytes": "bytes read from the disk",
    "disk_faults": "reads that failed, came short, or brought altered rows",
    "disk_refused": "queries refused because too many reads waited",
}


def load_disk(source: Source, settings: Settings) -> OpenDiskShard:
    """The shard, verified, its disk ready to be read. Errors as `open_disk_shard`."""
    options = DiskOptions(
        engine=settings.disk_engine,
        depth=settings.disk_depth,
        most_waiting=settings.disk_waiting,
        workers=settings.workers,
    )
    return open_disk_shard(source, settings.digest, options)


class DiskFunction(ShardFunction):
    """Answers `partial` for `values` and `lengths`, of rows on a disk. Make it on the event loop.

    Args:
        opened: the shard.
        settings: of the function.
        metrics: counted here.
    """

    answers_synchronously = False
    fast_path = None

    def __init__(
        self, source: Source, opened: OpenDiskShard, settings: Settings, metrics: Metrics
    ) -> None:
        super().__init__(opened.shard.shape, settings, metrics)
        self._opened, self._shard = opened, opened.shard
        self.mapped = opened.mapped
        shard = self._shard
        self.facts: dict[str, object] = {
            "disk": {
                "engine": shard.engine,
                "refusal": shard.refusal,
                "direct": shard.direct,
                "cache_bytes": shard.cache_bytes,
            }
        }
        self._waiting: dict[DiskLookup, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(shard.event, self._wake)
        states = ShardStates(source, settings.digest, shard)

        def open_state(digest: str) -> ChangedDiskFunction:
            return ChangedDiskFunction(self, states.open(digest), digest, settings, metrics)

        self.open_version = open_state
        metrics.gauge("changed_bytes", "rows that generations changed", lambda: states.size_bytes)
        metrics.info["disk_engine"] = shard.engine
        metrics.count_elsewhere(COUNTERS, lambda: shard.counts()[: len(COUNTERS)])

    def memory_bytes(self, request: InferRequest) -> int:
        """Of the partials, the rows and where they are."""
        ids = len(request.inputs["values"])
        return super().memory_bytes(request) + ids * (LOOKUP_BYTES + self._shard.row_bytes)

    def infer(self, call: InferCall) -> InferAnswer | Awaitable[InferAnswer]:
        """Gather, from the cache or the disk, and pool.

        Raises:
            QueryError: the request does not fit the shard.
            DiskBusyError: too many reads wait.
        """
        return self.infer_from(self._shard, self, call)

    def infer_from(
        self, shard: DiskShard, asked: ShardFunction, call: InferCall
    ) -> InferAnswer | Awaitable[InferAnswer]:
        """As `infer`, of a state of the shard: `asked` takes the query, and answers it."""
        begun = shard.begin(asked.pool_call(call.request))
        if not isinstance(begun, DiskLookup):
            return asked.answer(call.request, begun)
        waiting = self._loop.create_future()
        self._waiting[begun] = waiting
        return _finish(asked, call, begun, waiting)

    def _wake(self) -> None:
        """Some lookups are done. One whose query was given up is let go only now."""
        self._shard.clear_event()
        for lookup in [lookup for lookup in self._waiting if lookup.done()]:
            waiting = self._waiting.pop(lookup)
            if not waiting.done():
                waiting.set_result(None)

    def close(self) -> None:
        """Let the node's cache evict the shard."""
        self._loop.remove_reader(self._shard.event)
        self._opened.close()


class ChangedDiskFunction(ShardFunction):
    """The shard in a state that a generation gave it: what differs lies in memory.

    Args:
        released: the function whose disk it reads.
        shard: in that state.
        digest: of the state.
        settings, metrics: of the function.
    """

    answers_synchronously = False
    fast_path = None
    open_version = None
    mapped: tuple[MappedFile, ...] = ()

    def __init__(
        self,
        released: DiskFunction,
        shard: DiskShard,
        digest: str,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        super().__init__(shard.shape, settings, metrics)
        self._released, self._shard = released, shard
        self.digest, self.version_path = digest, f"shard/versions/{digest}"
        self._parameters = {"digest": digest}
        self.facts: dict[str, object] = {}

    def memory_bytes(self, request: InferRequest) -> int:
        """As of the released shard."""
        return self._released.memory_bytes(request)

    def infer(self, call: InferCall) -> InferAnswer | Awaitable[InferAnswer]:
        """As `DiskFunction.infer`."""
        return self._released.infer_from(self._shard, self, call)

    def close(self) -> None:
        """A state has nothing of its own to give back."""


async def _finish(
    asked: ShardFunction, call: InferCall, lookup: DiskLookup, waiting: asyncio.Future[None]
) -> InferAnswer:
    await waiting
    return asked.answer(call.request, lookup.finish())
