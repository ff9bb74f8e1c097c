"""`erless example rm1|rm2|rm3|dlrmv2`: reference workloads at any scale, with seeded weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.layers import tower_layers
from erless.dlrm.queries import Query, write_queries
from erless.dlrm.workload import RowOrder, Workload
from erless.importers.accesslog import write_access_log, write_counts
from erless.importers.bundle import CHUNK_BYTES, new_bundle
from erless.progress import Progress, Silent, Step
from erless.specs.bundle import BundleManifest
from erless.specs.model import ModelSpec, TableSpec

__all__ = ["ACCESS_LOG", "QUERIES", "make_example", "queries_of"]

ACCESS_LOG = "access.parquet"
QUERIES = "queries.safetensors"
LOG_BLOCK = 512  # samples per parquet row group

# Independent random streams of one seed
_ROWS, _TOWER, _ORDER, _QUERIES, _LOG = range(5)


def make_example(
    workload: Workload,
    target: Path,
    *,
    queries: int = 64,
    log_samples: int = 8192,
    seed: int = 0,
    counted: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleManifest:
    """Write the workload's bundle, `queries` queries and an access log of `log_samples` samples.

    The same arguments give the same bytes. With `counted` the log holds how often each row was
    accessed, as a warehouse sums it up, instead of each sample's ids: it may cover any number.

    Raises:
        ArtifactError: `target` exists and may not be replaced.
        StorageError: the disk refused.
    """
    model = workload.model()
    names = [table.name for table in model.tables]
    with new_bundle(target, model, overwrite=overwrite, progress=progress) as bundle:
        for index, table in enumerate(model.tables):
            pooling = workload.table_sizes[index][1]
            bundle.add_table(table, _rows(table, index, pooling, seed))
        bundle.add_tower(_tower(model, seed))
        held_out = queries_of(workload, queries * workload.batch, seed=seed, stream=_QUERIES)
        write_queries(bundle.folder / QUERIES, held_out, names, workload.batch)
        with (progress or Silent()).step("access log", log_samples, "samples") as step:
            if counted:
                counts = _counts(workload, log_samples, seed)
                write_counts(bundle.folder / ACCESS_LOG, counts, log_samples)
            else:
                log = _log(workload, log_samples, seed, step)
                write_access_log(bundle.folder / ACCESS_LOG, names, log)
        return bundle.finish()


def queries_of(
    workload: Workload, samples: int, *, seed: int = 0, stream: int = _QUERIES, block: int = 0
) -> Query:
    """`samples` samples of the workload's traffic as one query, without labels.

    Args:
        seed: of the workload; the order of its rows depends on it too.
        stream, block: samples of another stream or block are independent of these.
    """
    generator = np.random.default_rng([seed, stream, block])
    model = workload.model()
    id_type = np.int32 if max(table.rows for table in model.tables) < 2**31 else np.int64
    ids: list[NDArray[Any]] = []
    for index, (table, (_, pooling)) in enumerate(
        zip(model.tables, workload.table_sizes, strict=True)
    ):
        order = _order(table, index, seed)
        ranks = workload.traffic(table.rows).sample(generator, samples * pooling)
        ids.append(order.ids(ranks).astype(id_type))
    poolings = np.array([pooling for _, pooling in workload.table_sizes], np.int32)
    return Query(
        dense=generator.standard_normal((samples, model.dense_features), np.float32),
        values=np.concatenate(ids),
        lengths=np.repeat(poolings[:, None], samples, axis=1),
    )


def _log(workload: Workload, samples: int, seed: int, step: Step) -> Iterator[Query]:
    for block, begin in enumerate(range(0, samples, LOG_BLOCK)):
        size = min(LOG_BLOCK, samples - begin)
        query = queries_of(workload, size, seed=seed, stream=_LOG, block=block)
        yield dataclasses.replace(query, dense=query.dense[:, :0])
        step.advance(size)


def _order(table: TableSpec, index: int, seed: int) -> RowOrder:
    """Which row has which rank: by the seed alone, alike in log and queries."""
    return RowOrder.seeded(table.rows, np.random.default_rng([seed, _ORDER, index]))


def _counts(
    workload: Workload, samples: int, seed: int
) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
    """Table by table the ids that were accessed and how often: Poisson, as of so many samples."""
    for index, table in enumerate(workload.model().tables):
        law = workload.traffic(table.rows)
        expected = np.diff(law.cdf(np.arange(law.rows + 1, dtype=np.float64)))
        generator = np.random.default_rng([seed, _LOG, index])
        counts = generator.poisson(expected * samples * workload.table_sizes[index][1])
        ranks = np.flatnonzero(counts)
        yield table.name, _order(table, index, seed).ids(ranks), counts[ranks]


def _rows(table: TableSpec, index: int, pooling: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Normal rows, scaled so that a dot product of two pooled vectors is about 1.

    Under a power law one row may take half a bag, so pooled vectors grow like the pooling factor.
    """
    scale = np.float32(2 / (pooling * table.dim**0.25))
    step = max(1, CHUNK_BYTES // table.row_bytes)
    for chunk, begin in enumerate(range(0, table.rows, step)):
        generator = np.random.default_rng([seed, _ROWS, index, chunk])
        size = min(step, table.rows - begin)
        yield generator.standard_normal((size, table.dim), np.float32) * scale


def _tower(model: ModelSpec, seed: int) -> dict[str, NDArray[np.float32]]:
    """He-initialised layers; each unit's weights sum to zero, so that no logit drowns the rest."""
    generator = np.random.default_rng([seed, _TOWER])
    tensors = {}
    for name, shape in tower_layers(model).items():
        scale = (2 / shape[1]) ** 0.5 if len(shape) == 2 else 0.01
        tensor = generator.standard_normal(shape, np.float32) * np.float32(scale)
        tensors[name] = tensor - tensor.mean(axis=-1, keepdims=True)
    return tensors
