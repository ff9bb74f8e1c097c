"""What precision costs in predictions: the plan's own, and each other below the resident tier.

Only the rows that the queries touch are read, encoded and decoded, exactly as pack stores them
(`erless.dlrm.quantize` works row by row), so any table size will do. Every variant then predicts
every query (`erless.pack.replay`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.auc import auc
from erless.pack.accuracy import Loss
from erless.pack.inputs import PackInputs
from erless.pack.replay import open_replay
from erless.progress import Progress, Silent
from erless.specs.model import TableSpec
from erless.specs.plan import Precision, ShardPlan, Tier

__all__ = ["AS_PLANNED", "Evaluation", "evaluate", "planned_losses"]

Floats = NDArray[np.float32]

AS_PLANNED = "as planned"
BATCH = 1024


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions at some precision against those of the fp32 bundle.

    Args:
        precision: `as planned`, or the precision of all rows below the resident tier.
        row_bytes: of all stored rows, once.
        max_error: largest |Δ prediction|.
        mean_error: mean |Δ prediction|.
        relative_error: largest |Δ prediction| ÷ |fp32 prediction|.
        auc_before, auc_after: with fp32, and so; None without labels of both kinds.
    """

    precision: str
    row_bytes: int
    max_error: float
    mean_error: float
    relative_error: float
    auc_before: float | None = None
    auc_after: float | None = None

    @property
    def auc_loss(self) -> float | None:
        """AUC given up; below 0 where it rose."""
        if self.auc_before is None or self.auc_after is None:
            return None
        return self.auc_before - self.auc_after


def evaluate(
    inputs: PackInputs, queries: Path, batch: int = BATCH, progress: Progress | None = None
) -> list[Evaluation]:
    """Predict `queries` with the plan's precisions, and with each precision below the residents.

    Args:
        inputs: bundle, profile and plan.
        queries: a query file; with labels the AUC is computed too.
        batch: samples predicted at a time.
        progress: counts the queries predicted.

    Raises:
        QueryError: the queries do not fit the model.
        ModelError: a row that a precision cannot hold.
    """
    replay = open_replay(inputs.bundle_folder, inputs.bundle, queries, batch)
    touched = [
        replace(table, shards=_shards(inputs, table.table, table.ids)) for table in replay.touched
    ]
    variants = [("", _everywhere(Precision.FP32)), *_variants()]
    shards = inputs.plan.shards
    evaluations: list[Evaluation] = []
    before = np.empty(0, np.float32)
    total = len(replay) * len(variants)
    with (progress or Silent()).step("evaluate", total, "queries") as step:
        for name, stored in variants:
            tables = [
                table.at([stored(shard, table.table.name) for shard in shards]) for table in touched
            ]
            scores = replay.predict(tables, lambda: step.advance(1))
            if not name:
                before = scores
            else:
                evaluations.append(_compare(name, inputs, stored, before, scores, replay.labels))
    return evaluations


_Stored = Callable[[ShardPlan, str], Precision]  # how a table's rows in a shard are stored


def _everywhere(precision: Precision) -> _Stored:
    return lambda shard, table: precision


def _below_residents(precision: Precision) -> _Stored:
    return lambda shard, table: (
        shard.precision_of(table) if shard.tier is Tier.RESIDENT else precision
    )


def _in_tier(tier: Tier) -> _Stored:
    return lambda shard, table: shard.precision_of(table) if shard.tier is tier else Precision.FP32


def _variants() -> Iterator[tuple[str, _Stored]]:
    """Name, and precisions."""
    yield AS_PLANNED, ShardPlan.precision_of
    for precision in Precision:
        yield precision.value, _below_residents(precision)


def _shards(inputs: PackInputs, table: TableSpec, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The shard of each id."""
    parts = []
    with tempfile.TemporaryDirectory(prefix="erless-") as scratch:
        for window in inputs.windows(table, Path(scratch)):
            span = np.searchsorted(ids, [window.begin, window.begin + len(window.routes)])
            parts.append(window.routes[ids[span[0] : span[1]] - window.begin])
    return np.concatenate(parts)


def planned_losses(
    inputs: PackInputs, queries: Path, progress: Progress | None = None
) -> dict[str, Loss]:
    """What the plan's precisions lose: `as planned`, and of each tier alone.

    Raises:
        QueryError: the queries do not fit the model.
        ModelError: a row that a precision cannot hold.
    """
    replay = open_replay(inputs.bundle_folder, inputs.bundle, queries, BATCH)
    shards = inputs.plan.shards
    tiers = [tier for tier in Tier if any(shard.tier is tier for shard in shards)]
    before = replay.predict([table.rows for table in replay.touched])
    touched = [
        replace(table, shards=_shards(inputs, table.table, table.ids)) for table in replay.touched
    ]
    variants: dict[str, _Stored] = {AS_PLANNED: ShardPlan.precision_of}
    variants |= {tier.value: _in_tier(tier) for tier in (tiers if len(tiers) > 1 else ())}
    losses = {}
    with (progress or Silent()).step("tiers", len(variants), "steps") as step:
        for name, stored in variants.items():
            rows = [
                table.at([stored(shard, table.table.name) for shard in shards]) for table in touched
            ]
            losses[name] = Loss.between(before, replay.predict(rows), replay.labels)
            step.advance(1)
    return losses


def _compare(
    name: str,
    inputs: PackInputs,
    stored: _Stored,
    before: Floats,
    after: Floats,
    labels: Floats | None,
) -> Evaluation:
    error = np.abs(after.astype(np.float64) - before)
    scale = np.maximum(np.abs(before).astype(np.float64), np.finfo(np.float32).tiny)
    alike = labels is not None and len(labels) == len(before)
    both = alike and labels is not None and 0 < np.count_nonzero(labels) < len(labels)
    return Evaluation(
        precision=name,
        row_bytes=sum(
            part.rows
            * stored(inputs.plan.shards[part.shard], part.table.name).row_bytes(part.table.dim)
            for part in inputs.slices
        ),
        max_error=float(error.max(initial=0)),
        mean_error=float(error.mean()) if len(error) else 0.0,
        relative_error=float((error / scale).max(initial=0)),
        auc_before=auc(labels, before) if both and labels is not None else None,
        auc_after=auc(labels, after) if both and labels is not None else None,
    )
