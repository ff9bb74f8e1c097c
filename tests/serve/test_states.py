"""States of a shard: each answers with its own rows, wherever they lie, and their memory ends."""

from __future__ import annotations

import gc
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
    states = []
    for _ in range(KEPT_STATES):
        changes = []
        for part, ids, own in zip(slices, held, rows, strict=True):
            places = random.choice(len(ids), len(ids) // 10 + 1, replace=False)
            own[places] += 1
            changes.append(TableChanges(part.table.name, ids[places], own[places]))
        state = publisher.publish(changes).states[digest]
        assert served.open_version is not None
        expected = np.concatenate([each.reshape(-1) for each in rows])
        states.append((served.open_version(state), expected))
        np.testing.assert_array_equal(rows_of(served, held), released)
        for function, own_rows in states:
            np.testing.assert_array_equal(rows_of(function, held), own_rows)
    served.close()


def changed_shard(share: float) -> EmbeddingShard:
    """A shard with a share of its rows changed; none of them is mapped from a file."""
    rows = np.zeros((ROWS, DIM), np.float32)
    table = TableSpec(name="items", rows=ROWS, dim=DIM)
    part = StoredSlice(table, Precision.FP32, rows, RowIndex.build(ROWS, np.arange(ROWS)))
    ids = np.arange(int(share * ROWS))
    return EmbeddingShard([part.changed(RowChanges(ids, rows[ids] + 1, ROWS))])


def test_rows_are_rewritten_where_half_of_the_room_suffices() -> None:
    shard, size = changed_shard(0.1), ROWS * DIM * 4
    for room_bytes in (0, size, 2 * size - 1):
        assert Rewriter(room_bytes).rewrite(shard) is shard
    rewriter = Rewriter(2 * size)
    rewritten = rewriter.rewrite(shard)
    assert rewritten is not shard
    one = np.ones((1, 2), np.int32)
    np.testing.assert_array_equal(rewritten.pool(np.array([0, ROWS - 1]), one)[:, 0], [1, 0])
    assert rewriter.size_bytes == size
    assert rewriter.rewrite(changed_shard(0.0)).rewritten_bytes == 0
    assert rewriter.size_bytes == size, "nothing was changed, nothing is rewritten"
    del rewritten
    gc.collect()
    rewriter.rewrite(changed_shard(0.0))
    assert rewriter.size_bytes == 0, "the copy was kept for a next state until there was none"


def test_two_copies_take_turns_and_none_is_written_that_is_looked_up() -> None:
    shard, size = changed_shard(0.1), ROWS * DIM * 4
    rewriter, places = Rewriter(2 * size), []
    values = np.ones((ROWS, 1), np.float32) * (np.arange(ROWS) < ROWS // 10)[:, None]
    earlier: EmbeddingShard | None = None
    held = [rewriter.rewrite(shard)]
    for number in range(6):
        ids = np.arange(number, ROWS, 7)
        values = values.copy()
        values[ids] = number
        rows = np.repeat(values[ids], DIM, axis=1)
        shard = shard.changed({"items": RowChanges(ids, rows, ROWS)})
        if len(held) > 1:
            if number == 4:  # one query is slow
                earlier, expected = held[0], states[0]
            held.pop(0)
        before = [each.copy() for each in [h.slices[0].rows for h in held]]
        held.append(rewriter.rewrite(shard))
        np.testing.assert_array_equal(held[0].slices[0].rows, before[0])
        np.testing.assert_array_equal(held[-1].slices[0].rows[:, :1], values)
        states = [each.slices[0].rows.copy() for each in held]
        places.append(held[-1].slices[0].rows.ctypes.data)
    assert places[0] == places[2] != places[1] == places[3]
    assert places[4] not in places[:4], "that memory is looked up still"
    assert earlier is not None
    np.testing.assert_array_equal(earlier.slices[0].rows, expected)
