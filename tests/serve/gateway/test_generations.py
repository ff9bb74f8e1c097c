"""A gateway and its shards follow generations; every answer is wholly of the one that it names."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.compact import compact
from erless.pack.generations.publish import Publisher
from erless.serve.disk_files import DiskOptions, open_disk_shard
from erless.serve.files import Source
from erless.specs.bundle import BundleManifest
from erless.specs.plan import Precision, Tier
from erless.storage.stores import open_store
from tests.bundles import write_bundle
from tests.releases import TIERS, Cut, Made, make_release, random_query
from tests.serve.functions import Fleet, Function, body_of

FOLLOW_S = "0.05"
WAIT_S = 60.0


class Trainer:
    """Publishes changed rows, and keeps what each generation has to answer."""

    def __init__(self, made: Made) -> None:
        self.made, self.random = made, np.random.default_rng(5)
        self.publisher = Publisher(open_store(made.store), made.release.digest)
        self._whole = Monolith.load(made.bundle)
        self.tables = [table.numpy().copy() for table in self._whole.tables]
        self._weights = made.bundle
        self.wholes: dict[int, Monolith] = {0: self._as_of_now()}

    def _as_of_now(self) -> Monolith:
        tables = [torch.from_numpy(table.copy()) for table in self.tables]
        specs = tuple(
            spec.model_copy(update={"rows": len(table)})
            for spec, table in zip(self.made.model.tables, tables, strict=True)
        )
        model = self.made.model.model_copy(update={"tables": specs})
        return Monolith(model, tables, Monolith.load(self._weights).tower)

    def train(self, share: float = 0.05, added: int = 0, tower: Path | None = None) -> int:
        """Change a share of all rows, add some, publish; returns the generation's number."""
        changes = []
        for number, (spec, table) in enumerate(
            zip(self.made.model.tables, self.tables, strict=True)
        ):
            size = max(1, int(share * len(table)))
            ids = self.random.choice(len(table), size, replace=False)
            ids = np.concatenate([ids, np.arange(len(table), len(table) + added)])
            vectors = self.random.normal(size=(len(ids), spec.dim)).astype(np.float32)
            larger = np.concatenate([table, np.zeros((added, spec.dim), np.float32)])
            larger[ids] = vectors
            self.tables[number] = larger
            changes.append(TableChanges(spec.name, ids, vectors))
        manifest = self.publisher.publish(changes, tower)
        self._weights = tower or self._weights
        self.wholes[manifest.number] = self._as_of_now()
        return manifest.number

    def expected(self, generation: int, query: Query) -> NDArray[np.float32]:
        return self.wholes[generation].predict(query)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_release(tmp_path)


@pytest.fixture
def fleet(made: Made, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(made, tmp_path, ERLESS_FOLLOW_S=FOLLOW_S) as started:
        yield started


def ask(gateway: Function, made: Made, query: Query) -> tuple[int, NDArray[np.float32]]:
    """The generation that an answer names, and its predictions."""
    status, answer = gateway.post(f"/v2/models/{made.model.name}/infer", body_of(query))
    assert status == 200, answer
    generation = answer["parameters"]["generation"]
    return generation, np.array(answer["outputs"][0]["data"], np.float32)


def wait_for(gateway: Function, made: Made, number: int) -> None:
    """Wait until `gateway` answers with generation `number`."""
    until = time.monotonic() + WAIT_S
    while facts(gateway, made)["generation"] != number:
        assert time.monotonic() < until, facts(gateway, made)
        time.sleep(0.01)


def facts(gateway: Function, made: Made) -> dict[str, Any]:
    return dict(json.loads(gateway.get(f"/v2/models/{made.model.name}")[1])["parameters"])


def check(answered: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(answered, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rewritten_bytes", ["0", str(1 << 30)])
def test_answers_are_those_of_the_generation_that_they_name(
    made: Made, tmp_path: Path, rewritten_bytes: str
) -> None:
    with Fleet(
        made, tmp_path, ERLESS_FOLLOW_S=FOLLOW_S, ERLESS_REWRITTEN_BYTES=rewritten_bytes
    ) as fleet:
        answer_while_generations_come(fleet, made)


def answer_while_generations_come(fleet: Fleet, made: Made) -> None:
    trainer = Trainer(made)
    queries = [random_query(made.model, seed, 4) for seed in range(20)]
    wrong: list[str] = []
    seen: set[int] = set()
    over = threading.Event()

    def client(own: Sequence[Query]) -> None:
        while not over.is_set():
            for query in own:
                generation, answered = ask(fleet.gateway, made, query)
                seen.add(generation)
                expected = trainer.wholes[generation].predict(query)
                if not np.allclose(answered, expected, rtol=1e-5, atol=1e-6):
                    wrong.append(f"generation {generation}: {answered} instead of {expected}")

    threads = [threading.Thread(target=client, args=(queries[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            wait_for(fleet.gateway, made, trainer.train())
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]
    assert seen >= {1, 8}
    assert len(seen) > 4, "clients saw generations come and go"


def test_added_rows_a_new_tower_and_the_way_back(fleet: Fleet, made: Made, tmp_path: Path) -> None:
    trainer = Trainer(made)
    query = random_query(made.model, 3, 16)
    weights = tmp_path / "trained"
    write_bundle(weights, made.model, 77)
    assert BundleManifest.open(weights).tower != BundleManifest.open(made.bundle).tower
    number = trainer.train(added=5, tower=weights)
    wait_for(fleet.gateway, made, number)
    larger = trainer.wholes[number].model
    grown = random_query(larger, 4, 64, longest=20)
    assert (grown.values >= made.model.tables[2].rows).any()
    for asked in (query, grown):
        generation, answered = ask(fleet.gateway, made, asked)
        assert generation == number
        check(answered, trainer.expected(number, asked))
    number = trainer.train(added=3)
    wait_for(fleet.gateway, made, number)
    asked = random_query(trainer.wholes[number].model, 5, 64, longest=20)
    check(ask(fleet.gateway, made, asked)[1], trainer.expected(number, asked))
    for back in (1, 0):
        manifest = trainer.publisher.go_back(back)
        wait_for(fleet.gateway, made, manifest.number)
        generation, answered = ask(fleet.gateway, made, query)
        assert generation == manifest.number
        check(answered, trainer.expected(back, query))
    status, answer = fleet.gateway.post(f"/v2/models/{made.model.name}/infer", body_of(grown))
    assert (status, "row id" in answer["error"]) == (400, True), answer


def test_who_starts_or_wakes_has_all_generations(fleet: Fleet, made: Made) -> None:
    trainer = Trainer(made)
    query = random_query(made.model, 9, 16)
    for _ in range(3):
        number = trainer.train()
    wait_for(fleet.gateway, made, number)
    for name in list(fleet.shards):  # as if it had slept: same address, nothing in memory
        port = fleet.shards[name].port
        fleet.shards[name].stop()
        fleet.shards[name] = fleet.start_shard(name, PORT=str(port)).ready()
    generation, answered = ask(fleet.gateway, made, query)
    assert generation == number
    check(answered, trainer.expected(number, query))
    another = fleet.start_gateway(ERLESS_FOLLOW_S=FOLLOW_S).ready()
    generation, answered = ask(another, made, query)
    assert generation == number, "a new gateway begins with the newest"
    check(answered, trainer.expected(number, query))
    assert another.metric("erless_generation") == number
    for function in (fleet.shards["hot"], another):
        assert function.metric("erless_changed_bytes") > 0


def test_clocks_that_disagree_change_nothing_but_the_age(
    fleet: Fleet, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(made)
    query = random_query(made.model, 6, 16)
    for ahead_s in (86_400.0, -86_400.0):
        clock = SimpleNamespace(time=lambda ahead_s=ahead_s: time.time() + ahead_s)
        monkeypatch.setattr("erless.pack.generations.publish.time", clock)
        number = trainer.train()
        wait_for(fleet.gateway, made, number)
        generation, answered = ask(fleet.gateway, made, query)
        assert generation == number
        check(answered, trainer.expected(number, query))
        age_s = fleet.gateway.metric("erless_generation_age_seconds")
        assert age_s == 0 if ahead_s > 0 else age_s > 86_000


def test_a_damaged_part_holds_the_gateway_at_the_generation_before(
    fleet: Fleet, made: Made
) -> None:
    trainer = Trainer(made)
    query = random_query(made.model, 2, 8)
    wait_for(fleet.gateway, made, trainer.train())
    before = {path.name for path in Path(made.store, "blobs").iterdir()}
    ask(fleet.gateway, made, query)  # the shards are awake
    folder = Path(made.store, "generations", made.release.digest)
    parts = trainer.publisher.store
    original = parts.create

    def damage_first(name: str, data: bytes) -> None:
        """The parts are damaged before the manifest is there."""
        if name.startswith("generations/"):
            for path in Path(made.store, "blobs").iterdir():
                if path.name not in before:
                    path.chmod(0o644)
                    path.write_bytes(path.read_bytes()[:-8] + b"8 bytes!")
        original(name, data)

    parts.create = damage_first  # type: ignore[method-assign]
    number = trainer.train()
    parts.create = original  # type: ignore[method-assign]
    assert len(list(folder.iterdir())) == number
    until = time.monotonic() + WAIT_S
    while "generation_waits_for" not in facts(fleet.gateway, made):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "altered" in facts(fleet.gateway, made)["generation_waits_for"]
    generation, answered = ask(fleet.gateway, made, query)
    assert generation == number - 1
    check(answered, trainer.expected(generation, query))
    manifest = trainer.publisher.go_back(number - 1)
    wait_for(fleet.gateway, made, manifest.number)
    check(ask(fleet.gateway, made, query)[1], trainer.expected(number - 1, query))


def test_a_tower_that_is_a_function_of_its_own(made: Made, tmp_path: Path) -> None:
    trainer = Trainer(made)
    query = random_query(made.model, 3, 16)
    with Fleet(made, tmp_path, dense=True, ERLESS_FOLLOW_S=FOLLOW_S) as fleet:
        for seed in (71, 72, 0):
            weights = tmp_path / f"trained-{seed}" if seed else None
            if weights:
                write_bundle(weights, made.model, seed)
            number = trainer.train(tower=weights)
            wait_for(fleet.gateway, made, number)
            generation, answered = ask(fleet.gateway, made, query)
            assert generation == number
            check(answered, trainer.expected(number, query))
        back = trainer.publisher.go_back(1)
        wait_for(fleet.gateway, made, back.number)
        check(ask(fleet.gateway, made, query)[1], trainer.expected(1, query))
        assert fleet.dense is not None
        port = fleet.dense.port
        assert fleet.dense.stop() == 0
        fleet.dense = fleet._function(  # as if it had been replaced: same address
            "dense", ERLESS_STORE=made.store, ERLESS_RELEASE=made.release.digest, PORT=str(port)
        ).ready()
        check(ask(fleet.gateway, made, query)[1], trainer.expected(1, query))


def test_rows_on_a_disk(tmp_path: Path) -> None:
    tiers = (*TIERS[:2], Cut("cold", Tier.COLD, 1.0, Precision.INT8, cache_bytes=20_000))
    made = make_release(tmp_path, tiers=tiers)
    trainer = Trainer(made)
    with Fleet(made, tmp_path, ERLESS_FOLLOW_S=FOLLOW_S) as fleet:
        for _ in range(2):
            number = trainer.train(share=0.3, added=4)
            wait_for(fleet.gateway, made, number)
            larger = trainer.wholes[number].model
            asked = random_query(larger, number, 64, longest=20)
            generation, answered = ask(fleet.gateway, made, asked)
            assert generation == number
            expected = trainer.expected(number, asked)
            np.testing.assert_allclose(answered, expected, atol=0.02)  # int8
            stale = random_query(made.model, number, 64, longest=20)
            before = trainer.wholes[number - 1].predict(stale)
            answered = ask(fleet.gateway, made, stale)[1]
            now = trainer.expected(number, stale)
            assert np.abs(answered - now).max() < np.abs(answered - before).max() / 4
        assert fleet.shards["cold"].metric("erless_changed_bytes") > 0
        compacted = compact(trainer.publisher.store).release
        with open_disk_shard(
            Source(made.store), compacted.shard("cold").digest, DiskOptions()
        ) as opened:
            assert opened.shard.tables[0].rows == larger.tables[0].rows
