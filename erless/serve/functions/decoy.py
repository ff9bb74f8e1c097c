"""The function of a decoy shard: it answers as a cold shard does, of rows that mean nothing."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from itertools import pairwise

import numpy as np

from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.pool_call import PoolCall
from erless.dlrm.synthetic_rows import SyntheticRows
from erless.serve.files import OpenShard, Source
from erless.serve.functions.sparse import ReleasedShard
from erless.serve.metrics import Metrics
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.settings import Settings
from erless.specs.decoys import DecoyManifest, DecoySlice
from erless.specs.model import TableSpec

__all__ = ["DecoyFunction", "load_decoy"]


class DecoyFunction(ReleasedShard):
    """A shard whose rows are made when they are asked for.

    Args:
        source: of what it would serve.
        opened: its slices, of the rows below.
        rows: of each slice.
        settings: of the function.
        metrics: counted here.
    """

    decoy = True

    def __init__(
        self,
        source: Source,
        opened: OpenShard,
        rows: tuple[SyntheticRows, ...],
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        super().__init__(source, opened, settings, metrics)
        self._rows = rows
        self.fast_path = None  # it would read rows that have not been made

    def infer(self, call: InferCall) -> InferAnswer:
        """Make the rows, then gather and pool."""
        pool_call = self.pool_call(call.request)
        self._make(pool_call)
        return self.answer(call.request, self._shard.begin(pool_call))

    def _make(self, call: PoolCall) -> None:
        """Make what `call` asks for; the kernels refuse what does not fit."""
        flat = np.maximum(call.lengths.reshape(-1), 0)
        places = np.concatenate([[0], np.cumsum(flat, dtype=np.int64)])
        bags = flat.size // len(self._rows)
        begins = call.begins
        if begins is None:
            begins = np.arange(len(self._rows) + 1, dtype=np.int64) * bags
        for rows, (begin, end) in zip(self._rows, pairwise(places[begins]), strict=True):
            rows.make(call.values[begin:end])


def load_decoy(
    source: Source, manifest: DecoyManifest, settings: Settings, metrics: Metrics
) -> DecoyFunction:
    """The decoy that `manifest` describes."""
    rows = tuple(_rows(part, manifest.seed) for part in manifest.slices)
    slices = [
        StoredSlice(
            TableSpec(name=part.table, rows=part.table_rows, dim=part.dim, pooling=part.pooling),
            part.precision,
            made.rows,
            made.index,
        )
        for part, made in zip(manifest.slices, rows, strict=True)
    ]
    shard = EmbeddingShard(slices, f"shard {manifest.digest[:12]}")
    return DecoyFunction(source, OpenShard(shard, (), ExitStack()), rows, settings, metrics)


def _rows(part: DecoySlice, seed: str) -> SyntheticRows:
    key = hashlib.sha256(f"{seed} {part.table}".encode()).digest()
    return SyntheticRows(
        part.table_rows,
        part.rows,
        part.dim,
        part.precision,
        part.mean,
        part.spread,
        int.from_bytes(key[:8]),
    )
