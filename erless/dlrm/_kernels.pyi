"""The compiled kernels (kernels/python/).

In this package `rows.py`, `embedding.py` and `disk.py` use them. Beside it, `erless.pack.table`
picks rows, `erless.serve.functions.sparse` turns sums into float16, and
`erless.serve.gateway.remote` makes a `ShardChannel` for each shard.

A fault is (kind, table, sample, position, value); kinds are those of
`erless.dlrm.query_arrays.QueryFault`.
"""

from typing import Any, final

from numpy.typing import NDArray

_Array = NDArray[Any]
_Fault = tuple[int, int, int, int, int]

INSTRUCTION_SET: str

FAULT_RANGE: int
FAULT_ABSENT: int
FAULT_LENGTH: int
FAULT_TOTAL: int
FAULT_UNWEIGHTED: int
FAULT_SIZE: int
PRECISION_FP32: int
PRECISION_FP16: int
PRECISION_INT8: int
PRECISION_INT4: int
POOLING_SUM: int
POOLING_MAX: int
POOLING_WEIGHTED: int
POOLING_MEAN: int
DISK_BLOCK: int
ENGINE_AUTO: int
ENGINE_PREAD: int
ENGINE_URING: int
READ_FAILED: int
READ_SHORT: int
READ_ALTERED: int
INDEX_ROWS: int
INDEX_WORDS: int
MAX_SHARDS: int
MAX_IDS: int
ANSWER_GENERAL: int
ANSWER_INCOMPLETE: int

def index_mark(blocks: _Array, rows: int, ids: _Array, /) -> int: ...
def index_rank(blocks: _Array, /) -> int: ...
def index_find(
    blocks: _Array | None, rows: int, ids: _Array, local_ids: _Array, /
) -> tuple[int, int]: ...
def pick_rows(
    rows: _Array, routes: _Array, counts: _Array, out: _Array | None, sums: _Array, shard: int, /
) -> tuple[int, float]: ...
def combine_begin(bags: int | _Array, out: _Array, places: _Array, /) -> None: ...
def combine(
    bags: int | _Array,
    out: _Array,
    places: _Array,
    lengths: _Array,
    partial: _Array,
    packed: bool,
    /,
) -> None: ...
def combine_end(bags: int | _Array, out: _Array, places: _Array, lengths: _Array, /) -> None: ...
def block_checksums(data: _Array, out: _Array, /) -> None: ...
def to_float16(floats: _Array, out: _Array, /) -> None: ...

@final
class Patch:
    @property
    def rows(self) -> int: ...
    def __new__(
        cls,
        row_bytes: int,
        stored: int,
        chunks: tuple[_Array, ...],
        keys: _Array,
        numbers: _Array,
        places: _Array,
        /,
    ) -> Patch: ...

@final
class ShardChannel:
    def __new__(
        cls,
        heads: tuple[bytes, ...],
        requests: tuple[bytes, ...],
        answers: tuple[bytes, ...],
        places: _Array,
        /,
    ) -> ShardChannel: ...

@final
class Split:
    @property
    def kept(self) -> int: ...
    @property
    def wide(self) -> bool: ...
    def arrays(self) -> tuple[bytes, bytes, bytes, bytes | None, bytes]: ...
    def touched(self) -> tuple[int, ...]: ...
    def pool(self, out: _Array, places: _Array, /) -> None: ...
    def build_request(
        self, shard: int, channel: ShardChannel, left_ms: int, trace: bytes | None, /
    ) -> bytes | None: ...
    def add_answer(
        self,
        shard: int,
        channel: ShardChannel,
        buffer: bytearray,
        begin: int,
        end: int,
        last: bool,
        out: _Array,
        /,
    ) -> tuple[int, int]: ...

@final
class Router:
    def __new__(
        cls,
        routes: tuple[tuple[_Array, int, int, bytes], ...],
        slots: _Array,
        widths: _Array,
        homes: tuple[tuple[int, Pooler, int] | None, ...] | None = None,
        /,
    ) -> Router: ...
    def repatched(self, homes: tuple[tuple[int, Pooler, int] | None, ...], /) -> Router: ...
    def bucketize(
        self, values: _Array, weights: _Array | None, lengths: _Array, begins: _Array | None, /
    ) -> Split | _Fault: ...

@final
class FastPath:
    def __new__(
        cls,
        pooler: Pooler,
        heads: tuple[bytes, ...],
        requests: tuple[bytes, ...],
        answers: tuple[bytes, ...],
        max_batch: int,
        max_body: int,
        longest_ms: int,
        /,
    ) -> FastPath: ...
    def answer(
        self,
        buffer: bytes | bytearray | memoryview,
        begin: int,
        end: int,
        announced: int,
        date: bytes,
        up_ms: int,
        /,
    ) -> tuple[bytes, int, int, int, int, int] | None: ...

@final
class Pooler:
    def __new__(
        cls,
        slices: tuple[
            tuple[_Array, _Array | None, int, int, int, int]
            | tuple[_Array, _Array | None, int, int, int, int, Patch | None, int],
            ...,
        ],
        /,
    ) -> Pooler: ...
    def pool(
        self,
        values: _Array,
        weights: _Array | None,
        lengths: _Array,
        out: _Array,
        columns: _Array | None,
        begins: _Array | None,
        /,
    ) -> int | _Fault: ...

@final
class DiskPooler:
    def __new__(
        cls,
        slices: tuple[tuple[Any, ...], ...],
        engine: int,
        depth: int,
        cache_bytes: int,
        most_waiting: int,
        /,
    ) -> DiskPooler: ...
    def begin(
        self,
        values: _Array,
        weights: _Array | None,
        lengths: _Array,
        out: _Array,
        columns: _Array | None,
        begins: _Array | None,
        changes: DiskChanges | None = None,
        /,
    ) -> int | _Fault | DiskQuery | None: ...
    def changed(self, changes: tuple[tuple[Patch | None, int], ...], /) -> DiskChanges: ...
    def event(self) -> int: ...
    def engine(self) -> tuple[int, int]: ...
    def counts(self) -> tuple[int, int, int, int, int, int, int]: ...

@final
class DiskChanges: ...

@final
class DiskQuery:
    def done(self) -> bool: ...
    def finish(self) -> int | _Fault | tuple[int, int, int, int]: ...
