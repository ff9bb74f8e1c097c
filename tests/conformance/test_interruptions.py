"""Verbs of target `local` that are interrupted at a few random moments.

`benchmarks/interruptions.py` has many.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from benchmarks.interruptions import Place, Sweep


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("interruptions"))
    yield made
    made.destroy()


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
@pytest.mark.parametrize("verb", ["deploy first", "deploy second", "rollback", "destroy"])
def test_an_interrupted_verb_leaves_a_whole_state_and_can_be_called_again(
    place: Place, verb: str, name: str
) -> None:
    sweep = Sweep(verb, name)
    sweep.run(place, 1, random.Random())
    assert sweep.moments == 1
    assert sweep.faults == []
