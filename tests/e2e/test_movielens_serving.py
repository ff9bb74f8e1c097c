"""1,000 real queries through `tritonclient` and sharded functions: the monolith's predictions.

MovieLens 100k's own samples, a profile of its own accesses, a packed release; the weights are
random here (training takes minutes), which asks as much of the arithmetic.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from erless.dlrm.queries import Query, QueryFile, write_queries
from erless.dlrm.reference import Monolith
from erless.importers.movielens import movielens_model, read_movielens
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.model import ModelSpec
from erless.specs.plan import Tier
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.storage.stores import open_store
from erless.storage.tensors import write_tensors
from tests.bundles import write_bundle
from tests.releases import Cut, Made, make_plan
from tests.serve.functions import Fleet

QUERIES, BATCH = 1000, 20
TIERS = (
    Cut("resident", Tier.RESIDENT, 0.05),
    Cut("hot", Tier.HOT, 0.3),
    Cut("cold", Tier.COLD, 1.0),
)


def write_profile(folder: Path, model: ModelSpec, samples: Query) -> None:
    """How often the samples touch each row."""
    (folder / "counts").mkdir(parents=True)
    ends = np.cumsum(samples.lengths.sum(axis=1, dtype=np.int64))
    accesses = []
    for table, ids in zip(model.tables, np.split(samples.values, ends[:-1]), strict=True):
        found, counts = np.unique(ids, return_counts=True)
        order = np.lexsort((found, -counts))
        path = f"counts/{table.name}.safetensors"
        arrays = {"ids": found[order].astype(np.int64), "counts": counts[order].astype(np.int64)}
        entry = FileEntry(path=path, **write_tensors(folder / path, arrays)._asdict())
        accesses.append(
            TableAccess(
                table=table.name,
                rows=table.rows,
                samples=samples.batch,
                accesses=len(ids),
                touched=len(found),
                counts=entry,
            )
        )
    digest = BundleManifest.open(folder.parent / "model").digest
    Profile.create(model_digest=digest, sources=("ml-100k",), tables=tuple(accesses)).save(
        folder / MANIFEST
    )


@pytest.fixture(scope="module")
def movielens(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("movielens")
    ratings = read_movielens(shared_data)
    model = movielens_model(ratings.sizes)
    trained = os.environ.get("ERLESS_MOVIELENS_BUNDLE")  # of `erless example movielens`
    if trained:
        (folder / "model").symlink_to(Path(trained).resolve())
    else:
        write_bundle(folder / "model", model, seed=3)
    write_profile(folder / "profile", model, ratings.samples)
    plan = make_plan(folder / "model", folder / "profile", TIERS)
    plan.save(folder / "plan.json")
    queries = folder / "queries.safetensors"
    write_queries(queries, ratings.samples, [table.name for table in model.tables], BATCH)
    store = folder / "store"
    packer = Packer(
        PackInputs(folder / "model", folder / "profile", folder / "plan.json"),
        open_store(str(store), create=True),
    )
    release = packer.pack().release
    assert release is not None
    return Made(
        str(store),
        release,
        folder / "model",
        folder / "profile",
        folder / "plan.json",
        queries,
        model,
    )


def test_1000_queries_equal_the_monolith(movielens: Made, tmp_path: Path) -> None:
    monolith = Monolith.load(movielens.bundle)
    queries = QueryFile(movielens.queries)
    worst = 0.0
    with Fleet(movielens, tmp_path) as fleet:
        client = triton.InferenceServerClient(f"127.0.0.1:{fleet.gateway.port}")
        for number in range(len(queries) - QUERIES, len(queries)):  # the latest
            query = queries[number]
            inputs = []
            for name, datatype, array in (
                ("values", "INT32", query.values),
                ("lengths", "INT32", query.lengths),
                ("dense", "FP32", query.dense),
            ):
                each = triton.InferInput(name, list(array.shape), datatype)
                each.set_data_from_numpy(array)
                inputs.append(each)
            found = client.infer("movielens", inputs).as_numpy("prediction")
            wanted = monolith.predict(query)
            # atol: a sigmoid's tail turns the last bit of a logit into more than its own
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
            worst = max(worst, float(np.max(np.abs(found - wanted) / np.abs(wanted))))
        client.close()
        assert fleet.gateway.metric("erless_requests_total") == QUERIES
        assert fleet.gateway.metric("erless_fan_out_total") >= QUERIES
    print(f"max relative difference over {QUERIES} queries: {worst:.2e}")
