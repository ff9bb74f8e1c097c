"""Serve a bundle by a gateway and four remote shards, to compare it with another library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.serve.protocol.client import QueryClient
from erless.specs.bundle import BundleManifest
from erless.specs.plan import Tier
from erless.storage.stores import open_store
from tests.releases import Cut, Made, make_inputs, make_plan
from tests.serve.functions import Fleet

SHARDS = 4
TOLERANCE = 1e-5
CUTS = (
    Cut("resident", Tier.RESIDENT, 0.02),
    Cut("hot", Tier.HOT, 0.2),
    Cut("warm", Tier.WARM, 0.4),
    Cut("cool", Tier.COLD, 0.7),
    Cut("cold", Tier.COLD, 1.0),
)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[QueryClient]:
    """A client of the bundle `folder/model`, of whose tables every shard has a part."""
    spec = BundleManifest.open(folder / "model").model
    bundle, profile = make_inputs(folder, spec)
    plan = folder / "plan.json"
    make_plan(bundle, profile, CUTS).save(plan)
    store = open_store(str(folder / "store"), create=True)
    release = Packer(PackInputs(bundle, profile, plan), store).pack().release
    assert release is not None
    made = Made(str(folder / "store"), release, bundle, profile, plan, plan, spec)
    with Fleet(made, folder) as fleet, QueryClient(fleet.gateway.url) as client:
        assert len(fleet.shards) == SHARDS, sorted(fleet.shards)
        yield client
