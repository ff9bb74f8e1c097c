"""The cost model: formulas with their units, and the assumptions in them.

    QPS(n; c) = c / (a + β·n)                 one replica on c vCPU, n gathers per query
    load      = λ·(a + β·n)                   vCPU that a function needs for λ queries/s
    replicas  = max(min replicas, ⌈load / (u·c)⌉)        u: the utilisation planned for
    memory    = replicas × (rows·bytes + m0)             bytes
    gateway   = λ·(a + d + call·fan-out + route·remote gathers + partial·bags + β·resident gathers)

The dense tower (d seconds of one vCPU per query) runs in the gateway unless `policies/dense.py`
puts it into a function of its own. A touch of a shard costs `a` once per query however many tables
the shard serves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from erless.plan.costs.curves import TableLoad
from erless.specs.plan import Precision
from erless.specs.release import ROUTING_LIMIT
from erless.specs.routes import route_bits

__all__ = [
    "DEFAULT_TERMS",
    "EXCHANGE_S",
    "PAPER_TERMS",
    "BetaCurve",
    "CostTerms",
    "quantile_wait_s",
    "replicas",
    "vcpu_each",
]

# In the gateway, per row of a table: its code, by how many hold rows of the table; and the index of
# the rows at home, as it lies in the shard's file and unpacked for the search (kernels, home.h).
CODE_BYTES = tuple(route_bits(holders) / 8 for holders in range(ROUTING_LIMIT + 1))
HOME_BYTES = 32 / 192 + 16 / 64
REFERENCE_BYTES = 128  # the row that β is quoted for: 32 fp32
ROUNDING = 1e-9  # relative slack when a load is rounded up to whole replicas
VCPU_STEP = 0.05
# fp32 at 52 GFLOP/s per vCPU: geometric mean of what the towers of RM1, RM2 and RM3 reached at
# batch 32 where erless was developed (40, 53 and 63; `erless profile --throughput`).
SECONDS_PER_MAC = 2 / 52e9
EXCHANGE_S = 1.2e-4  # server CPU of an HTTP call, 160 KB in and 40 KB out: DESIGN.md, Serving


@dataclass(frozen=True)
class BetaCurve:
    """Measured β (s per gather) of one precision over the stored row's bytes, ascending."""

    precision: Precision
    row_bytes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, row_bytes: int) -> float:
        """β between the measured points; flat below them, in proportion to the bytes above."""
        most = self.row_bytes[-1]
        if row_bytes > most:
            return self.seconds[-1] * row_bytes / most
        return float(np.interp(row_bytes, self.row_bytes, self.seconds))


@dataclass(frozen=True)
class CostTerms:
    """Everything the formulas assume. Seconds are CPU seconds of one vCPU."""

    name: str
    curve: str
    curve_shipped: bool
    call_s: float = 2e-4
    gather_s: float = 4e-8
    betas: tuple[BetaCurve, ...] = ()  # measured; where there are none, gather_s and gather_fixed
    gather_fixed: float = 0.0  # part of β that does not shrink with the row's bytes
    mac_s: float = SECONDS_PER_MAC
    shard_memory_bytes: float = 0.22e9
    gateway_memory_bytes: float = 0.22e9
    remote_call_s: float = 0.0
    route_s: float = 0.0
    partial_s: float = 0.0
    routing: bool = False  # whether the gateways' memory has what tells where rows are
    index_bytes_per_row: float = 0.0
    hop_s: float = 0.0
    utilisation: float = 1.0
    least_vcpu: float = 0.1
    max_vcpu: float = 1.0
    fixed_vcpu: bool = True
    queueing: bool = False

    def beta(self, row_bytes: int) -> float:
        """β in seconds for a stored row of `row_bytes`: β128·(f + (1-f)·bytes/128)."""
        part = self.gather_fixed + (1 - self.gather_fixed) * row_bytes / REFERENCE_BYTES
        return self.gather_s * part

    def beta_of(self, dim: int, precision: Precision) -> float:
        """β in seconds for a row of `dim` elements."""
        for curve in self.betas:
            if curve.precision is precision:
                return curve.at(precision.row_bytes(dim))
        return self.beta(precision.row_bytes(dim))

    def beta_for(self, table: TableLoad, precision: Precision) -> float:
        """β in seconds for a row of `table` in a function of this precision."""
        return self.beta_of(table.spec.dim, table.kept(precision))

    def routing_bytes(self, remote: int, at_home: bool) -> float:
        """Bytes in each gateway, per row of a table, to tell where its rows lie.

        Args:
            remote: shards that hold rows of it, besides the gateway.
            at_home: the gateway holds some.
        """
        if not self.routing or remote == 0:
            return 0.0
        holders = min(remote + at_home, ROUTING_LIMIT)  # more are refused, and need no more
        codes = CODE_BYTES[holders] if remote > 1 else 0.0
        return codes + (HOME_BYTES if at_home else 0.0)

    def on(self, max_vcpu: float) -> CostTerms:
        """The same terms with containers of at most `max_vcpu`."""
        return replace(self, max_vcpu=max_vcpu)

    def assumptions(self) -> dict[str, str]:
        """One line per assumption, with its unit, for plan.json and reports."""
        shipped = (
            "shipped default, not measured on your machine"
            if self.curve_shipped
            else ("measured by `erless profile --throughput`")
        )
        queue = "M/D/c waiting, exponential tail" if self.queueing else "excluded (paper's terms)"
        return {
            "curve": f"{self.curve} ({shipped})",
            "call overhead a": f"{self.call_s * 1e3:g} ms per call",
            "gather cost β": self._gather_text(),
            "memory without rows": f"shard {self.shard_memory_bytes / 1e9:g} GB, "
            f"gateway {self.gateway_memory_bytes / 1e9:g} GB",
            "gateway cost": f"{self.remote_call_s * 1e3:g} ms per remote call, "
            f"{self.route_s * 1e9:g} ns per remote gather",
            "partial vectors": f"{self.partial_s * 1e9:g} ns each, in the shard and in the gateway",
            "tables of rows": f"{self._routing_text()}, {self.index_bytes_per_row:g} B of index "
            "per row in each shard",
            "utilisation": f"{self.utilisation:.0%}",
            "vCPU per container": "exactly 1" if self.fixed_vcpu else f"up to {self.max_vcpu:g}",
            "queueing": queue,
        }

    def _routing_text(self) -> str:
        if not self.routing:
            return "no routing"
        return (
            f"per row of a cut table in each gateway {HOME_BYTES:.2g} B where it holds some of "
            "them, and 1, 2, 4 or 8 bits where several shards hold the others"
        )

    def _gather_text(self) -> str:
        if self.betas:
            return "measured: " + ", ".join(
                f"{curve.precision.value} {curve.seconds[0] * 1e9:.3g} … "
                f"{curve.seconds[-1] * 1e9:.3g} ns for rows of {curve.row_bytes[0]} … "
                f"{curve.row_bytes[-1]} B"
                for curve in self.betas
            )
        return (
            f"{self.gather_s * 1e9:g} ns per gather of {REFERENCE_BYTES} B, "
            f"{self.gather_fixed:.0%} of it independent of the row's bytes"
        )


PAPER_TERMS = CostTerms(name="equal containers", curve="ElasticRec terms", curve_shipped=True)
# A remote call costs the gateway 0.05 ms, and a partial vector either end 60 ns: fitted to
# benchmarks/serving.py, RM1 cut in four with 320 and with 800 partials per query. Gathers are those
# of tables far larger than the caches, where they take 25 to 40 ns.
DEFAULT_TERMS = CostTerms(
    name="best against best",
    curve="erless default",
    curve_shipped=True,
    call_s=EXCHANGE_S,
    gather_fixed=0.5,
    shard_memory_bytes=0.1e9,
    gateway_memory_bytes=0.3e9,
    remote_call_s=5e-5,
    route_s=6e-9,
    partial_s=6e-8,
    routing=True,
    index_bytes_per_row=0.25,
    hop_s=5e-4,
    utilisation=0.7,
    max_vcpu=64.0,
    fixed_vcpu=False,
    queueing=True,
)


def replicas(load: float, terms: CostTerms, minimum: int = 1) -> int:
    """Whole replicas for `load` vCPU."""
    need = load / (terms.utilisation * terms.max_vcpu)
    return max(minimum, math.ceil(need * (1 - ROUNDING) - 1e-12), 1)


def vcpu_each(load: float, count: int, terms: CostTerms) -> float:
    """vCPU of each of `count` replicas, in steps of 0.05."""
    if terms.fixed_vcpu:
        return terms.max_vcpu
    need = load / (terms.utilisation * count)
    return max(terms.least_vcpu, round(math.ceil(need / VCPU_STEP - 1e-6) * VCPU_STEP, 2))


def quantile_wait_s(service_s: float, load: float, count: int, vcpu: float, tail: float) -> float:
    """Waiting time that a share `tail` of queries exceeds, at one of `count` replicas.

    Mean wait of M/M/c by Sakasegawa (1977), halved for near-constant service, with an exponential
    tail. A replica of c vCPU serves ⌊c⌋ queries at a time.
    """
    servers = max(1, math.floor(vcpu))
    busy = min(load / (count * vcpu), 0.999)
    mean = service_s * busy ** (math.sqrt(2 * (servers + 1)) - 1) / (servers * (1 - busy)) / 2
    return float(mean * math.log(1 / tail))
