"""Publishing generations: whole or not at all, numbers without gaps, bad rows named."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import erless
from erless.errors import ArtifactError, ModelError, StoreError
from erless.pack.generations.changes import TableChanges, read_changes, read_deletions
from erless.pack.generations.follow import BatchOutcome, follow, read_batch
from erless.pack.generations.inbox import open_inbox
from erless.pack.generations.publish import Publisher
from erless.pack.inventory import prune, verify
from erless.specs.generations import (
    generations,
    load_generation,
    load_state,
    newest_generation,
    next_generation,
)
from erless.specs.model import TableSpec
from erless.specs.plan import Tier
from erless.storage.stores import open_store
from erless.storage.tensors import TensorFile, write_tensors
from tests.bundles import write_bundle
from tests.releases import Cut, Made, default_model, make_release

DIM = 8


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_release(tmp_path)


@pytest.fixture
def publisher(made: Made) -> Iterator[Publisher]:
    opened = Publisher(open_store(made.store), made.release.digest)
    yield opened
    opened.close()


def changes(ids: list[int], value: float = 1.0, table: str = "user") -> list[TableChanges]:
    vectors = np.full((len(ids), DIM), value, np.float32)
    return [TableChanges(table, np.array(ids, np.int64), vectors)]


def test_each_shard_gets_its_own_rows_and_no_others(publisher: Publisher, made: Made) -> None:
    rows = list(range(0, 3000, 7))
    manifest = publisher.publish(changes(rows))
    store = publisher.store
    seen: list[int] = []
    size = 0
    for shard, digest in manifest.states.items():
        state = load_state(store, digest)
        assert (state.shard, state.previous, state.depth) == (shard, None, 1)
        part = TensorFile(Path(made.store, state.part.path))
        seen += part.read("ids.user").tolist()
        size += state.part.size_bytes
    assert sorted(seen) == rows
    assert manifest.size_bytes == size
    own = len(rows) * (DIM * 4 + 8)
    assert size < 1.5 * own, "what is moved is the rows and their ids"


def test_a_later_state_leads_back_to_the_one_before(publisher: Publisher) -> None:
    first = publisher.publish(changes([1, 2, 3]))
    second = publisher.publish(changes([2, 3, 4], 2.0))
    assert (first.number, second.number) == (1, 2)
    shard = next(iter(first.states.keys() & second.states.keys()))
    state = load_state(publisher.store, second.states[shard])
    assert (state.previous, state.depth) == (first.states[shard], 2)
    assert newest_generation(publisher.store, first.release) == second
    assert next_generation(publisher.store, first.release, 0) == second
    assert next_generation(publisher.store, first.release, 2) is None


def test_rows_are_published_from_python(made: Made) -> None:
    manifest = erless.update({"item": ([4, 2], [[1.0] * DIM] * 2)}, store=made.store)
    assert (manifest.number, manifest.changed) == (1, 2)
    with pytest.raises(ModelError, match="no table nobody"):
        erless.update({"nobody": ([1], [[1.0]])}, store=made.store)
    with pytest.raises(StoreError, match="no release ffff"):
        erless.update({}, store=made.store, release="ffff")


def test_two_publishers_at_once_lose_nothing(made: Made) -> None:
    def publish(begin: int) -> None:
        own = Publisher(open_store(made.store), made.release.digest)
        for number in range(6):
            own.publish(changes([begin + number]))

    threads = [threading.Thread(target=publish, args=(begin,)) for begin in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_store(made.store)
    assert generations(store, made.release.digest) == tuple(range(1, 19))
    newest = load_generation(store, made.release.digest, 18)
    seen = []
    for digest in newest.states.values():
        step: str | None = digest
        while step is not None:
            state = load_state(store, step)
            seen += TensorFile(Path(made.store, state.part.path)).read("ids.user").tolist()
            step = state.previous
    assert sorted(seen) == [begin + n for begin in (0, 100, 200) for n in range(6)]


def test_a_publisher_that_is_stopped_leaves_nothing_that_is_read(
    publisher: Publisher, made: Made
) -> None:
    original = publisher.store.create

    def stop(name: str, data: bytes) -> None:
        if name.startswith("generations/"):
            raise KeyboardInterrupt
        original(name, data)

    publisher.store.create = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        publisher.publish(changes([5]))
    publisher.store.create = original  # type: ignore[method-assign]
    assert newest_generation(publisher.store, made.release.digest) is None
    assert publisher.publish(changes([5])).number == 1


# Publishes in children that end themselves (-9) before their first, second, … change of a file.
KILLED = """
import os, signal, sys
import numpy as np
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.publish import Publisher
from erless.pack.inventory import verify
from erless.specs.generations import generations, load_generation, load_state
from erless.storage.stores import open_store

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "fcntl.flock"}
folder, digest = sys.argv[1:]

def publish(value):
    publisher = Publisher(open_store(folder), digest)
    publisher.publish([TableChanges("user", np.arange(6), np.full((6, 8), value, np.float32))])
    publisher.close()

def publish_until(last):
    left = last
    def count(event, details):
        nonlocal left
        written = event == "open" and isinstance(details[2], int) and details[2] & 3
        left -= event in CHANGES or bool(written)
        if left < 0 and event != "os.kill":
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    publish(1 + last)

publish(0)  # all that is imported later is there
store, killed, status = open_store(folder), 0, -1
while status:
    child = os.fork()
    if not child:
        publish_until(killed)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    killed += status == signal.SIGKILL
    numbers = generations(store, digest)
    assert list(numbers) == list(range(1, len(numbers) + 1)), numbers
    for state in load_generation(store, digest, numbers[-1]).states.values():
        load_state(store, state)
assert not verify(store, digest)
print(killed, len(numbers))
"""


def test_a_publisher_may_be_killed_before_each_change_of_a_file(made: Made) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, made.store, made.release.digest],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    killed, published = map(int, done.stdout.split())
    assert killed > 10
    assert 2 <= published < killed


def test_a_gap_in_the_numbers_and_another_model_are_told(
    publisher: Publisher, made: Made, tmp_path: Path
) -> None:
    for _ in range(3):
        publisher.publish(changes([1]))
    folder = Path(made.store, "generations", made.release.digest)
    moved = (folder / "00000002.json").read_text()
    (folder / "00000002.json").unlink()
    with pytest.raises(ArtifactError, match="generation 2 of .* is missing"):
        generations(publisher.store, made.release.digest)
    (folder / "00000002.json").write_text((folder / "00000003.json").read_text())
    with pytest.raises(ArtifactError, match="is generation 3"):
        load_generation(publisher.store, made.release.digest, 2)
    (folder / "00000002.json").write_text(moved.replace("made_at_s", "made_at_S"))
    with pytest.raises(ArtifactError, match="altered"):
        load_generation(publisher.store, made.release.digest, 2)


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        (changes([1, 1]), "id 1 comes twice"),
        (changes([-1]), "id -1 is below zero"),
        (changes([1], float("nan")), "id 1 is not finite"),
        (changes([1], float("inf")), "id 1 is not finite"),
        (changes([3001]), "without a gap"),
        (changes([3000, 3002]), "without a gap"),
        (changes(list(range(3000, 3800))), "plan and pack anew"),
        (changes([1], table="nobody"), "no table nobody"),
        ([TableChanges("user", np.array([1]), np.ones((1, 9), np.float32))], "vectors of 8"),
        ([*changes([1]), *changes([2])], "given twice"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    packed: Made, given: list[TableChanges], fact: str
) -> None:
    publisher = Publisher(open_store(packed.store), packed.release.digest)
    with pytest.raises(ModelError, match=fact):
        publisher.publish(given)
    assert newest_generation(publisher.store, packed.release.digest) is None


def test_a_table_that_is_wholly_resident_takes_no_more_rows(tmp_path: Path) -> None:
    made = make_release(tmp_path, tiers=(Cut("resident", Tier.RESIDENT, 1.0),))
    publisher = Publisher(open_store(made.store), made.release.digest)
    with pytest.raises(ModelError, match="all rows of table user are resident"):
        publisher.publish(changes([3000]))
    assert publisher.publish(changes([2999])).changed == 1


def test_the_tower_of_another_model_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_bundle(other, default_model(rows=2000), 1)
    with pytest.raises(ModelError, match="another model"):
        publisher.publish([], other)


def test_going_back_needs_that_generation(publisher: Publisher) -> None:
    with pytest.raises(StoreError, match="no generation 1"):
        publisher.go_back(1)
    first = publisher.publish(changes([1]))
    publisher.publish(changes([1], 2.0))
    back = publisher.go_back(1)
    assert (back.number, back.states, back.returns_to) == (3, first.states, 1)
    assert publisher.go_back(0).states == {}
    with pytest.raises(StoreError, match="there are 0 … 4"):
        publisher.go_back(5)


def test_prune_keeps_what_generations_need_and_verify_reads_it(
    publisher: Publisher, made: Made
) -> None:
    store = publisher.store
    first = publisher.publish(changes([1, 2, 3]))
    publisher.publish(changes([2, 4], 2.0))
    prune(store, keep={made.release.digest}, grace_s=-1)
    assert verify(store, made.release.digest) == []
    assert newest_generation(store, made.release.digest) is not None
    part = load_state(store, next(iter(first.states.values()))).part
    path = Path(made.store, part.path)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert [damage.name for damage in verify(store, made.release.digest)] == [part.path]


TABLE = TableSpec(name="user", rows=10, dim=2)


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_are_read_from_parquet_and_safetensors(tmp_path: Path) -> None:
    vectors = [[1.0, 2.0], [3.0, 4.0]]
    path = write_parquet(tmp_path / "a.parquet", id=[7, 3], vector=vectors)
    sliced = tmp_path / "b.safetensors"
    write_tensors(sliced, {"ids": np.array([7, 3]), "rows": np.array(vectors, np.float16)})
    fixed = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    third = write_parquet(tmp_path / "c.parquet", id=[7, 3], vector=fixed, other=["x", "y"])
    for each in (path, sliced, third):
        read = read_changes(each, TABLE)
        assert read.ids.tolist() == [7, 3]
        np.testing.assert_array_equal(read.vectors, np.array(vectors, np.float32))
        deleted = read_deletions(each, TABLE)
        assert (deleted.ids.tolist(), deleted.deleted) == ([7, 3], 2)
        assert not deleted.vectors.any()


@pytest.mark.parametrize(
    ("columns", "fact"),
    [
        ({"ids": [1], "vector": [[1.0, 2.0]]}, "no column id"),
        ({"id": [1]}, "no column vector"),
        ({"id": [1, None], "vector": [[1.0, 2.0]] * 2}, "column id has a null"),
        ({"id": [1.5], "vector": [[1.0, 2.0]]}, "expected integers"),
        ({"id": [1, 2], "vector": [[1.0, 2.0], [1.0]]}, "of 1 elements"),
        ({"id": [1], "vector": [[1.0, None]]}, "element of a vector is null"),
        ({"id": [1], "vector": [["a", "b"]]}, "lists of floats"),
        ({"id": [1], "vector": [[1.0, 2.0, 3.0]]}, "vectors of 2"),
    ],
)
def test_bad_parquet_is_named(tmp_path: Path, columns: dict[str, object], fact: str) -> None:
    path = write_parquet(tmp_path / "rows.parquet", **columns)
    with pytest.raises(ModelError, match=fact):
        read_changes(path, TABLE)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ModelError, match="rows.parquet: cannot be read"):
        read_changes(tmp_path / "rows.parquet", TABLE)
    (tmp_path / "rows.csv").write_text("id,vector\n")
    with pytest.raises(ModelError, match="rows come as"):
        read_changes(tmp_path / "rows.csv", TABLE)


def test_batches_are_published_in_order_and_a_bad_one_steps_aside(
    publisher: Publisher, tmp_path: Path
) -> None:
    folder = tmp_path / "incoming"
    vectors = np.ones((2, DIM), np.float32)
    for name, ids in (("002", [3, 4]), ("001", [1, 2])):
        (folder / name).mkdir(parents=True)
        write_tensors(folder / name / "user.safetensors", {"ids": np.array(ids), "rows": vectors})
    write_parquet(folder / "001" / "item.deleted.parquet", id=[9])
    (folder / "0015").mkdir()
    (folder / "0015" / "user.csv").write_text("id\n")
    (folder / ".unfinished").mkdir()
    outcomes: list[BatchOutcome] = []
    inbox = open_inbox(str(folder))
    for outcome in follow(lambda: publisher, inbox, every_s=0, go_on=lambda: len(outcomes) < 3):
        outcomes.append(outcome)
    assert [outcome.name for outcome in outcomes] == ["001", "0015", "002"]
    first, bad, second = outcomes
    assert first.manifest is not None
    assert second.manifest is not None
    assert (first.manifest.changed, first.manifest.deleted) == (3, 1)
    assert second.manifest.number == 2
    assert "a batch holds" in bad.error
    assert bad.error in (folder / "refused" / "0015" / "error.txt").read_text()
    left = {path.name for path in folder.iterdir()}
    assert left == {".unfinished", "published", "refused"}
    with pytest.raises(ModelError, match="empty"):
        read_batch(folder / ".unfinished")
