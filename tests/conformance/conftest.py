"""Two models and three releases, and every target under test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from erless.deploy.target import Deployment
from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.progress import Silent
from erless.specs.plan import Tier
from tests.conformance.harness import HARNESSES, Harness
from tests.releases import TIERS, Cut, Made, make_release

RECUT = (*TIERS[:2], Cut("cold", Tier.COLD, 0.5), Cut("frozen", Tier.FROZEN, 1.0))
TIMEOUT_S = 180.0
CLUSTER = "ERLESS_TEST_KUBECONFIG"


class Releases(NamedTuple):
    """`first` and `recut` are of one model and share a shard; `second` is of another."""

    first: Made
    recut: Made
    second: Made

    def predictions(self) -> dict[str, list[np.ndarray]]:
        """What each release must answer to each query of `first.queries`."""
        file = QueryFile(self.first.queries)
        wanted = {}
        for made in self:
            model = Monolith.load(made.bundle)
            wanted[made.release.digest] = [model.predict(each) for each in file]
        return wanted


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    folder = tmp_path_factory.mktemp("releases")
    store = str(folder / "store")
    first = make_release(folder / "one", store=store)
    recut = make_release(folder / "one", store=store, tiers=RECUT)
    second = make_release(folder / "two", store=store, seed=1)
    assert first.release.shard("hot").digest == recut.release.shard("hot").digest
    return Releases(first, recut, second)


@pytest.fixture(scope="session")
def wanted(releases: Releases) -> dict[str, list[np.ndarray]]:
    return releases.predictions()


@pytest.fixture(scope="module", params=HARNESSES)
def harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    if request.param != "local" and CLUSTER not in os.environ:
        pytest.skip(f"target {request.param} needs a cluster: {CLUSTER} is not set")
    made = HARNESSES[request.param](tmp_path_factory.mktemp(request.param))
    yield made
    made.end()


@pytest.fixture
def deployed(harness: Harness, releases: Releases) -> Deployment:
    """`releases.first` is current, whatever a test before did."""
    return harness.target.deploy(harness.desired(releases.first), Silent(), TIMEOUT_S)
