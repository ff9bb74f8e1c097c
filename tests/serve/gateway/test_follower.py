"""A gateway that looks for generations goes on looking, whatever one of them does to it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, NoReturn

import uvloop

from erless.serve.gateway.follower import GenerationFollower


def test_a_fault_of_ours_is_told_and_looked_at_again() -> None:
    async def case() -> None:
        looks, told = 0, []

        class Generations:
            def behind(self, parts: object) -> NoReturn:
                nonlocal looks
                looks += 1
                raise TypeError("function takes exactly 5 arguments (6 given)")

        stand_in: Any = SimpleNamespace(
            parts=SimpleNamespace(number=0, generation=None),
            gauge=lambda *_: None,
            warning=lambda _, reason: told.append(reason),
        )
        generations: Any = Generations()
        follower = GenerationFollower(
            generations, lambda: stand_in, stand_in, stand_in, 0.001, stand_in, stand_in
        )
        async with asyncio.timeout(20):
            while looks < 3:
                await asyncio.sleep(0.001)
        follower.close()
        assert told == ["TypeError: function takes exactly 5 arguments (6 given)"]
        assert follower.reason == told[0]

    uvloop.run(case())


def test_rows_are_put_in_place_beside_the_work() -> None:
    """While that takes long, or fails, the gateway goes on looking for generations."""

    async def case() -> None:
        looks, told, adopted = 0, [], []
        go_on = threading.Event()

        class Generations:
            def __init__(self) -> None:
                self.calls = 0

            def rewritten(self, parts: object) -> object:
                self.calls += 1
                assert go_on.wait(20)
                if self.calls == 1:
                    raise ValueError("no such row")
                return SimpleNamespace(generation=parts, number=1, rewritten=True)

            def behind(self, parts: Any) -> object:
                nonlocal looks
                looks += 1
                if looks == 3:
                    return SimpleNamespace(generation=object(), number=2)
                return None

        class View(SimpleNamespace):
            functions = ()

        view: Any = View(parts=SimpleNamespace(number=1, generation=object(), made_at_s=0.0))
        log: Any = SimpleNamespace(
            gauge=lambda *_: None,
            info=lambda *_, **__: None,
            warning=lambda text, reason: told.append(f"{text}: {reason}"),
        )

        def adopt(another: Any) -> None:
            nonlocal view
            view = another
            adopted.append(another.parts)

        generations: Any = Generations()
        prepare: Any = lambda parts: View(parts=parts)  # noqa: E731
        follower = GenerationFollower(generations, lambda: view, prepare, adopt, 0.001, log, log)
        async with asyncio.timeout(20):
            while looks < 6:
                await asyncio.sleep(0.001)
            assert [parts.number for parts in adopted] == [2], "and it has moved on meanwhile"
            go_on.set()
            while len(adopted) < 2:
                await asyncio.sleep(0.001)
        follower.close()
        assert adopted[1].rewritten
        assert told == ["changed rows are not put in place: no such row"]

    uvloop.run(case())
