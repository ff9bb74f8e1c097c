"""Train the MovieLens DLRM with the tower and the pooling that serve it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from erless.dlrm.auc import auc
from erless.dlrm.queries import Query, write_queries
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import builtin_tower, tower_layers
from erless.importers.accesslog import write_access_log
from erless.importers.bundle import new_bundle
from erless.importers.movielens import Ratings, movielens_model, read_movielens
from erless.importers.synthetic import ACCESS_LOG, QUERIES
from erless.progress import Progress, Silent
from erless.specs.bundle import BundleManifest

__all__ = ["Trained", "labels_of", "make_movielens", "pick_samples", "sample_offsets"]

BATCH = 256
EPOCHS = 4
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 1.0  # held-out AUC peaks early: 100,000 ratings invite memorising users
VALIDATION_SHARE = 0.1  # of the training ratings, the latest; it chooses the epoch
QUERY_BATCH = 32


@dataclass(frozen=True, slots=True)
class Trained:
    """The bundle that training wrote, and how good it is."""

    manifest: BundleManifest
    auc: float
    validation_auc: float
    epochs: int
    train_samples: int
    held_out_samples: int


def make_movielens(
    data: Path,
    target: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train on the files in `data`; write bundle, held-out queries and the log of the training.

    The epoch is chosen on the last tenth of the training ratings; the AUC returned is of the
    held-out ratings, which training never saw.

    Raises:
        CheckpointError: the data is missing or malformed.
        ArtifactError: `target` exists and may not be replaced.
    """
    ratings = read_movielens(data)
    model = movielens_model(ratings.sizes)
    with new_bundle(target, model, overwrite=overwrite, progress=progress) as bundle:
        best = _train(ratings, seed, progress or Silent())
        for table, rows in zip(model.tables, best.tables, strict=True):
            bundle.add_table(table, [rows.numpy()])
        bundle.add_tower({name: tensor.numpy() for name, tensor in best.tower.items()})
        names = [table.name for table in model.tables]
        held_out = _samples(ratings.samples, ratings.train, ratings.samples.batch)
        write_queries(bundle.folder / QUERIES, held_out, names, QUERY_BATCH)
        log = (
            _samples(ratings.samples, begin, min(begin + 8192, ratings.train))
            for begin in range(0, ratings.train, 8192)
        )
        write_access_log(bundle.folder / ACCESS_LOG, names, log)
        manifest = bundle.finish()
    monolith = Monolith(model, best.tables, builtin_tower(model, best.tower))
    return Trained(
        manifest=manifest,
        auc=auc(labels_of(held_out), monolith.predict(held_out)),
        validation_auc=best.validation_auc,
        epochs=best.epochs,
        train_samples=ratings.train,
        held_out_samples=held_out.batch,
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    tables: list[torch.Tensor]
    tower: dict[str, torch.Tensor]
    validation_auc: float
    epochs: int


def _train(ratings: Ratings, seed: int, progress: Progress) -> _Weights:
    """Adam on the logits, one pass over shuffled batches per epoch; keeps the best epoch."""
    generator = torch.Generator().manual_seed(seed)
    model = movielens_model(ratings.sizes, sigmoid=False)
    tables = [
        (torch.randn(t.rows, t.dim, generator=generator) * 0.05).requires_grad_()
        for t in model.tables
    ]
    tower = {
        name: (
            torch.randn(shape, generator=generator) * (2 / shape[-1]) ** 0.5
            if len(shape) == 2
            else torch.zeros(shape)
        ).requires_grad_()
        for name, shape in tower_layers(model).items()
    }
    monolith = Monolith(model, tables, builtin_tower(model, tower))
    optimizer = torch.optim.AdamW(
        [*tables, *tower.values()], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    fit = int(ratings.train * (1 - VALIDATION_SHARE))
    validation = _samples(ratings.samples, fit, ratings.train)
    best = _Weights([], {}, 0.0, 0)
    offsets = sample_offsets(ratings.samples)
    with progress.step("train", EPOCHS * fit, "samples") as step:
        for epoch in range(1, EPOCHS + 1):
            order = torch.randperm(fit, generator=generator).numpy()
            for begin in range(0, fit, BATCH):
                picks = order[begin : begin + BATCH]
                batch = pick_samples(ratings.samples, offsets, picks)
                logits = monolith.tower(torch.from_numpy(batch.dense), monolith.pool(batch))
                loss = F.binary_cross_entropy_with_logits(
                    logits, torch.from_numpy(labels_of(batch))
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step.advance(len(picks))
            score = auc(labels_of(validation), monolith.predict(validation))
            if score > best.validation_auc:
                best = _Weights(
                    [rows.detach().clone() for rows in tables],
                    {name: tensor.detach().clone() for name, tensor in tower.items()},
                    score,
                    epoch,
                )
    return best


def labels_of(query: Query) -> NDArray[np.float32]:
    """The labels (B,) of `query`. Raises ValueError where it has none."""
    if query.labels is None:
        raise ValueError("the samples have no labels")
    return query.labels


def sample_offsets(samples: Query) -> NDArray[np.int64]:
    """(T·S + 1,): where each bag begins in `values`, and where the last ends."""
    offsets = np.zeros(samples.lengths.size + 1, np.int64)
    np.cumsum(samples.lengths, out=offsets[1:], dtype=np.int64)
    return offsets


def _samples(samples: Query, begin: int, end: int) -> Query:
    """Samples `begin` … `end - 1`, in order."""
    return pick_samples(samples, sample_offsets(samples), np.arange(begin, end))


def pick_samples(samples: Query, offsets: NDArray[np.int64], picks: NDArray[np.int64]) -> Query:
    """The samples `picks` as one query; `offsets` are `sample_offsets` of all."""
    tables, batch = samples.lengths.shape
    bags = (np.arange(tables)[:, None] * batch + picks).reshape(-1)
    lengths = samples.lengths[:, picks]
    sizes = lengths.reshape(-1).astype(np.int64)
    ends = np.cumsum(sizes)
    index = np.repeat(offsets[bags] - (ends - sizes), sizes) + np.arange(
        ends[-1] if len(ends) else 0
    )
    return Query(
        dense=samples.dense[picks],
        values=samples.values[index],
        lengths=np.ascontiguousarray(lengths),
        labels=None if samples.labels is None else samples.labels[picks],
    )
