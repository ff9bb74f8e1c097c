"""A plan as functions of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from erless.deploy.local.functions import LocalSettings, place
from erless.specs.config import FreshnessConfig
from erless.specs.plan import Tier
from tests.deploy.desired import desired


@pytest.mark.parametrize("vcpu", [0.5, 1.0, 3.5])
def test_a_function_of_several_vcpu_is_as_many_replicas_of_one_core(
    tmp_path: Path, vcpu: float
) -> None:
    wanted = desired()
    shards = tuple(each.model_copy(update={"vcpu": vcpu}) for each in wanted.plan.shards)
    plan = wanted.plan.model_copy(update={"shards": shards})
    wanted = type(wanted)(wanted.store, wanted.release, plan)
    site = LocalSettings(cache=tmp_path)
    functions = {each.name: each for each in place(wanted, site).functions}
    planned = {each.name: each.scaling for each in shards}
    cores = {0.5: 1, 1.0: 1, 3.5: 4}[vcpu]
    for name in ("hot-0", "cold-0"):
        found, was = functions[name].scaling, planned[name]
        assert found.target == was.target / cores
        assert found.max_scale == was.max_scale * min(cores, os.cpu_count() or 1)
        assert found.min_scale == was.min_scale


def test_functions_get_memory_for_changed_rows(tmp_path: Path) -> None:
    wanted = desired(on_disk=(Tier.FROZEN,))
    fresh = LocalSettings(cache=tmp_path, freshness=FreshnessConfig(memory_share=0.5))
    before, after = (
        {each.name: each for each in place(wanted, site).functions}
        for site in (LocalSettings(cache=tmp_path), fresh)
    )
    in_memory = {
        shard.name: shard.row_bytes for shard in wanted.release.remote if shard.cache_bytes is None
    }
    in_memory["gateway"] = sum(shard.row_bytes for shard in wanted.release.resident)
    for name, function in after.items():
        given = in_memory.get(name, 0) // 2
        assert function.memory_bytes - before[name].memory_bytes == given
        assert function.env.get("ERLESS_REWRITTEN_BYTES") == (str(given) if given else None)
