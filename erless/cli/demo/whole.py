"""The whole model behind the same wire and traffic: how many processes of it this machine needs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from erless.cli.demo.inputs import SLA_MS, Prepared
from erless.cli.demo.traffic import Answers, arrivals, cpu_per_query, open_loop
from erless.observe.loadtest.monolith import MonolithServer

__all__ = ["WholeModel", "measure_whole", "p95_ms"]


@dataclass(frozen=True)
class WholeModel:
    """Processes that each hold the whole model, under the spike.

    memory_bytes: PSS of all of them, at its end; alone_bytes: of one by itself (several on one
    machine share the pages of its tables). cpu_ms: of one query, one at a time. p95_ms: of
    the spike, a query that failed counting as late; `within` whether that is the SLA.
    """

    processes: int
    memory_bytes: int
    alone_bytes: int
    cpu_ms: float
    p95_ms: float

    @property
    def within(self) -> bool:
        """Whether they meet the SLA."""
        return self.p95_ms <= SLA_MS


def measure_whole(prepared: Prepared, qps: float, seconds: float) -> WholeModel:
    """The fewest processes that answer `qps` queries/s within the SLA, at most one per CPU.

    Each number is tried for `seconds`, every process getting its share of the queries.

    Raises:
        LoadTestError: one did not get ready.
    """
    due = arrivals([(qps, seconds)])
    with ExitStack() as running:
        servers = [running.enter_context(MonolithServer(prepared.bundle))]
        pids = [servers[0].pid]
        alone = 0
        cpu_ms, _, _ = cpu_per_query(servers[0].url, prepared, lambda: pids)
        while True:
            urls = [server.url for server in servers]
            answers = open_loop(urls, prepared.queries, prepared.expected, due)
            memory = sum(server.probe()[1] for server in servers)
            alone = alone or memory
            measured = WholeModel(len(servers), memory, alone, cpu_ms, p95_ms(answers))
            if measured.within or len(servers) >= (os.cpu_count() or 1):
                return measured
            servers.append(running.enter_context(MonolithServer(prepared.bundle)))


def p95_ms(answers: Answers) -> float:
    """Of all queries, those that failed taking for ever."""
    late = np.nan_to_num(np.array(answers.latency_s), nan=np.inf)
    return float(np.quantile(late, 0.95, method="higher")) * 1e3 if len(late) else 0.0
