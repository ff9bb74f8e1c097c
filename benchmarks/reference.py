"""The monolith against hand-written torch code for the same model, interleaved in one run.

    python -m benchmarks.reference --bundle m --output json

`ratio` is the hand-written program's CPU per query divided by the monolith's: 1 is parity.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from erless.dlrm.queries import Query, QueryFile
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import BuiltinTower


class HandWritten(nn.Module):
    """What one would write for this model alone: modules of torch, nothing checked."""

    def __init__(self, monolith: Monolith) -> None:
        super().__init__()
        tower = monolith.tower
        assert isinstance(tower, BuiltinTower)
        self.tables = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(rows, mode="sum", include_last_offset=True)
            for rows in monolith.tables
        )
        self.bottom = self._mlp(tower.bottom, nn.ReLU())
        self.top = self._mlp(tower.top, nn.Sigmoid())
        count = len(monolith.tables) + 1
        self.pairs = torch.tril_indices(count, count, offset=-1)

    @staticmethod
    def _mlp(layers: Sequence[tuple[Tensor, Tensor]], last: nn.Module) -> nn.Sequential:
        modules: list[nn.Module] = []
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            modules += [linear, nn.ReLU()]
        return nn.Sequential(*modules[:-1], last)

    def forward(self, dense: Tensor, ids: list[Tensor], offsets: list[Tensor]) -> Tensor:
        """Predict, (B,)."""
        x = self.bottom(dense)
        pooled = [t(i, o) for t, i, o in zip(self.tables, ids, offsets, strict=True)]
        vectors = torch.stack([x, *pooled], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        flat = products[:, self.pairs[0], self.pairs[1]]
        prediction: Tensor = self.top(torch.cat([x, flat], dim=1))
        return prediction.flatten()


def by_hand(model: HandWritten, query: Query) -> Tensor:
    """The same work from the same query: split by table, offsets from lengths."""
    lengths = torch.from_numpy(query.lengths)
    ids = torch.split(torch.from_numpy(query.values), lengths.sum(1).tolist())
    offsets = nn.functional.pad(lengths.cumsum(1, dtype=ids[0].dtype), (1, 0))
    with torch.inference_mode():
        prediction: Tensor = model(torch.from_numpy(query.dense), list(ids), list(offsets))
    return prediction


def cpu_ms(run: Callable[[Query], object], queries: list[Query]) -> float:
    """CPU milliseconds per query."""
    begin = time.process_time()
    for query in queries:
        run(query)
    return (time.process_time() - begin) * 1e3 / len(queries)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--output", choices=["text", "json"], default="text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    monolith = Monolith.load(arguments.bundle)
    hand = HandWritten(monolith)
    queries = list(QueryFile(arguments.bundle / "queries.safetensors"))
    worst = max(
        float((torch.from_numpy(monolith.predict(q)) - by_hand(hand, q)).abs().max())
        for q in queries
    )
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(cpu_ms(monolith.predict, queries))
        theirs.append(cpu_ms(lambda query: by_hand(hand, query), queries))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    result = {
        "monolith_cpu_ms": round(statistics.median(ours), 4),
        "hand_written_cpu_ms": round(statistics.median(theirs), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)],
        "max_abs_difference": worst,
    }
    if arguments.output == "json":
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
