"""Bodies of queries: how many are kept."""

from __future__ import annotations

from collections.abc import Iterator

from erless.observe.loadtest.encoded_queries import Body, within


def test_as_many_are_kept_as_memory_may_hold_and_no_more_are_made() -> None:
    made = 0

    def bodies(size: int) -> Iterator[Body]:
        nonlocal made
        for index in range(1000):
            made += 1
            yield Body(bytes(size), 0, 1, index)

    kept = within(bodies(10), 95)
    assert [body.index for body in kept] == list(range(9))
    assert made == 10
    assert len(within(bodies(10), 5)) == 1
    assert len(within(bodies(10), 1 << 20)) == 1000
