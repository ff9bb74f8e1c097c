"""Rows on a disk: the answers that memory gives, to the bit, or an error; never a wrong answer."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm import _kernels
from erless.dlrm.disk import (
    BLOCK_BYTES,
    DiskLookup,
    DiskShard,
    DiskSlice,
    Engine,
    block_checksums,
)
from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.patches import RowChanges
from erless.dlrm.quantize import encode
from erless.dlrm.rows import RowIndex
from erless.errors import ArtifactError, DiskBusyError, DiskReadError, QueryError
from erless.specs.features import POOLED
from erless.specs.model import Pooling, TableSpec
from erless.specs.plan import Precision

ENGINES: tuple[Engine, ...] = ("io_uring", "pread")


def has_io_uring() -> bool:
    try:
        one_slice = slice_of(Path("/proc/self/exe"), 0, make_slice("a", 4, 4))
        DiskShard([one_slice], cache_bytes=0, engine="io_uring")
    except DiskReadError:
        return False
    return True


def make_slice(
    name: str,
    rows: int,
    dim: int,
    pooling: Pooling = Pooling.SUM,
    precision: Precision = Precision.FP32,
    seed: int = 0,
) -> StoredSlice:
    """About 0.6 of a table's rows, at random."""
    generator = np.random.default_rng(seed)
    held = np.flatnonzero(generator.random(rows) < 0.6)
    held = held if len(held) else np.array([rows - 1])
    stored = encode(generator.standard_normal((len(held), dim)).astype(np.float32), precision)
    table = TableSpec(name=name, rows=rows, dim=dim, pooling=pooling)
    return StoredSlice(table, precision, stored, RowIndex.build(rows, held))


def slice_of(path: Path, begin: int, part: StoredSlice, *, checked: bool = True) -> DiskSlice:
    checksums = block_checksums(part.rows) if checked else None
    return DiskSlice(part.table, part.precision, path, begin, part.index, checksums)


def on_disk(folder: Path, slices: list[StoredSlice], begin: int = BLOCK_BYTES) -> list[DiskSlice]:
    """The rows of each in a file of its own, from `begin` on, with more behind them."""
    made = []
    for number, part in enumerate(slices):
        path = folder / f"{number}.rows"
        path.write_bytes(b"x" * begin + part.rows.tobytes() + b"y" * 100)
        made.append(slice_of(path, begin, part))
    return made


def held_ids(part: StoredSlice) -> np.ndarray:
    everything = np.arange(part.table.rows)
    return everything[part.index.local(everything) >= 0]


def query_for(
    slices: list[StoredSlice], seed: int, samples: int = 5, most: int = 30
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, lengths (tables, samples), weights that are 1 where none are used."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, most, (len(slices), samples)).astype(np.int32)
    values, weights = [], []
    for part, bags in zip(slices, lengths, strict=True):
        count = int(bags.sum())
        values.append(generator.choice(held_ids(part), count))
        drawn = generator.standard_normal(count).astype(np.float32)
        weights.append(drawn if part.table.pooling is Pooling.WEIGHTED_SUM else np.ones_like(drawn))
    return np.concatenate(values), lengths, np.concatenate(weights)


def changes_of(slices: list[StoredSlice], seed: int) -> dict[str, RowChanges]:
    """A third of each slice's rows, and two more that are added."""
    generator = np.random.default_rng(seed)
    changes = {}
    for part in slices:
        rows, held = part.table.rows, held_ids(part)
        ids = generator.choice(held, len(held) // 3, replace=False)
        ids = np.concatenate([ids, [rows, rows + 1]]).astype(np.int64)
        vectors = generator.standard_normal((len(ids), part.table.dim)).astype(np.float32)
        changes[part.table.name] = RowChanges(ids, encode(vectors, part.precision), rows + 2)
    return changes


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    if chosen == "io_uring" and not has_io_uring():
        pytest.skip("no io_uring on this machine")
    return chosen


@given(
    dims=st.lists(st.sampled_from([1, 3, 8, 16, 33, 100, 1500]), min_size=1, max_size=3),
    precisions=st.lists(st.sampled_from(list(Precision)), min_size=3, max_size=3),
    poolings=st.lists(st.sampled_from(POOLED), min_size=3, max_size=3),
    rows=st.sampled_from([1, 7, 300]),
    cache_bytes=st.sampled_from([0, 2_000, 100_000, 10_000_000]),
    begin=st.sampled_from([0, 72, BLOCK_BYTES]),
    engine=st.sampled_from(ENGINES),
    narrow=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_answers_are_those_of_rows_in_memory_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory,
    dims: list[int],
    precisions: list[Precision],
    poolings: list[Pooling],
    rows: int,
    cache_bytes: int,
    begin: int,
    engine: Engine,
    narrow: bool,
    seed: int,
) -> None:
    if engine == "io_uring" and not has_io_uring():
        engine = "auto"
    slices = [
        make_slice(f"t{n}", rows, dim, pooling, precision, seed + n)
        for n, (dim, precision, pooling) in enumerate(zip(dims, precisions, poolings, strict=False))
    ]
    memory = EmbeddingShard(slices)
    files = on_disk(tmp_path_factory.mktemp("rows"), slices, begin)
    disk = DiskShard(files, cache_bytes=cache_bytes, engine=engine)
    for turn in range(3):
        values, lengths, weights = query_for(slices, seed + turn // 2)
        ids = values.astype(np.int32) if narrow else values
        np.testing.assert_array_equal(
            disk.pool(ids, lengths, weights), memory.pool(ids, lengths, weights)
        )
        np.testing.assert_array_equal(
            disk.pool_packed(ids, lengths, weights), memory.pool_packed(ids, lengths, weights)
        )
    bags = np.full(len(slices), lengths.shape[1], np.int32)
    flat = lengths.reshape(-1)
    np.testing.assert_array_equal(
        disk.pool_packed(ids, flat, weights, bags), memory.pool_packed(ids, flat, weights, bags)
    )
    changes = changes_of(slices, seed)
    changed_memory, changed_disk = memory.changed(changes), disk.changed(changes)
    for shard, expected in ((changed_disk, changed_memory), (disk, memory)):
        np.testing.assert_array_equal(
            shard.pool(ids, lengths, weights), expected.pool(ids, lengths, weights)
        )
    added = np.concatenate([change.ids[-2:] for change in changes.values()])
    two = np.full((len(slices), 1), 2, np.int32)
    ones = np.ones(len(added), np.float32)
    np.testing.assert_array_equal(
        changed_disk.pool(added, two, ones), changed_memory.pool(added, two, ones)
    )
    with pytest.raises(QueryError, match="row id"):
        disk.pool(added, two, ones)


def test_a_row_that_is_asked_for_often_is_read_once(tmp_path: Path, engine: Engine) -> None:
    part = make_slice("a", 1000, 16)
    shard = DiskShard(on_disk(tmp_path, [part]), cache_bytes=1 << 20, engine=engine)
    row = np.repeat(held_ids(part)[:1], 50)
    for _ in range(3):
        shard.pool(row, np.array([[50]], np.int32))
    counts = shard.counts()
    assert (counts.rows_read, counts.reads, counts.cached) == (1, 1, 100)
    assert counts.bytes_read == BLOCK_BYTES


def test_rows_that_share_a_block_share_a_read(tmp_path: Path, engine: Engine) -> None:
    part = make_slice("a", 1000, 32)  # 32 rows a block
    shard = DiskShard(on_disk(tmp_path, [part]), cache_bytes=1 << 20, engine=engine)
    shard.pool(held_ids(part)[:64], np.array([[64]], np.int32))
    counts = shard.counts()
    assert (counts.rows_read, counts.reads, counts.bytes_read) == (64, 1, 2 * BLOCK_BYTES)


def test_a_cache_keeps_within_its_bound_and_keeps_what_is_asked_for_often(tmp_path: Path) -> None:
    part = make_slice("a", 20_000, 32)
    shard = DiskShard(on_disk(tmp_path, [part]), cache_bytes=200_000)  # 1,470 rows
    generator = np.random.default_rng(1)
    ids, hot = held_ids(part), held_ids(part)[:300]
    for _ in range(40):
        values = np.concatenate([hot, generator.choice(ids, 300)])
        shard.pool(values, np.array([[600]], np.int32))
    before = shard.counts()
    shard.pool(hot, np.array([[300]], np.int32))
    after = shard.counts()
    assert after.cached - before.cached > 250  # scans did not push them out
    assert after.reads > before.reads or after.cached - before.cached == 300


def test_what_does_not_fit_is_named_as_it_is_of_rows_in_memory(tmp_path: Path) -> None:
    part = make_slice("items", 100, 8)
    memory = EmbeddingShard([part], "shard cold")
    disk = DiskShard(on_disk(tmp_path, [part]), cache_bytes=1 << 16, name="shard cold")
    absent = np.setdiff1d(np.arange(100), held_ids(part))[:1]
    one = np.array([[1]], np.int32)
    for values, lengths in [
        (np.array([100]), one),
        (np.array([-1]), one),
        (absent, one),
        (absent, np.array([[2]], np.int32)),
        (absent, np.array([[-1]], np.int32)),
        (absent, np.array([[1], [1]], np.int32)),
    ]:
        messages = []
        for shard in (memory, disk):
            with pytest.raises(QueryError) as raised:
                shard.pool(values, lengths)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


def test_a_query_does_not_wait_for_the_disk_unless_it_wants_to(
    tmp_path: Path, engine: Engine
) -> None:
    part = make_slice("a", 1000, 16)
    shard = DiskShard(on_disk(tmp_path, [part]), cache_bytes=1 << 20, engine=engine)
    values, lengths = held_ids(part)[:400], np.array([[400]], np.int32)
    call = shard.shape.dense(values, lengths, None)
    begun = shard.begin(call)
    assert isinstance(begun, DiskLookup)
    assert select.select([shard.event], [], [], 10)[0]
    assert begun.done()
    shard.clear_event()
    assert not select.select([shard.event], [], [], 0)[0]
    expected = EmbeddingShard([part]).pool(values, lengths)
    np.testing.assert_array_equal(begun.finish(), expected)
    again = shard.begin(shard.shape.dense(values, lengths, None))
    assert isinstance(again, np.ndarray)  # all rows are in the cache
    np.testing.assert_array_equal(again, expected)


def test_a_query_that_is_given_up_leaves_nothing_behind(tmp_path: Path, engine: Engine) -> None:
    part = make_slice("a", 1000, 16)
    shard = DiskShard(on_disk(tmp_path, [part]), cache_bytes=0, engine=engine)
    values, lengths = held_ids(part)[:400], np.array([[400]], np.int32)
    for _ in range(20):
        shard.begin(shard.shape.dense(values, lengths, None))  # dropped while it is read
    assert shard.counts().waiting == 0
    np.testing.assert_array_equal(
        shard.pool(values, lengths), EmbeddingShard([part]).pool(values, lengths)
    )


def test_many_queries_at_a_time_do_not_mix(tmp_path: Path, engine: Engine) -> None:
    parts = [make_slice("a", 5000, 16), make_slice("b", 5000, 7, precision=Precision.INT8)]
    memory = EmbeddingShard(parts)
    shard = DiskShard(on_disk(tmp_path, parts), cache_bytes=100_000, engine=engine, depth=8)
    queries = [query_for(parts, seed) for seed in range(60)]
    begun = [
        shard.begin(shard.shape.dense(values, lengths, None)) for values, lengths, _ in queries
    ]
    for (values, lengths, _), each in reversed(list(zip(queries, begun, strict=True))):
        answer = each.finish() if isinstance(each, DiskLookup) else each
        np.testing.assert_array_equal(answer, memory.pool(values, lengths))


def test_reads_beyond_the_bound_are_refused_and_counted(tmp_path: Path) -> None:
    part = make_slice("a", 100_000, 32)
    files = on_disk(tmp_path, [part])
    shard = DiskShard(files, cache_bytes=0, engine="pread", depth=1, most_waiting=10)
    values, lengths = held_ids(part)[::32][:1000], np.array([[1000]], np.int32)
    call = shard.shape.dense(values, lengths, None)
    first = shard.begin(call)  # a query alone may be larger than the bound
    with pytest.raises(DiskBusyError, match="too many reads wait"):
        shard.begin(shard.shape.dense(values, lengths, None))
    assert shard.counts().refused == 1
    assert isinstance(first, DiskLookup)
    np.testing.assert_array_equal(first.finish(), EmbeddingShard([part]).pool(values, lengths))


# -- faults


def pool_all(shard: DiskShard, part: StoredSlice) -> np.ndarray:
    ids = held_ids(part)
    return shard.pool(ids, np.array([[len(ids)]], np.int32))


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path, engine: Engine) -> None:
    part = make_slice("items", 2000, 32)
    files = on_disk(tmp_path, [part])
    shard = DiskShard(files, cache_bytes=1 << 20, engine=engine)
    os.truncate(files[0].path, BLOCK_BYTES + 50_000)
    with pytest.raises(DiskReadError, match=r"table items: .*0\.rows.*cut short") as raised:
        pool_all(shard, part)
    assert raised.value.reason == "short"
    assert shard.counts().faults >= 1
    values = held_ids(part)[:10]  # those that are there are still answered
    np.testing.assert_array_equal(
        shard.pool(values, np.array([[10]], np.int32)),
        EmbeddingShard([part]).pool(values, np.array([[10]], np.int32)),
    )


def test_a_row_that_was_changed_is_an_error(tmp_path: Path, engine: Engine) -> None:
    part = make_slice("items", 2000, 32)
    files = on_disk(tmp_path, [part])
    shard = DiskShard(files, cache_bytes=1 << 20, engine=engine)
    with files[0].path.open("r+b") as file:
        file.seek(BLOCK_BYTES + 40_000)
        file.write(b"\xff")
    with pytest.raises(DiskReadError, match="changed while they were served") as raised:
        pool_all(shard, part)
    assert raised.value.reason == "altered"


def test_a_file_that_vanishes_is_still_read(tmp_path: Path, engine: Engine) -> None:
    part = make_slice("items", 2000, 32)
    files = on_disk(tmp_path, [part])
    shard = DiskShard(files, cache_bytes=1 << 20, engine=engine)
    files[0].path.unlink()
    np.testing.assert_array_equal(
        pool_all(shard, part),
        EmbeddingShard([part]).pool(held_ids(part), np.array([[len(held_ids(part))]], np.int32)),
    )


def test_a_disk_that_fails_is_an_error_with_its_reason(engine: Engine) -> None:
    part = make_slice("items", 64, 16)
    fd = os.open("/proc/self/mem", os.O_RDONLY)  # the kernel itself says EIO at address 0
    try:
        pooler = _kernels.DiskPooler(
            ((fd, 0, part.index.blocks, None, part.index.stored, 64, 16, 0, 0),),
            {"io_uring": _kernels.ENGINE_URING, "pread": _kernels.ENGINE_PREAD}[engine],
            4,
            0,
            100,
        )
    finally:
        os.close(fd)
    out = np.empty((1, 16), np.float32)
    columns = np.zeros(1, np.int64)
    begun = pooler.begin(held_ids(part)[:1], None, np.array([[1]], np.int32), out, columns, None)
    assert isinstance(begun, _kernels.DiskQuery)
    assert begun.finish() == (_kernels.READ_FAILED, 0, 0, errno.EIO)


def test_a_file_that_is_not_there_or_too_short_is_refused(tmp_path: Path) -> None:
    part = make_slice("items", 200, 32)
    files = on_disk(tmp_path, [part])
    os.truncate(files[0].path, BLOCK_BYTES + 100)
    with pytest.raises(ArtifactError, match="truncated"):
        DiskShard(files, cache_bytes=0)
    files[0].path.unlink()
    with pytest.raises(ArtifactError, match="cannot read"):
        DiskShard(files, cache_bytes=0)


def test_a_file_system_without_direct_reads_is_read_through_the_page_cache(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("no tmpfs on this machine")
    part = make_slice("items", 200, 32)
    path = shared / f"erless-test-{os.getpid()}"
    path.write_bytes(part.rows.tobytes())
    try:
        shard = DiskShard([slice_of(path, 0, part)], cache_bytes=0)
        answer = pool_all(shard, part)
    finally:
        path.unlink()
    ids = held_ids(part)
    expected = EmbeddingShard([part]).pool(ids, np.array([[len(ids)]], np.int32))
    np.testing.assert_array_equal(answer, expected)
    assert DiskShard(on_disk(tmp_path, [part]), cache_bytes=0).direct in (True, False)


# A seccomp filter as container runtimes install it: io_uring_setup (425) fails with EPERM.
FORBIDDEN = """
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
    program = op(0x20, 0, 0, 0) + op(0x15, 0, 1, 425)
    program += op(6, 0, 0, 0x50001) + op(6, 0, 0, 0x7FFF0000)
    buffer = ctypes.create_string_buffer(program)
    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(buffer)))) == 0
"""


def run_with(script: str, *arguments: str, **environment: str) -> str:
    """What a Python of its own prints."""
    root = Path(__file__).parents[2]
    return subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": str(root)},
    )


def test_where_io_uring_is_forbidden_threads_read_and_say_why(tmp_path: Path) -> None:
    script = (
        textwrap.dedent(FORBIDDEN)
        + """
import sys
from pathlib import Path
import numpy as np
from tests.dlrm.test_disk import make_slice, on_disk, held_ids
from erless.dlrm.disk import DiskShard
from erless.dlrm.embedding import EmbeddingShard
from erless.errors import DiskReadError
part = make_slice("items", 2000, 32)
files = on_disk(Path(sys.argv[1]), [part])
shard = DiskShard(files, cache_bytes=0)
ids = held_ids(part)
lengths = np.array([[len(ids)]], np.int32)
assert (shard.pool(ids, lengths) == EmbeddingShard([part]).pool(ids, lengths)).all()
print(shard.engine, shard.refusal)
try:
    DiskShard(files, cache_bytes=0, engine="io_uring")
except DiskReadError as error:
    print(error)
"""
    )
    printed = run_with(script, str(tmp_path)).splitlines()
    assert printed[0] == "pread io_uring is forbidden here (seccomp, or kernel.io_uring_disabled)"
    assert "cannot be read: io_uring is forbidden here" in printed[1]


# What a failing disk does, between us and the kernel: every fifth pread fails, others come short.
LAYER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
static int calls;
static ssize_t faulty(int fd, void *to, size_t size, off_t at) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real) real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
    const int every = atoi(getenv("FAIL_EVERY"));
    const int call = __sync_add_and_fetch(&calls, 1);
    if (every && call % every == 0) { errno = EIO; return -1; }
    if (call % 3 == 0) { errno = EINTR; return -1; }
    return real(fd, to, size > 4096 ? size / 8192 * 4096 : size, at);
}
ssize_t pread(int fd, void *to, size_t size, off_t at) { return faulty(fd, to, size, at); }
ssize_t pread64(int fd, void *to, size_t size, off_t at) { return faulty(fd, to, size, at); }
"""


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layer")
    (folder / "layer.c").write_text(LAYER)
    library = folder / "layer.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "layer.c"), "-ldl"]
    subprocess.run(command, check=True)
    return library


PRELOADED = """
import sys
from pathlib import Path
import numpy as np
from tests.dlrm.test_disk import make_slice, on_disk, held_ids
from erless.dlrm.disk import DiskShard
from erless.dlrm.embedding import EmbeddingShard
from erless.errors import DiskReadError
part = make_slice("items", 20_000, 32)
shard = DiskShard(on_disk(Path(sys.argv[1]), [part]), cache_bytes=0, engine="pread", depth=4)
memory = EmbeddingShard([part])
right = failed = 0
for seed in range(50):
    ids = np.random.default_rng(seed).choice(held_ids(part), 40)
    lengths = np.array([[40]], np.int32)
    try:
        answer = shard.pool(ids, lengths)
    except DiskReadError as error:
        assert error.reason == "failed" and "Input/output error" in str(error)
        failed += 1
    else:
        assert (answer == memory.pool(ids, lengths)).all()
        right += 1
print(right, failed)
"""


def test_short_and_interrupted_reads_are_read_on(tmp_path: Path, layer: Path) -> None:
    printed = run_with(PRELOADED, str(tmp_path), LD_PRELOAD=str(layer), FAIL_EVERY="0")
    assert printed.split() == ["50", "0"]


def test_a_disk_that_fails_now_and_then_gives_errors_and_right_answers(
    tmp_path: Path, layer: Path
) -> None:
    printed = run_with(PRELOADED, str(tmp_path), LD_PRELOAD=str(layer), FAIL_EVERY="97")
    right, failed = (int(word) for word in printed.split())
    assert right > 0
    assert failed > 0


@pytest.mark.parametrize("size", [0, 1, 8, 100, 4095, 4096, 4097, 20_000])
def test_checksums_are_crc32c(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    expected = []
    for begin in range(0, size, BLOCK_BYTES):
        crc = 0xFFFFFFFF
        for byte in data[begin : begin + BLOCK_BYTES].tolist():
            crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
        expected.append(crc ^ 0xFFFFFFFF)
    assert block_checksums(data).tolist() == expected
