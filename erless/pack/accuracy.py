"""What precisions cost in predictions: of all rows, of one table, and of each tier of a plan.

As in `evaluate`, only the rows that the queries touch are read, encoded and decoded. With labels
the loss is AUC; without, the mean change of a prediction over the mean prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.auc import auc
from erless.pack.replay import Replay, open_replay
from erless.progress import Progress, Silent
from erless.specs.bundle import BundleManifest
from erless.specs.plan import Precision

__all__ = ["AccuracyBudget", "Loss", "MeasuredPrecisions", "PrecisionLoss", "measure_precisions"]

Floats = NDArray[np.float32]
BATCH = 1024


@dataclass(frozen=True, slots=True)
class AccuracyBudget:
    """The most that may be lost: AUC where there are labels, else relative error."""

    auc_loss: float
    relative_error: float

    def __str__(self) -> str:
        return f"{self.auc_loss:g} of AUC, or {self.relative_error:.2%} without labels"


@dataclass(frozen=True)
class Loss:
    """What predictions lose.

    Args:
        relative_error: mean |Δ prediction| ÷ mean |fp32 prediction|.
        auc_loss: AUC given up, below 0 where it rose; None without labels of both kinds.
    """

    relative_error: float
    auc_loss: float | None

    @classmethod
    def between(cls, before: Floats, after: Floats, labels: Floats | None) -> Loss:
        """Of predictions `after` against `before`; labels count where there are both kinds."""
        moved = float(np.abs(after.astype(np.float64) - before).mean()) if len(before) else 0.0
        scale = float(np.abs(before).mean()) if len(before) else 0.0
        relative = moved / scale if scale else float(moved > 0)
        if (
            labels is None
            or len(labels) != len(before)
            or not 0 < np.count_nonzero(labels) < len(labels)
        ):
            return cls(relative, None)
        return cls(relative, auc(labels, before) - auc(labels, after))

    def within(self, budget: AccuracyBudget) -> bool:
        """Whether it keeps to the budget."""
        if self.auc_loss is None:
            return self.relative_error <= budget.relative_error
        return self.auc_loss <= budget.auc_loss

    @property
    def size(self) -> float:
        """What is judged: AUC, or the relative error where there is none."""
        return self.relative_error if self.auc_loss is None else max(0.0, self.auc_loss)

    def __str__(self) -> str:
        error = f"predictions move by {self.relative_error:.2%}"
        if self.auc_loss is None:
            return f"{error} (no labels to compute AUC with)"
        change = "loses" if self.auc_loss >= 0 else "gains"
        return f"{change} {abs(self.auc_loss):.6f} of AUC, {error}"


@dataclass(frozen=True)
class PrecisionLoss:
    """What predictions lose with rows at `precision`.

    Args:
        precision: of these rows, the others being fp32.
        table: whose rows; empty for all tables.
        loss: what that costs.
    """

    precision: Precision
    table: str
    loss: Loss

    def __str__(self) -> str:
        return f"{self.table or 'all rows'} in {self.precision}: {self.loss}"


@dataclass(frozen=True)
class MeasuredPrecisions:
    """What each precision loses, and the least exact one that each table may have.

    Args:
        budget: what may be lost.
        losses: of all rows at each precision, then of each table alone.
        floors: by table, all of them together keep to the budget.
        together: what they lose together; None where all stay fp32.
    """

    budget: AccuracyBudget
    losses: tuple[PrecisionLoss, ...]
    floors: dict[str, Precision] = field(default_factory=dict)
    together: Loss | None = None

    @property
    def allowed(self) -> tuple[Precision, ...]:
        """Precisions below fp32 that at least one table may have."""
        used = set(self.floors.values())
        return tuple(kind for kind in Precision if kind in used and kind is not Precision.FP32)

    def notes(self) -> list[str]:
        """What all rows lose at each precision, and each table at the one that it may have."""
        lines = [
            f"{each}{'' if each.loss.within(self.budget) else ': over the budget'}"
            for each in self.losses
            if not each.table
        ]
        lines += [
            str(each) for each in self.losses if self.floors.get(each.table) is each.precision
        ]
        if not self.allowed:
            return [
                *lines,
                f"no precision below fp32 keeps to the budget ({self.budget}): rows stay fp32",
            ]
        if self.together is not None and len(set(self.floors.values())) > 1:
            kinds = ", ".join(f"{name} {kind}" for name, kind in self.floors.items())
            lines.append(f"tables differ in what they bear ({kinds}): all together {self.together}")
        return lines


def measure_precisions(
    bundle_folder: Path,
    queries: Path,
    precisions: Sequence[Precision],
    budget: AccuracyBudget,
    progress: Progress | None = None,
) -> MeasuredPrecisions:
    """The losses of all rows and of each table alone, and what each table may have.

    Where all rows at a precision are over the budget, the tables that lose least for the bytes
    that they save have it as long as all together keep to the budget.

    Args:
        bundle_folder: the model.
        queries: a query file, with or without labels.
        precisions: to measure; fp32 loses nothing and is left out.
        budget: what may be lost.
        progress: counts the precisions measured.

    Raises:
        ArtifactError: the bundle is missing or damaged.
        QueryError: the queries do not fit the model.
        ModelError: a row that a precision cannot hold.
    """
    bundle = BundleManifest.open(bundle_folder)
    replay = open_replay(bundle_folder, bundle, queries, BATCH)
    exact = [table.rows for table in replay.touched]
    trial = _Trial(replay, exact, replay.predict(exact))
    lossy = [kind for kind in Precision if kind in precisions and kind is not Precision.FP32]
    losses: list[PrecisionLoss] = []
    together = None
    with (progress or Silent()).step("precisions", len(lossy), "steps") as step:
        for precision in lossy:
            rows = [table.at([precision]) for table in replay.touched]
            whole = trial.loss(dict(enumerate(rows)))
            alone = [trial.loss({number: part}) for number, part in enumerate(rows)]
            losses.append(PrecisionLoss(precision, "", whole))
            losses += [
                PrecisionLoss(precision, table.table.name, loss)
                for table, loss in zip(replay.touched, alone, strict=True)
            ]
            order = range(len(rows)) if whole.within(budget) else trial.cheapest_first(alone)
            kept = trial.lower(precision, rows, list(order), budget)
            together = kept or together
            step.advance(1)
    return MeasuredPrecisions(budget, tuple(losses), trial.floors, together)


class _Trial:
    """Tables lowered step by step, as long as predictions keep to the budget."""

    def __init__(self, replay: Replay, exact: Sequence[Floats], before: Floats) -> None:
        self.floors = {table.table.name: Precision.FP32 for table in replay.touched}
        self._replay, self._exact, self._before = replay, list(exact), before
        self._lowered = list(exact)

    def loss(self, changed: dict[int, Floats], below: Sequence[Floats] | None = None) -> Loss:
        """With these rows of some tables, the others as in `below`, or exact."""
        tables = list(below or self._exact)
        for number, rows in changed.items():
            tables[number] = rows
        return Loss.between(self._before, self._replay.predict(tables), self._replay.labels)

    def cheapest_first(self, alone: Sequence[Loss]) -> list[int]:
        """Tables by what they lose alone for each byte of their rows."""
        size = [table.table.rows * table.table.dim for table in self._replay.touched]
        return sorted(range(len(alone)), key=lambda number: alone[number].size / size[number])

    def lower(
        self,
        precision: Precision,
        rows: Sequence[Floats],
        order: Sequence[int],
        budget: AccuracyBudget,
    ) -> Loss | None:
        """Lower the longest run of `order` within the budget; what all then lose, or None.

        Found by bisection: a longer run is taken to lose more.
        """
        best: Loss | None = None
        fits, over = 0, len(order) + 1
        count = len(order)
        while over - fits > 1:
            run = {number: rows[number] for number in order[:count]}
            loss = self.loss(run, self._lowered)
            if loss.within(budget):
                fits, best = count, loss
            else:
                over = count
            count = (fits + over) // 2
        for number in order[:fits]:
            self._lowered[number] = rows[number]
            self.floors[self._replay.touched[number].table.name] = precision
        return best
