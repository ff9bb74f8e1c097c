"""Compare an imported bundle with the model that it came from, on samples that the user gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.errors import CheckpointError, QueryError
from erless.importers.bundle import BundleWriter, new_bundle
from erless.importers.options import ImportOptions
from erless.specs.model import ModelSpec
from erless.storage.tensors import TensorFile

__all__ = ["check_predictions", "checked_bundle"]

PREDICTIONS = "predictions"
TOLERANCE = 1e-5  # relative: what summation order in float32 may change
SMALLEST = 1e-3  # a smaller prediction is compared as if it were this large


@contextmanager
def checked_bundle(
    target: Path, model: ModelSpec, options: ImportOptions
) -> Iterator[BundleWriter]:
    """`new_bundle` whose bundle, finished in the block, must predict the samples of `options`.

    Raises:
        ArtifactError, StorageError: as `new_bundle`.
        CheckpointError, QueryError: as `check_predictions`.
    """
    with new_bundle(
        target, model, overwrite=options.overwrite, progress=options.progress
    ) as bundle:
        yield bundle
        if options.samples is not None:
            check_predictions(bundle.folder, options.samples)


def check_predictions(bundle: Path, samples: Path) -> float:
    """Predict `samples` with the bundle and compare with the predictions beside them.

    Args:
        samples: a query file with one more tensor, `predictions` (S,): the original's.

    Returns:
        The largest relative difference.

    Raises:
        CheckpointError: a prediction differs by more than 1e-5, relative.
        QueryError: the file has no predictions, or other tables than the model.
        ArtifactError: it is no query file.
    """
    monolith = Monolith.load(bundle)
    names = [feature.name for feature in monolith.model.lookups]
    queries = QueryFile(samples, beside=(PREDICTIONS,)).in_order_of(names)
    expected = _predictions(samples, queries.samples)
    parts = [monolith.predict(query) for query in queries]
    predictions = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    scale = np.maximum(np.abs(expected), SMALLEST)
    differences = np.abs(predictions - expected) / scale
    worst = int(np.argmax(differences))
    if not differences[worst] <= TOLERANCE:
        raise CheckpointError(
            f"{samples}: sample {worst} is predicted as {predictions[worst]:.7g}, the original "
            f"predicted {expected[worst]:.7g}: {differences[worst]:.2g} relative, at most "
            f"{TOLERANCE:g}. The bundle is not the same model"
        )
    return float(differences[worst])


def _predictions(samples: Path, count: int) -> NDArray[np.float64]:
    file = TensorFile(samples)
    if PREDICTIONS not in file.tensors:
        raise QueryError(f"{samples}: no tensor {PREDICTIONS}, the original's (S,)")
    values: NDArray[np.float64] = file.map(PREDICTIONS).astype(np.float64).reshape(-1)
    if count == 0 or values.shape != (count,):
        raise QueryError(f"{samples}: {len(values):,} predictions for {count:,} samples")
    if not np.isfinite(values).all():
        raise QueryError(f"{samples}: a prediction is not a finite number")
    return values
