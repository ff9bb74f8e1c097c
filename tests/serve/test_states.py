"""States of a shard: each answers with its own rows, wherever they lie, and their memory ends."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.patches import RowChanges
from erless.dlrm.rows import RowIndex
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.publish import Publisher
from erless.serve import states
from erless.serve.files import Source, open_shard
from erless.serve.functions.sparse import SparseFunction, load_sparse
from erless.serve.metrics import Metrics
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.served import InferCall
from erless.serve.settings import read_settings
from erless.serve.states import KEPT_STATES, Rewriter
from erless.specs.model import TableSpec
from erless.specs.plan import Precision
from erless.storage.stores import open_store
from tests.releases import make_release

ROWS, DIM = 10_000, 16
WAIT_S = 20.0


def rows_of(function: SparseFunction, held: list[NDArray[np.int64]]) -> NDArray[Any]:
    """All rows of a shard, as the function answers them."""
    lengths = np.zeros((len(held), max(map(len, held))), np.int32)
    for number, ids in enumerate(held):
        lengths[number, : len(ids)] = 1
    values = np.concatenate(held)
    inputs: dict[str, NDArray[Any]] = {
        "values": values,
        "lengths": lengths,
        "weights": np.ones(len(values), np.float32),
    }
    call = InferCall(InferRequest(inputs, {"packed": True}), 0.0, 0.0)
    return function.infer(call).outputs["partial"]


@pytest.mark.parametrize("room_bytes", [0, 1 << 30])
def test_each_state_that_is_kept_answers_with_its_own_rows(tmp_path: Path, room_bytes: int) -> None:
    made, random = make_release(tmp_path), np.random.default_rng(3)
    digest = made.release.shard("hot").digest
    publisher = Publisher(open_store(made.store), made.release.digest)
    source = Source(made.store)
    settings = read_settings(
        "sparse",
        {
            "ERLESS_STORE": made.store,
            "ERLESS_SHARD": digest,
            "ERLESS_REWRITTEN_BYTES": str(room_bytes),
        },
    )
    with open_shard(source, digest) as opened:
        slices = opened.shard.slices
        held = [part.index.ids(0, part.index.stored) for part in slices]
        rows = [part.rows.copy() for part in slices]
    metrics = Metrics("sparse", digest, "", "0", time.monotonic)
    served = load_sparse(source, settings, metrics)
    released = np.concatenate([each.reshape(-1) for each in rows])
    opened_states = []
    for _ in range(KEPT_STATES):
        changes = []
        for part, ids, own in zip(slices, held, rows, strict=True):
            places = random.choice(len(ids), len(ids) // 10 + 1, replace=False)
            own[places] += 1
            changes.append(TableChanges(part.table.name, ids[places], own[places]))
        state = publisher.publish(changes).states[digest]
        assert served.open_version is not None
        expected = np.concatenate([each.reshape(-1) for each in rows])
        opened_states.append((served.open_version(state), expected))
        np.testing.assert_array_equal(rows_of(served, held), released)
        for waited in (False, True):  # beside the release's, and in their places
            for function, own_rows in opened_states:
                np.testing.assert_array_equal(rows_of(function, held), own_rows)
            if room_bytes and not waited:
                until = time.monotonic() + WAIT_S
                while served.in_place != state:
                    assert time.monotonic() < until
                    time.sleep(0.01)
    served.close()


def changed_shard(share: float) -> EmbeddingShard:
    """A shard with a share of its rows changed; none of them is mapped from a file."""
    rows = np.zeros((ROWS, DIM), np.float32)
    table = TableSpec(name="items", rows=ROWS, dim=DIM)
    part = StoredSlice(table, Precision.FP32, rows, RowIndex.build(ROWS, np.arange(ROWS)))
    ids = np.arange(int(share * ROWS))
    return EmbeddingShard([part.changed(RowChanges(ids, rows[ids] + 1, ROWS))])


def test_rows_are_rewritten_where_there_is_room() -> None:
    shard, size = changed_shard(0.1), ROWS * DIM * 4
    for room_bytes in (0, size - 1):
        assert Rewriter(room_bytes).rewrite(shard) is shard
    rewriter = Rewriter(size)
    rewritten = rewriter.rewrite(shard)
    assert rewritten is not shard
    one = np.ones((1, 2), np.int32)
    np.testing.assert_array_equal(rewritten.pool(np.array([0, ROWS - 1]), one)[:, 0], [1, 0])
    assert rewriter.size_bytes == size
    assert rewriter.rewrite(changed_shard(0.0)).rewritten_bytes == 0
    assert rewriter.size_bytes == 0, "nothing is changed any more, so the copy is let go"


def test_one_copy_goes_from_state_to_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "FREE_S", 0.05)
    shard, size = changed_shard(0.1), ROWS * DIM * 4
    rewriter, places = Rewriter(size), set()
    values = (np.arange(ROWS) < ROWS // 10).astype(np.float32)
    for number in range(5):
        ids = np.arange(number, ROWS, 7)
        values[ids] = number
        rows = np.repeat(values[ids][:, None], DIM, axis=1)
        shard = shard.changed({"items": RowChanges(ids, rows, ROWS)})
        rewritten = rewriter.rewrite(shard)
        np.testing.assert_array_equal(rewritten.slices[0].rows[:, 0], values)
        places.add(rewritten.slices[0].rows.ctypes.data)
        assert rewriter.rewrite(shard) is shard, "those rows are looked up still"
        np.testing.assert_array_equal(rewritten.slices[0].rows[:, 0], values)
        del rewritten
    assert len(places) == 1
    assert rewriter.size_bytes == size


def test_without_memory_for_a_copy_rows_stay_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    shard, rewriter = changed_shard(0.1), Rewriter(1 << 30)
    monkeypatch.setattr(mmap, "mmap", refuse)
    assert rewriter.rewrite(shard) is shard
    assert rewriter.size_bytes == 0
