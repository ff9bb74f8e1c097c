"""Compaction: a release and its generation as one, bit for bit; what did not change stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.embedding import EmbeddingShard
from erless.dlrm.reference import Monolith
from erless.errors import StoreError
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.compact import changed_share, compact
from erless.pack.generations.publish import Publisher
from erless.pack.inventory import prune, verify
from erless.serve.files import Source, open_gateway, open_shard
from erless.serve.states import ShardStates
from erless.specs.generations import newest_generation
from erless.specs.plan import Precision, Tier
from erless.specs.release import ReleaseManifest
from erless.specs.stored import find_release
from erless.storage.stores import open_store
from tests.bundles import write_bundle
from tests.releases import TIERS, Cut, Made, make_release

MIXED = (
    Cut("resident", Tier.RESIDENT, 0.05),
    Cut("hot", Tier.HOT, 0.3, Precision.FP16),
    Cut("cold", Tier.COLD, 0.7, Precision.INT8),
    Cut("frozen", Tier.FROZEN, 1.0, Precision.INT4),
)


class Trainer:
    """Publishes random rows."""

    def __init__(self, made: Made, release: ReleaseManifest | None = None) -> None:
        self.random = np.random.default_rng(11)
        self.release = release or made.release
        self.publisher = Publisher(open_store(made.store), self.release.digest)
        self.rows = {table.name: table.rows for table in self.release.model.tables}

    def publish(self, tables: tuple[str, ...], share: float = 0.1, added: int = 0) -> None:
        given = []
        for name in tables:
            rows = self.rows[name]
            ids = self.random.choice(rows, int(share * rows), replace=False)
            ids = np.concatenate([ids, np.arange(rows, rows + added)])
            vectors = self.random.normal(size=(len(ids), 8)).astype(np.float32)
            given.append(TableChanges(name, ids, vectors))
            self.rows[name] += added
        self.publisher.publish(given)


def shards_of(made: Made, release: ReleaseManifest) -> dict[str, EmbeddingShard]:
    """All shards of a release in the state of its newest generation."""
    source = Source(made.store)
    newest = newest_generation(source.open(), release.digest)
    opened = {}
    for shard in release.shards:
        base = open_shard(source, shard.digest).shard
        state = newest.states.get(shard.digest) if newest else None
        opened[shard.name] = ShardStates(source, shard.digest, base).open(state) if state else base
    return opened


def stored_ids(made: Made, release: ReleaseManifest, rows: dict[str, int]) -> dict[str, np.ndarray]:
    """By shard and table the ids that it is asked for."""
    source = Source(made.store)
    opened = open_gateway(source, release.digest)
    return {
        f"{shard.name}.{table.name}": np.flatnonzero(route.all_shards() == number)
        for table, route in zip(release.model.tables, opened.routes, strict=True)
        for number, shard in enumerate(release.shards)
    }


def answers(shards: dict[str, EmbeddingShard], ids: dict[str, np.ndarray]) -> list[bytes]:
    """Every row of every shard, and pooled ones, as bytes."""
    given = []
    for name, shard in sorted(shards.items()):
        mine = [ids[f"{name}.{table.name}"] for table in shard.tables]
        longest = max(map(len, mine))
        lengths = np.zeros((len(mine), longest + 1), np.int32)
        values = []
        for row, each in enumerate(mine):
            lengths[row, : len(each)] = 1
            lengths[row, longest] = len(each)
            values += [each, each[::-1]]
        given.append(shard.pool(np.concatenate(values).astype(np.int64), lengths).tobytes())
    return given


@pytest.mark.parametrize("tiers", [TIERS, MIXED])
def test_answers_are_the_same_bit_for_bit(tmp_path: Path, tiers: tuple[Cut, ...]) -> None:
    made = make_release(tmp_path, tiers=tiers)
    trainer = Trainer(made)
    trainer.publish(("user", "item"), added=40)
    trainer.publish(("user",), share=0.3)
    trainer.publish(("item", "shop"), added=7)
    before = shards_of(made, made.release)
    folded = compact(open_store(made.store))
    release = folded.release
    assert release.folds is not None
    assert (release.folds.release, release.folds.generation) == (made.release.digest, 3)
    assert {table.name: table.rows for table in release.model.tables} == trainer.rows
    assert find_release(open_store(made.store), "") == release, "it is the last that was packed"
    ids = stored_ids(made, release, trainer.rows)
    assert sum(map(len, ids.values())) == sum(trainer.rows.values())
    after = shards_of(made, release)
    assert answers(after, ids) == answers(before, ids)
    assert verify(open_store(made.store), release.digest) == []
    again = compact(open_store(made.store), made.release.digest)
    assert (again.release, again.slices_written, again.bytes_written) == (release, 0, 0)


def test_it_is_what_a_fresh_pack_of_the_trained_model_is(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    folder = tmp_path / "trained"
    folder.mkdir()
    write_bundle(folder / "model", made.model, 99)
    trained = make_release(folder).release
    rows = Monolith.load(folder / "model").tables
    pairs = zip(made.model.tables, rows, strict=True)
    Publisher(open_store(made.store), made.release.digest).publish(
        [TableChanges(s.name, np.arange(s.rows), table.numpy().copy()) for s, table in pairs],
        folder / "model",
    )
    folded = compact(open_store(made.store)).release
    assert [shard.digest for shard in folded.shards] == [shard.digest for shard in trained.shards]
    assert (folded.tower, folded.gateway.routing) == (trained.tower, trained.gateway.routing)


def test_what_did_not_change_stays_and_prune_takes_the_rest(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    trainer = Trainer(made)
    store = open_store(made.store)
    hot = made.release.shard("hot")
    rows = np.flatnonzero(
        open_gateway(Source(made.store), made.release.digest).routes[0].all_shards() == 1
    )
    trainer.publisher.publish([TableChanges("user", rows[:5], np.ones((5, 8), np.float32))])
    known: dict[str, int] = {}
    newest = newest_generation(store, made.release.digest)
    share = changed_share(store, made.release, newest, known)
    assert 0 < share < 0.02
    assert changed_share(store, made.release, newest, known) == share
    folded = compact(store)
    assert (folded.slices_written, folded.slices_kept) == (1, 11)
    for before, after in zip(made.release.shards, folded.release.shards, strict=True):
        assert (before.digest == after.digest) == (before.name != hot.name)
    assert folded.release.gateway == made.release.gateway
    prune(store, keep={folded.release.digest}, grace_s=-1)
    assert verify(store, folded.release.digest) == []
    assert not list(store.list("states/")), "nothing of the generations is needed any more"


def test_generations_published_meanwhile_are_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erless.pack.generations import compact as module

    made = make_release(tmp_path)
    trainer = Trainer(made)
    trainer.publish(("user",), added=10)
    original = module._Compaction._routing

    def publish_meanwhile(self: module._Compaction) -> object:
        trainer.publish(("user", "item"), added=5)
        trainer.publish(("user",), share=0.2)
        return original(self)

    monkeypatch.setattr(module._Compaction, "_routing", publish_meanwhile)
    folded = compact(open_store(made.store))
    assert (folded.generation, folded.carried) == (1, 2)
    newest = newest_generation(open_store(made.store), folded.release.digest)
    assert newest is not None
    assert newest.number == 2
    before, after = shards_of(made, made.release), shards_of(made, folded.release)
    ids = stored_ids(made, folded.release, trainer.rows)
    assert answers(after, ids) == answers(before, ids)
    # and on top of it go further ones
    further = Trainer(made, folded.release)
    further.rows = dict(trainer.rows)
    further.publish(("user",), added=3)
    assert newest_generation(open_store(made.store), folded.release.digest).number == 3  # type: ignore[union-attr]


def test_going_back_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from erless.pack.generations import compact as module

    made = make_release(tmp_path)
    trainer = Trainer(made)
    trainer.publish(("user",))
    original = module._Compaction._routing

    def go_back(self: module._Compaction) -> object:
        trainer.publisher.go_back(0)
        return original(self)

    monkeypatch.setattr(module._Compaction, "_routing", go_back)
    with pytest.raises(StoreError, match="went back behind generation 1"):
        compact(open_store(made.store))
    assert find_release(open_store(made.store), "") == made.release


def test_a_release_without_generations_is_not_folded(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    with pytest.raises(StoreError, match="has no generation to fold"):
        compact(open_store(made.store))


def test_a_tower_with_the_rows_of_then_or_now_is_taken(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    trainer = Trainer(made)
    trainer.publish(("user",), added=20)
    folded = compact(open_store(made.store)).release
    publisher = Publisher(open_store(made.store), folded.digest)
    for number, model in enumerate((made.model, folded.model)):
        weights = tmp_path / f"weights-{number}"
        write_bundle(weights, model, 5 + number)
        assert publisher.publish([], weights).tower is not None
