"""The sharded arithmetic in one process: bucketize → per-shard gather-pool → combine."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.queries import Query
from erless.serve.files import Source, open_gateway, open_shard
from erless.specs.release import ReleaseManifest

__all__ = ["sharded_pool"]


def sharded_pool(
    source: Source, release: ReleaseManifest, query: Query, *, packed: bool = False
) -> NDArray[np.float32]:
    """Pooled vectors (B, T, D) of `query`, as gateway and functions compute them."""
    with ExitStack() as stack:
        gateway = stack.enter_context(open_gateway(source, release.digest))
        shards = [
            stack.enter_context(open_shard(source, shard.digest)).shard for shard in release.shards
        ]
        buckets = gateway.routing.bucketize(query.values, query.lengths, query.weights)
        out = gateway.combiner.begin(query.batch)
        gateway.combiner.keep(out, buckets.split)
        for number in buckets.touched():
            values, lengths, weights = buckets[number]
            shard = gateway.resident.get(number, shards[number])
            pool = shard.pool_packed if packed else shard.pool
            gateway.combiner.add(
                out, number, pool(values, lengths, weights), lengths, packed=packed
            )
        return gateway.combiner.finish(out, query.lengths)
