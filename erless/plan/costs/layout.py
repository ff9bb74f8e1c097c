"""A layout: which ranks live in which function. Everything a plan predicts follows from it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.contents import contents_of, routing_bytes
from erless.plan.costs.cost import CostTerms, quantile_wait_s, replicas, vcpu_each
from erless.plan.costs.demand import Demand, DenseDemand
from erless.plan.costs.disk import (
    BUFFER_BYTES,
    CACHE_KEY_BYTES,
    CHECKSUM_SHARE,
    LEAST_IOPS,
    DiskTerms,
    DiskUse,
)
from erless.plan.costs.many_tables import MANY_TABLES, Slices
from erless.plan.costs.planned import PlannedFunction, Role, Slice
from erless.specs.plan import Precision

__all__ = [
    "Demand",
    "DenseDemand",
    "Layout",
    "PlannedFunction",
    "Role",
    "Slice",
    "cover",
    "on_disk",
]

UTILITY_QUERIES = 1000


@dataclass(frozen=True)
class Layout:
    """A gateway (first), its shards, hottest first, and the dense function where there is one."""

    demand: Demand
    terms: CostTerms
    gateway: PlannedFunction
    shards: tuple[PlannedFunction, ...]
    dense: PlannedFunction | None = field(init=False)
    functions: tuple[PlannedFunction, ...] = field(init=False)

    def __post_init__(self) -> None:
        apart = self.demand.dense
        dense = _dense(self.demand, apart, self.terms) if apart else None
        object.__setattr__(self, "dense", dense)
        every = (self.gateway, *self.shards, *([dense] if dense else []))
        object.__setattr__(self, "functions", every)

    @classmethod
    def of(
        cls,
        demand: Demand,
        terms: CostTerms,
        shards: Sequence[Sequence[Slice]],
        resident: Sequence[Slice] = (),
        precision: Precision = Precision.FP32,
        resident_precision: Precision = Precision.FP32,
        why: Sequence[str] = (),
        precisions: Sequence[Precision] = (),
    ) -> Layout:
        """Size every function for the demand. Empty slices and shards are dropped.

        `precisions` has one for each shard, instead of `precision` for all.
        """
        kept = [demand.held(rows) for rows in shards]
        reasons = list(why) or [""] * len(kept)
        kinds = list(precisions) or [precision] * len(kept)
        parts = [entry for entry in zip(kept, reasons, kinds, strict=True) if len(entry[0])]
        functions = [
            _shard(demand, terms, f"shard-{index}", rows, kind, text)
            for index, (rows, text, kind) in enumerate(parts)
        ]
        inside = demand.held(resident)
        gateway = _gateway(demand, terms, inside, resident_precision, functions)
        return cls(demand, terms, gateway, tuple(functions))

    def resized(
        self,
        terms: CostTerms | None = None,
        precisions: Sequence[Precision] = (),
        disk_wait: float = 1.0,
    ) -> Layout:
        """The same rows in the same functions, sized under other terms or precisions.

        `disk_wait`: the reads of a query may take so many times as long, so that more or fewer
        reads per second are reserved.
        """
        terms = terms or self.terms
        kinds = precisions or [shard.precision for shard in self.shards]
        made = Layout.of(
            self.demand,
            terms,
            [shard.slices for shard in self.shards],
            self.gateway.slices,
            resident_precision=self.gateway.precision,
            why=[shard.why for shard in self.shards],
            precisions=kinds,
        )
        named = (
            _as_before(self.demand, terms, old, new, disk_wait)
            for new, old in zip(made.shards, self.shards, strict=True)
        )
        return Layout(self.demand, terms, made.gateway, tuple(named))

    @property
    def memory(self) -> float:
        """Bytes of all containers."""
        return sum(function.total_memory for function in self.functions)

    @property
    def vcpu(self) -> float:
        """vCPU of all containers."""
        return sum(function.replicas * function.vcpu for function in self.functions)

    @property
    def containers(self) -> int:
        """How many containers there are, replicas of all functions together."""
        return sum(function.replicas for function in self.functions)

    @property
    def p95_s(self) -> float:
        """95th percentile of a query's latency, in seconds.

        The query passes the gateway, its slowest shard, then the dense function if any. The 5 %
        tail is split evenly over the functions that it visits (union bound), so this is
        conservative under the model.
        """
        tail = 0.05 / len(self.functions)
        waits = [self._latency(shard, tail) for shard in self.shards]
        remote = max(waits) + self.terms.hop_s if waits else 0.0
        tower = self._latency(self.dense, tail) + self.terms.hop_s if self.dense else 0.0
        return self._latency(self.gateway, tail) + remote + tower

    def _latency(self, function: PlannedFunction, tail: float) -> float:
        cores = 1.0 if function.gpus else function.vcpu
        service = function.service_s / min(1.0, cores)
        if not self.terms.queueing:
            return service
        wait = quantile_wait_s(service, function.load, function.replicas, cores, tail)
        return service + wait + (function.disk.latency_s(tail) if function.disk else 0.0)

    @property
    def utility(self) -> float:
        """Share of allocated rows that 1,000 queries touch, spread evenly over the replicas."""
        touched = allocated = 0.0
        for function in self.functions:
            queries = UTILITY_QUERIES / function.replicas
            for part in function.slices:
                table = self.demand.tables[part.table]
                accesses = table.gathers * queries
                touched += function.replicas * table.curve.touched(accesses, part.start, part.stop)
            allocated += function.replicas * function.rows
        return touched / allocated if allocated else 0.0


def _as_before(
    demand: Demand,
    terms: CostTerms,
    old: PlannedFunction,
    new: PlannedFunction,
    disk_wait: float,
) -> PlannedFunction:
    """`new`, sized anew from the rows of `old`, with its name, its role and its disk."""
    if old.disk is not None:
        disk = replace(old.disk.terms, wait_s=old.disk.terms.wait_s * disk_wait)
        new = on_disk(demand, terms, new, disk)
    return replace(new, name=old.name, role=old.role)


def on_disk(
    demand: Demand, terms: CostTerms, shard: PlannedFunction, disk: DiskTerms
) -> PlannedFunction:
    """`shard`, its rows read from a local disk: memory for index, checksums and a cache.

    The cache holds the hottest rows of each slice, as far as it goes; that it does not know them
    beforehand, but finds out, is `disk.cache_hits`.
    """
    cached = sum(
        demand.tables[part.table].gathers_between(
            part.start, part.start + int(disk.cached_rows * (part.stop - part.start))
        )
        for part in shard.slices
    )
    reads = max(0.0, shard.gathers - disk.cache_hits * cached)
    service = shard.service_s + disk.look_up_s * shard.gathers + disk.read_s * reads
    load = demand.qps * service
    number = replicas(load, terms, demand.min_replicas)
    rate = demand.qps * reads / number
    row_overhead = shard.rows * (terms.index_bytes_per_row + CACHE_KEY_BYTES * disk.cached_rows)
    cache = disk.cached_rows * shard.row_bytes
    use = DiskUse(
        terms=disk,
        bytes=shard.row_bytes * (1 + CHECKSUM_SHARE),
        cache_bytes=cache + CACHE_KEY_BYTES * disk.cached_rows * shard.rows,
        reads=reads,
        rate=rate,
        iops=max(rate / disk.utilisation, reads / disk.wait_s, LEAST_IOPS),
    )
    resident = shard.row_bytes * CHECKSUM_SHARE + row_overhead + cache
    return replace(
        shard,
        service_s=service,
        load=load,
        replicas=number,
        vcpu=vcpu_each(load, number, terms),
        memory=resident + BUFFER_BYTES + terms.shard_memory_bytes,
        disk=use,
    )


def _dense(demand: Demand, dense: DenseDemand, terms: CostTerms) -> PlannedFunction:
    """On a GPU a replica has one, and the vCPU that feed it; its load then counts GPUs."""
    on_gpu = dense.device == "cuda"
    load = demand.qps * dense.service_s
    number = replicas(load, terms.on(1.0) if on_gpu else terms, demand.min_replicas)
    vcpu = vcpu_each(demand.qps * dense.cpu_s if on_gpu else load, number, terms)
    return PlannedFunction(
        name="dense",
        role=Role.DENSE,
        slices=(),
        precision=Precision.FP32,
        gathers=0.0,
        rows=0,
        row_bytes=0.0,
        service_s=dense.service_s,
        load=load,
        replicas=number,
        vcpu=max(1.0, vcpu) if on_gpu else vcpu,
        memory=dense.memory_bytes,
        why="the dense tower",
        gpus=int(on_gpu),
    )


def _shard(
    demand: Demand,
    terms: CostTerms,
    name: str,
    rows: Sequence[Slice],
    precision: Precision,
    why: str,
) -> PlannedFunction:
    held = contents_of(demand, terms, rows, precision)
    service = terms.call_s + held.seconds + terms.partial_s * held.partials
    load = demand.qps * service
    number = replicas(load, terms, demand.min_replicas)
    index_bytes = held.rows * terms.index_bytes_per_row
    return PlannedFunction(
        name=name,
        role=Role.SHARD,
        slices=rows,
        precision=precision,
        gathers=held.gathers,
        rows=held.rows,
        row_bytes=held.row_bytes,
        service_s=service,
        load=load,
        replicas=number,
        vcpu=vcpu_each(load, number, terms),
        memory=held.row_bytes + index_bytes + terms.shard_memory_bytes,
        why=why,
        partials=held.partials,
    )


def _gateway(
    demand: Demand,
    terms: CostTerms,
    resident: Sequence[Slice],
    precision: Precision,
    shards: Sequence[PlannedFunction],
) -> PlannedFunction:
    held = contents_of(demand, terms, resident, precision)
    remote = sum(shard.gathers for shard in shards)
    service = terms.call_s + demand.tower_s + held.seconds
    service += terms.remote_call_s * len(shards) + terms.route_s * remote
    service += terms.partial_s * sum(shard.partials for shard in shards)
    load = demand.qps * service
    number = replicas(load, terms, demand.min_replicas)
    routing = routing_bytes(demand, terms, resident, shards)
    return PlannedFunction(
        name="gateway",
        role=Role.GATEWAY,
        slices=resident,
        precision=precision,
        gathers=held.gathers,
        rows=held.rows,
        row_bytes=held.row_bytes,
        service_s=service,
        load=load,
        replicas=number,
        vcpu=vcpu_each(load, number, terms),
        memory=held.row_bytes + terms.gateway_memory_bytes + routing,
        why="load: the gateway's replicas have no room for one more row's gathers"
        if shards
        else "the whole model in each replica",
    )


def cover(stops: Sequence[NDArray[np.int64]]) -> list[Sequence[Slice]]:
    """Slices between successive cut vectors, `stops` falling from all rows to 0 (coldest first)."""
    if len(stops[0]) >= MANY_TABLES:
        return [Slices.between(below, above) for above, below in itertools.pairwise(stops)]
    return [
        [
            Slice(table, int(below[table]), int(above[table]))
            for table in range(len(above))
            if above[table] > below[table]
        ]
        for above, below in itertools.pairwise(stops)
    ]
