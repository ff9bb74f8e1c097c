"""A gateway that looks for generations goes on looking, whatever one of them does to it."""

from __future__ import annotations

import asyncio
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
