"""Functions that cannot keep up with generations: told, and replaced where that helps."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erless.specs.generations import load_generation, load_state
from tests.releases import Made, make_release, random_query
from tests.serve.functions import Fleet, Function
from tests.serve.gateway.test_generations import FOLLOW_S, Trainer, ask, check, facts, wait_for

WAIT_S = 60.0
BEHIND_S = "1.5"


def publish(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> int:
    """Publish a generation; `before` runs when all is there but its manifest."""
    store = trainer.publisher.store
    original = store.create

    def create(name: str, data: bytes) -> None:
        if name.startswith("generations/"):
            before()
        original(name, data)

    with monkeypatch.context() as patched:
        patched.setattr(store, "create", create)
        return trainer.train()


def wait_until(happens: Callable[[], bool], what: object) -> None:
    until = time.monotonic() + WAIT_S
    while not happens():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def answer_of(function: Function, path: str) -> tuple[int, str]:
    status, body = function.get(path)
    return status, json.loads(body).get("error", "")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_release(tmp_path)


@pytest.fixture
def fleet(made: Made, tmp_path: Path) -> Iterator[Fleet]:
    every = {"ERLESS_BEHIND_S": BEHIND_S}
    with Fleet(made, tmp_path, every=every, ERLESS_FOLLOW_S=FOLLOW_S) as started:
        yield started


@pytest.fixture
def trainer(made: Made, fleet: Fleet) -> Trainer:
    """One generation is published, and all shards are awake and have it."""
    trainer = Trainer(made)
    wait_for(fleet.gateway, made, trainer.train())
    ask(fleet.gateway, made, random_query(made.model, 8, 16))
    return trainer


def test_a_store_that_fails_is_waited_for(
    made: Made, fleet: Fleet, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, query = fleet.gateway, random_query(made.model, 8, 16)
    blobs = Path(made.store, "blobs")
    before, away = {path.name for path in blobs.iterdir()}, tmp_path / "away"
    away.mkdir()

    def lose_parts() -> None:
        for path in blobs.iterdir():
            if path.name not in before:
                path.rename(away / path.name)

    number = publish(trainer, monkeypatch, lose_parts)
    wait_until(lambda: "generation_waits_for" in facts(gateway, made), facts(gateway, made))
    generation, answered = ask(gateway, made, query)
    assert generation == number - 1
    check(answered, trainer.expected(generation, query))
    time.sleep(float(BEHIND_S))
    for function in fleet.shards.values():
        assert answer_of(function, "/v2/health/ready") == (200, ""), "another would do no better"
    for path in away.iterdir():
        path.rename(blobs / path.name)
    wait_for(gateway, made, number)
    check(ask(gateway, made, query)[1], trainer.expected(number, query))


def test_a_function_that_hangs_is_to_be_replaced(
    made: Made, fleet: Fleet, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, cold, query = fleet.gateway, fleet.shards["cold"], random_query(made.model, 8, 16)
    store, states = trainer.publisher.store, Path(made.store, "states")
    known, hidden = {path.name for path in states.iterdir()}, tmp_path / "state"
    digest = made.release.shard("cold").digest

    def hang() -> None:
        for path in states.iterdir():
            if path.name not in known and load_state(store, path.stem).shard == digest:
                path.rename(hidden)
                os.mkfifo(path)  # whoever opens it waits for a writer

    number = publish(trainer, monkeypatch, hang)
    late = load_generation(store, made.release.digest, number).states[digest]
    wait_until(lambda: answer_of(cold, "/v2/health/ready")[0] == 503, "the cold shard")
    for path in ("/v2/health/ready", "/v2/health/live"):
        status, reason = answer_of(cold, path)
        assert (status, f"version {late[:12]} is not open after" in reason) == (503, True)
    assert answer_of(fleet.shards["hot"], "/v2/health/ready")[0] == 200
    generation, answered = ask(gateway, made, query)
    assert generation == number - 1, "until then all is answered, with what all have"
    check(answered, trainer.expected(generation, query))
    hidden.rename(states / f"{late}.json")
    port = cold.port
    cold.stop(signal.SIGKILL)
    fleet.shards["cold"] = fleet.start_shard("cold", PORT=str(port)).ready()
    wait_for(gateway, made, number)
    check(ask(gateway, made, query)[1], trainer.expected(number, query))
