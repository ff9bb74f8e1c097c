"""Follows the generations of a release: looks for the next, waits for the shards, moves on.

The gateway moves on when every function that is awake holds its part; those at zero fetch theirs
when they wake. While one cannot, queries are answered with the generation before, which is whole,
and the reason is in the log, the metrics and the metadata.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from erless.errors import ErlessError
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.gateway.view import GatewayGenerations, GatewayParts, GatewayView
from erless.serve.logs import Log
from erless.serve.low_priority import LowPriority
from erless.serve.metrics import Metrics

__all__ = ["GenerationFollower"]

POLL_S = 0.05  # between two questions whether a shard holds its part
WAIT_S = 20.0  # for all shards, before a newer generation is looked for
TOLD_S = 30.0  # between two words in the log about the same


class GenerationFollower:
    """Moves a gateway from generation to generation. For the event loop's thread.

    Args:
        generations: where they come from.
        current: the view that answers now.
        prepare: makes the view of a generation.
        adopt: takes a view for all queries from now on.
        every_s: between two looks for the next generation.
        metrics: told what is waited for.
    """

    def __init__(
        self,
        generations: GatewayGenerations,
        current: Callable[[], GatewayView],
        prepare: Callable[[GatewayParts], GatewayView],
        adopt: Callable[[GatewayView], None],
        every_s: float,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._generations, self._current = generations, current
        self._prepare, self._adopt, self._every_s = prepare, adopt, every_s
        self._log, self._told = log, ("", -TOLD_S)
        self.waiting = 0  # functions that do not hold the next generation yet
        self.reason = ""
        metrics.gauge(
            "generation", "that queries are answered with", lambda: current().parts.number
        )
        metrics.gauge("generation_age_seconds", "since it was published", self._age_s)
        metrics.gauge(
            "generation_waiting", "functions that the next one waits for", lambda: self.waiting
        )
        self._later = LowPriority("rewrite")
        self._rewriting: set[asyncio.Task[None]] = set()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def _age_s(self) -> float:
        manifest = self._current().parts.generation
        return max(0.0, time.time() - manifest.made_at_s) if manifest else 0.0

    async def _follow(self) -> None:
        self._rewrite()
        while True:
            await asyncio.sleep(self._every_s)
            try:
                parts = await asyncio.to_thread(self._generations.behind, self._current().parts)
                if parts is not None:
                    await self._move_to(self._prepare(parts))
            except ErlessError as error:
                self._tell(str(error))
            except Exception as error:  # a fault of ours: told, and looked at again
                self._tell(f"{type(error).__name__}: {error}")

    async def _move_to(self, view: GatewayView) -> None:
        """Move on once all shards that are awake hold their part, or tell who does not."""
        pairs = zip(view.functions, self._current().functions, strict=True)
        changed = [
            function
            for function, before in pairs
            if function.digest != before.digest and function.endpoint.connected
        ]
        late = await self._wait_for(changed)
        self.waiting = len(late)
        if late:
            names = ", ".join(f"{remote.label}: {reason}" for remote, reason in late)
            self._tell(f"generation {view.parts.number} waits for {names}")
            return
        self._adopt(view)
        self.reason = ""
        self._log.info("generation", number=view.parts.number)
        self._rewrite()

    def _rewrite(self) -> None:
        """Have changed rows put in place beside the work, where there is room for them."""
        now = self._current().parts
        if now.generation is None:
            return

        def work() -> GatewayParts:
            is_late = self._current().parts is not now  # another generation answers already
            return now if is_late else self._generations.rewritten(now)

        loop = asyncio.get_running_loop()
        task = loop.create_task(self._take(now, self._later.submit(work)))
        self._rewriting.add(task)
        task.add_done_callback(self._rewriting.discard)

    async def _take(self, now: GatewayParts, moved: Future[GatewayParts]) -> None:
        """Answer with changed rows in place once they are, unless a newer generation is here."""
        try:
            rewritten = await asyncio.wrap_future(moved)
        except Exception as error:  # they stay beside the release's
            self._log.warning("changed rows are not put in place", reason=str(error))
            return
        if rewritten is not now and self._current().parts is now:
            self._adopt(self._prepare(rewritten))

    async def _wait_for(
        self, remotes: Iterable[RemoteShard | RemoteDense]
    ) -> list[tuple[RemoteShard | RemoteDense, str]]:
        """Those that do not hold their state in time, each with the reason."""
        until = time.monotonic() + WAIT_S
        waiting = list(remotes)
        while waiting:
            answers = await asyncio.gather(*(remote.holds_state() for remote in waiting))
            late = [(r, reason) for r, reason in zip(waiting, answers, strict=True) if reason]
            waiting = [remote for remote, _ in late]
            self.waiting = len(late)
            if late and time.monotonic() > until:
                return late
            if late:
                await asyncio.sleep(POLL_S)
        return []

    def _tell(self, reason: str) -> None:
        """Say why the gateway does not move on, and not too often."""
        self.reason = reason
        told, at = self._told
        if reason != told or time.monotonic() - at > TOLD_S:
            self._told = (reason, time.monotonic())
            self._log.warning("the next generation is not answered with yet", reason=reason)

    def close(self) -> None:
        """Follow no more."""
        for task in (self._task, *self._rewriting):
            task.cancel()
