"""What rows on a local disk cost: CPU and I/O for each read, and time.

    reads    = gathers that the cache does not answer, per query
    load     = λ·(a + β·n + look-up·n + read·reads)        vCPU
    iops     = max(λ·reads / u, reads / w)                 reserved on the node, of one replica
    latency  = seek + reads / iops, and the waiting of queries for each other

u is how busy the disk may be, w how long the reads of one query may take. A node's reads per second
are shared out like its memory: the disks of a plan never promise more than they are rated at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "BUFFER_BYTES",
    "CACHE_KEY_BYTES",
    "CHECKSUM_SHARE",
    "LEAST_IOPS",
    "DiskTerms",
    "DiskUse",
]

CHECKSUM_SHARE = 4 / 4096  # of the rows: one CRC-32C for each block
CACHE_KEY_BYTES = 8.0  # of each row in the cache (kernels/disk/row_cache.h)
BUFFER_BYTES = 8e6  # of reads in flight: 256 of 16 KiB, and the lists of queries
LEAST_IOPS = 100.0  # of a shard that nobody asks


@dataclass(frozen=True)
class DiskTerms:
    """What is assumed of disks.

    Args:
        read_s: CPU of one read, in the function and in the kernel. Shipped: measured where erless
            was developed (2.6 µs with io_uring at a depth of 256, docs/disk.md), and half as much
            again, since disks that complete one read at a time interrupt more often.
        look_up_s: CPU of asking the cache for one row.
        seek_s: latency of one read alone.
        utilisation: most of a disk's reads per second to plan for.
        wait_s: most that the reads of one query may take.
        cached_rows: share of a shard's rows that its cache holds.
        cache_hits: of the gathers on the hottest so many rows, those that the cache answers.
        source: where these figures are from.
    """

    read_s: float = 4e-6
    look_up_s: float = 3e-8
    seek_s: float = 2e-4
    utilisation: float = 0.6
    wait_s: float = 0.02
    cached_rows: float = 0.02
    cache_hits: float = 0.8
    source: str = "shipped default, not measured on your machine"

    def assumptions(self) -> dict[str, str]:
        """As of `CostTerms`."""
        return {
            "disk tier": f"{self.read_s * 1e6:g} µs of CPU a read ({self.source}), "
            f"{self.utilisation:.0%} of a disk's rated reads/s, at most "
            f"{self.wait_s * 1e3:g} ms for the reads of a query, "
            f"{self.cache_hits:.0%} of the hits of a perfect cache"
        }


@dataclass(frozen=True)
class DiskUse:
    """What one replica takes of its node's disk.

    Args:
        terms: what was assumed.
        bytes: of rows and checksums.
        cache_bytes: memory for rows that were read.
        reads: per query.
        rate: reads per second at the planned rate.
        iops: reads per second that are reserved.
    """

    terms: DiskTerms
    bytes: float
    cache_bytes: float
    reads: float
    rate: float
    iops: float

    def latency_s(self, tail: float) -> float:
        """What the reads add to a query's latency; a share `tail` of queries waits longer.

        M/D/1 of the reads of whole queries, with an exponential tail.
        """
        service, busy = self.reads / self.iops, min(self.rate / self.iops, 0.999)
        wait = service * busy / (2 * (1 - busy)) * math.log(1 / tail)
        return self.terms.seek_s + service + wait
