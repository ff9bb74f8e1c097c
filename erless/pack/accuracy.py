"""What each precision costs in predictions before there is a plan: of all rows, and of one table.

As in `evaluate`, only the rows that the queries touch are read, encoded and decoded. With labels
the loss is AUC; without, the mean change of a prediction over the mean prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.auc import auc
from erless.pack.replay import open_replay
from erless.progress import Progress, Silent
from erless.specs.bundle import BundleManifest
from erless.specs.plan import Precision

__all__ = ["AccuracyBudget", "PrecisionLoss", "measure_precisions"]

Floats = NDArray[np.float32]
BATCH = 1024


@dataclass(frozen=True, slots=True)
class AccuracyBudget:
    """The most that may be lost: AUC where there are labels, else relative error."""

    auc_loss: float
    relative_error: float


@dataclass(frozen=True, slots=True)
class PrecisionLoss:
    """What predictions lose with rows at `precision`.

    Args:
        precision: of these rows, the others being fp32.
        table: whose rows; empty for all tables.
        relative_error: mean |Δ prediction| ÷ mean |fp32 prediction|.
        auc_loss: AUC given up, below 0 where it rose; None without labels of both kinds.
    """

    precision: Precision
    table: str
    relative_error: float
    auc_loss: float | None

    def within(self, budget: AccuracyBudget) -> bool:
        """Whether it keeps to the budget."""
        if self.auc_loss is None:
            return self.relative_error <= budget.relative_error
        return self.auc_loss <= budget.auc_loss

    def __str__(self) -> str:
        subject = self.table or "all rows"
        error = f"predictions move by {self.relative_error:.2%}"
        if self.auc_loss is None:
            return f"{subject} in {self.precision}: {error} (no labels to compute AUC with)"
        change = "loses" if self.auc_loss >= 0 else "gains"
        return f"{subject} in {self.precision}: {change} {abs(self.auc_loss):.6f} of AUC, {error}"


def measure_precisions(
    bundle_folder: Path,
    queries: Path,
    precisions: Sequence[Precision],
    budget: AccuracyBudget,
    progress: Progress | None = None,
) -> list[PrecisionLoss]:
    """The losses of all rows at each precision, and of each table alone where that is within.

    Args:
        bundle_folder: the model.
        queries: a query file, with or without labels.
        precisions: to measure; fp32 loses nothing and is left out.
        budget: tables are measured one by one at the precisions that keep to it.
        progress: counts the variants predicted.

    Raises:
        ArtifactError: the bundle is missing or damaged.
        QueryError: the queries do not fit the model.
        ModelError: a row that a precision cannot hold.
    """
    bundle = BundleManifest.open(bundle_folder)
    names = [table.name for table in bundle.model.tables]
    replay = open_replay(bundle_folder, bundle, queries, BATCH)
    exact = [table.rows for table in replay.touched]
    before, labels = replay.predict(exact), replay.labels
    lossy = [precision for precision in precisions if precision is not Precision.FP32]
    losses: list[PrecisionLoss] = []
    with (progress or Silent()).step("precisions", len(lossy), "steps") as step:
        for precision in lossy:
            rows = [table.at([precision]) for table in replay.touched]
            whole = _loss(precision, "", before, replay.predict(rows), labels)
            losses.append(whole)
            for number, name in enumerate(names if whole.within(budget) else ()):
                tables = [*exact[:number], rows[number], *exact[number + 1 :]]
                losses.append(_loss(precision, name, before, replay.predict(tables), labels))
            step.advance(1)
    return losses


def _loss(
    precision: Precision, table: str, before: Floats, after: Floats, labels: Floats | None
) -> PrecisionLoss:
    moved = float(np.abs(after.astype(np.float64) - before).mean()) if len(before) else 0.0
    scale = float(np.abs(before).mean()) if len(before) else 0.0
    relative = moved / scale if scale else float(moved > 0)
    if (
        labels is None
        or len(labels) != len(before)
        or not 0 < np.count_nonzero(labels) < len(labels)
    ):
        return PrecisionLoss(precision, table, relative, None)
    return PrecisionLoss(precision, table, relative, auc(labels, before) - auc(labels, after))
