"""Features that share tables, as torchrec has them: queries over four remote shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.errors import ServeError
from erless.serve.protocol.client import QueryClient
from erless.specs.features import FeatureSpec
from erless.specs.model import CrossNet, DlrmTower, Interaction, ModelSpec, Pooling, TableSpec
from tests.releases import Made, pack_bundle_of
from tests.serve.functions import Fleet
from tests.serve.gateway.test_graph import TIERS

DIM = 8


def model(pooling: Pooling, tower: DlrmTower) -> ModelSpec:
    """`item` has three features, one of them first and one last in a query."""
    names = ("clicked", "user", "bought", "shop", "seen")
    tables = dict.fromkeys(names, "item") | {"user": "user", "shop": "shop"}
    return ModelSpec(
        name="shared",
        dense_features=5,
        tables=(
            TableSpec(name="user", rows=2000, dim=DIM, pooling=pooling),
            TableSpec(name="item", rows=3001, dim=DIM, pooling=pooling),
            TableSpec(name="shop", rows=150, dim=DIM, pooling=pooling),
        ),
        features=tuple(
            FeatureSpec(name=name, table=tables[name], pooling=pooling) for name in names
        ),
        tower=tower,
    )


DOT = DlrmTower(bottom_mlp=(16, DIM), top_mlp=(16, 1), interaction=Interaction.DOT_UPPER)
DCN = DlrmTower(
    bottom_mlp=(16, DIM),
    top_mlp=(16, 1),
    interaction=Interaction.DCN,
    cross=CrossNet(layers=2, rank=4),
)


def query(spec: ModelSpec, batch: int, rng: np.random.Generator) -> Query:
    """Bags of 0 to 6 ids for each feature."""
    lengths = rng.integers(0, 7, (len(spec.features), batch)).astype(np.int32)
    values = [
        rng.integers(0, spec.table(feature.table).rows, sizes.sum())
        for feature, sizes in zip(spec.features, lengths, strict=True)
    ]
    ids = np.concatenate(values)
    weights = rng.random(len(ids), np.float32) if spec.has_weights else None
    dense = rng.standard_normal((batch, spec.dense_features), np.float32)
    return Query(dense, ids, lengths, weights)


def pack(folder: Path, spec: ModelSpec) -> Made:
    """A release of five shards, four of them remote."""
    return pack_bundle_of(folder, spec, TIERS)


@pytest.mark.parametrize(
    ("pooling", "tower", "queries"),
    [(Pooling.SUM, DCN, 300), (Pooling.MEAN, DOT, 100), (Pooling.WEIGHTED_SUM, DOT, 100)],
    ids=["sum-dcn", "mean", "weighted"],
)
def test_answers_equal_the_monolith(
    tmp_path: Path, pooling: Pooling, tower: DlrmTower, queries: int
) -> None:
    spec = model(pooling, tower)
    made = pack(tmp_path, spec)
    monolith, rng = Monolith.load(made.bundle), np.random.default_rng(5)
    with Fleet(made, tmp_path) as fleet, QueryClient(fleet.gateway.url) as client:
        assert len(fleet.shards) == 4
        for number in range(queries):
            asked = query(spec, 1 + number % 4, rng)
            found = client.predict(asked).predictions
            # rtol: sums over shards are added in another order, and the cross layers multiply what
            # that changes: 1.2e-5 in one of 750 predictions, on some processors
            # atol: a sigmoid's tail turns the last bit of a logit into more than its own
            np.testing.assert_allclose(found, monolith.predict(asked), rtol=3e-5, atol=5e-7)
        bad = query(spec, 2, rng)
        while not bad.lengths[-1, -1]:
            bad = query(spec, 2, rng)
        bad.values[-1] = 3001
        with pytest.raises(ServeError, match="feature seen, sample 1: row id 3001 at"):
            client.predict(bad)
