"""Train the ranker of histories, and write it by `erless.export` as a user would."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from erless.dlrm.auc import auc
from erless.dlrm.graph_queries import write_graph_queries
from erless.errors import ArtifactError
from erless.importers.graph.export import export
from erless.importers.sequence.histories import LENGTH, STARS, Histories, read_histories
from erless.importers.sequence.ranker import HistoryRanker
from erless.importers.synthetic import QUERIES
from erless.importers.training import Trained
from erless.progress import Progress, Silent

__all__ = ["ACCESS_LOG", "make_sequence"]

ACCESS_LOG = "access.safetensors"
BATCH = 256
EPOCHS = 3
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
STARS_WEIGHT = 0.3  # of the second output's loss
VALIDATION_SHARE = 0.1  # of the training ratings, the latest; it chooses the epoch
QUERY_BATCH = 32
SMALL_ROWS = 100  # tables of positions and stars stay in the tower, films do not
Floats = NDArray[np.float32]


def make_sequence(
    data: Path,
    target: Path,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train on the files in `data`; write bundle, held-out queries and the log of the training.

    The epoch is chosen on the last tenth of the training ratings; the AUC returned is of the first
    output on held-out ratings, which training never saw.

    Raises:
        CheckpointError: the data is missing or malformed.
        ArtifactError: `target` exists and may not be replaced.
    """
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target} exists already")
    samples = read_histories(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        best = _train(samples, epochs, progress or Silent())
    held_out = slice(samples.train, None)
    labels = samples.labels
    manifest = export(
        best.model,
        _tensors(samples, np.arange(QUERY_BATCH)),
        target,
        small_rows=SMALL_ROWS,
        name="sequence",
        overwrite=overwrite,
    )
    write_graph_queries(target / QUERIES, samples.part(held_out), QUERY_BATCH, labels[held_out])
    write_graph_queries(target / ACCESS_LOG, samples.part(slice(samples.train)), QUERY_BATCH)
    return Trained(
        manifest=manifest,
        auc=auc(labels[held_out], _likes(best.model, samples, held_out)),
        validation_auc=best.validation_auc,
        epochs=best.epoch,
        train_samples=samples.train,
        held_out_samples=len(labels) - samples.train,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Best:
    model: HistoryRanker
    validation_auc: float
    epoch: int


def _train(samples: Histories, epochs: int, progress: Progress) -> _Best:
    """AdamW on both outputs, one pass over shuffled batches per epoch; keeps the best epoch."""
    model = HistoryRanker(samples.items, samples.genres, STARS + 1, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    fit = int(samples.train * (1 - VALIDATION_SHARE))
    validation = slice(fit, samples.train)
    labels, stars = torch.from_numpy(samples.labels), torch.from_numpy(samples.stars)
    best = _Best(model, 0.0, 0)
    with progress.step("train", epochs * fit, "samples") as step:
        for epoch in range(1, epochs + 1):
            model.train()
            for places in torch.randperm(fit).split(BATCH):  # type: ignore[no-untyped-call]
                found = model(**_tensors(samples, places.numpy()))
                loss = F.binary_cross_entropy(found["like"], labels[places])
                loss = loss + STARS_WEIGHT * F.mse_loss(found["stars"], stars[places])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step.advance(len(places))
            score = auc(samples.labels[validation], _likes(model, samples, validation))
            if score > best.validation_auc:
                best = _Best(copy.deepcopy(model).eval(), score, epoch)
    return best


def _likes(model: HistoryRanker, samples: Histories, part: slice) -> Floats:
    """The first output for some samples."""
    places = np.arange(len(samples.stars))[part]
    model.eval()
    with torch.inference_mode():
        found = [
            model(**_tensors(samples, places[begin : begin + 4 * BATCH]))["like"].numpy()
            for begin in range(0, len(places), 4 * BATCH)
        ]
    return np.concatenate(found)


def _tensors(samples: Histories, places: NDArray[np.int64]) -> dict[str, Tensor]:
    """The inputs of some samples."""
    return {name: torch.from_numpy(array) for name, array in samples.part(places).items()}
