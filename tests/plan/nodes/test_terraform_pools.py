"""`erless plan --nodes-from`: from a plan to the sizes of Terraform's pools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.errors import ArtifactError, InfeasibleError, PlanError
from erless.plan.nodes.prices import read_prices
from erless.plan.nodes.terraform_pools import (
    DEFAULT,
    WRITTEN,
    Pool,
    limit_prices,
    read_pools,
    size_pools,
    write_pools,
)
from erless.specs.plan import (
    DensePlan,
    DiskPlan,
    GatewayPlan,
    Plan,
    RankRange,
    Scaling,
    ShardPlan,
    Tier,
)
from tests.conftest import Cli

GIB = 1 << 30
PRICES = read_prices()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "variables.tf").write_text('variable "planned_pools" {\n  default = {}\n}\n')
    return tmp_path


def shard(tier: Tier, gib: float, vcpu: float, least: int, usual: int, most: int) -> ShardPlan:
    return ShardPlan(
        name=f"{tier.value}-0",
        tier=tier,
        slices=(RankRange(table="t", start=0, stop=1),),
        memory_bytes=int(gib * GIB),
        vcpu=vcpu,
        replicas=usual,
        scaling=Scaling(min_scale=least, max_scale=most),
    )


def plan_of(*shards: ShardPlan, gateways: int = 1) -> Plan:
    numbered = tuple(
        shard.model_copy(update={"name": f"{shard.tier.value}-{number}"})
        for number, shard in enumerate(shards)
    )
    return Plan.create(
        model_digest="m",
        profile_digest="p",
        policy="joint",
        shards=numbered,
        gateway=GatewayPlan(
            vcpu=1.0,
            memory_bytes=GIB,
            replicas=gateways,
            scaling=Scaling(min_scale=1, max_scale=2 * gateways),
        ),
    )


def test_rows_on_disks_get_nodes_with_local_disks_or_an_error(folder: Path) -> None:
    disk = DiskPlan(cache_bytes=GIB, size_bytes=300 * GIB, reserved_iops=30_000.0)
    on_disk = shard(Tier.COLD, 2, 1, least=1, usual=1, most=1).model_copy(update={"disk": disk})
    plan = plan_of(on_disk)
    with pytest.raises(PlanError, match="pool cold serves the role cold.*local_nvme = true"):
        size_pools(plan, PRICES, DEFAULT)
    pools = {"hot": {"roles": ["gateway"]}, "cold": {"roles": ["cold"], "local_nvme": True}}
    (folder / "pools.auto.tfvars.json").write_text(json.dumps({"node_pools": pools}))
    sized = size_pools(plan, PRICES, read_pools(folder))
    (name,) = sized["cold"].instance_types
    kind = next(kind for kind in PRICES.every if kind.name == name)
    assert kind.disk_bytes >= disk.size_bytes
    assert kind.read_iops >= disk.reserved_iops


def test_hot_and_cold_rows_get_nodes_of_their_own() -> None:
    plan = plan_of(
        shard(Tier.HOT, 1, 3, least=2, usual=4, most=8),
        shard(Tier.COLD, 50, 1, least=1, usual=1, most=2),
        shard(Tier.FROZEN, 50, 1, least=0, usual=0, most=1),
    )
    sized = size_pools(plan, PRICES, DEFAULT)
    assert sized["hot"].instance_types[0].startswith("c")
    assert sized["cold"].instance_types[0].startswith(("r", "x"))
    assert 1 <= sized["hot"].min_size < sized["hot"].max_size
    assert sized["cold"].min_size == 1


def test_a_pool_of_frozen_rows_may_be_empty() -> None:
    plan = plan_of(shard(Tier.FROZEN, 10, 1, least=0, usual=0, most=1))
    sized = size_pools(plan, PRICES, DEFAULT)
    assert (sized["cold"].min_size, sized["cold"].max_size) == (0, 1)


def test_a_pool_without_functions_is_left_out() -> None:
    assert set(size_pools(plan_of(), PRICES, DEFAULT)) == {"hot"}


def test_a_new_release_fits_beside_the_old_one() -> None:
    """One 3-vCPU container a node: max scale 8, and 4 replicas of the next release."""
    pools = {"hot": Pool(DEFAULT["hot"].roles, ("c7i.xlarge",))}
    plan = plan_of(shard(Tier.HOT, 1, 3, least=2, usual=4, most=8))
    hot = size_pools(plan, PRICES, pools)["hot"]
    assert hot.min_size == 3  # two shards; the gateway's vCPU does not fit beside either
    assert hot.max_size == 12 + 1  # the gateway's three vCPU share a node


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Tier.HOT, Tier.WARM, Tier.COLD]),
            st.floats(0.1, 60),
            st.floats(0.1, 8),
            st.integers(0, 3),
            st.integers(0, 4),
            st.integers(1, 5),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_nodes_hold_the_containers(
    parts: list[tuple[Tier, float, float, int, int, int]],
) -> None:
    """Sums of vCPU and memory fit at every size, and no pool shrinks above its growth."""
    shards = [
        shard(tier, gib, vcpu, least, least + more, least + more + up)
        for tier, gib, vcpu, least, more, up in parts
    ]
    sized = size_pools(plan_of(*shards), PRICES, DEFAULT)
    kinds = {each.name: each for each in PRICES.types}
    for name, pool in sized.items():
        kind = kinds[pool.instance_types[0]]
        mine = [each for each in shards if each.tier.value in DEFAULT[name].roles]
        assert 0 <= pool.min_size <= pool.max_size >= 1
        least = sum(each.vcpu * each.scaling.min_scale for each in mine)
        assert least <= pool.min_size * kind.usable_vcpu + 1e-6
        most = sum(each.memory_bytes * (each.scaling.max_scale + each.replicas) for each in mine)
        assert most <= pool.max_size * kind.usable_bytes + 1e-6


def test_a_person_limits_types_and_roles(folder: Path) -> None:
    (folder / "terraform.tfvars.json").write_text(
        json.dumps(
            {
                "node_pools": {
                    "hot": {
                        "instance_types": ["m7i.2xlarge", "m7i.4xlarge"],
                        "roles": ["gateway", "hot"],
                    },
                    "all-cold": {"instance_types": ["r7i.4xlarge"], "roles": ["cold", "frozen"]},
                    "gpu": {"instance_types": ["g6.xlarge"], "gpu": True, "roles": ["dense"]},
                    "system": {"instance_types": ["m7i.large"]},
                }
            }
        )
    )
    pools = read_pools(folder)
    assert set(pools) == {"hot", "all-cold", "gpu"}
    limited = limit_prices(PRICES, pools)
    assert {each.name for each in limited.types} == {"m7i.2xlarge", "m7i.4xlarge", "r7i.4xlarge"}
    plan = plan_of(shard(Tier.COLD, 50, 1, 1, 1, 2))
    sized = size_pools(plan, limited, pools)
    assert sized["all-cold"].instance_types == ("r7i.4xlarge",)
    assert sized["hot"].instance_types[0].startswith("m7i")


def test_a_tower_on_gpus_gets_the_gpu_pool() -> None:
    """Four replicas at most and two of the next release, one GPU each; g6 has one GPU."""
    dense = DensePlan(
        device="cuda",
        gpus=1,
        vcpu=2,
        memory_bytes=4 * GIB,
        replicas=2,
        scaling=Scaling(min_scale=0, max_scale=4),
    )
    plan = plan_of().model_copy(update={"dense": dense})
    sized = size_pools(plan, PRICES, DEFAULT)
    assert set(sized) == {"hot", "gpu"}
    assert sized["gpu"].instance_types[0].startswith("g")
    assert (sized["gpu"].min_size, sized["gpu"].max_size) == (0, 6)
    with pytest.raises(PlanError, match="no pool with gpu = true serves the role dense"):
        size_pools(plan, PRICES, {"hot": DEFAULT["hot"]})
    on_cpu = plan.model_copy(update={"dense": dense.model_copy(update={"gpus": 0})})
    assert set(size_pools(on_cpu, PRICES, DEFAULT)) == {"hot"}


def test_what_was_written_before_limits_nothing(folder: Path) -> None:
    sized = size_pools(plan_of(), PRICES, DEFAULT)
    path = write_pools(folder, sized)
    assert path == folder / WRITTEN
    assert json.loads(path.read_text()) == {
        "planned_pools": {
            "hot": {
                "instance_types": list(sized["hot"].instance_types),
                "min_size": sized["hot"].min_size,
                "max_size": sized["hot"].max_size,
            }
        }
    }
    assert read_pools(folder) == DEFAULT


def test_bad_folders_and_pools_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent does not exist"):
        read_pools(tmp_path / "absent")
    variables = folder / "terraform.tfvars.json"
    for text in ("{", '{"node_pools": [1]}', '{"node_pools": {"hot": 3}}', "[]"):
        variables.write_text(text)
        with pytest.raises(PlanError, match=r"terraform\.tfvars\.json: node_pools is not a map"):
            read_pools(folder)
    variables.unlink()
    (folder / "variables.tf").write_text("")
    with pytest.raises(PlanError, match='declares the variable "planned_pools"'):
        read_pools(folder)


def test_impossible_pools_say_why() -> None:
    with pytest.raises(PlanError, match=r"node_pools\.hot: z9\.large is not in prices\.csv"):
        limit_prices(PRICES, {"hot": Pool(("gateway",), ("z9.large",))})
    with pytest.raises(PlanError, match="no pool serves the role cold"):
        size_pools(plan_of(shard(Tier.COLD, 1, 1, 1, 1, 1)), PRICES, {"hot": DEFAULT["hot"]})
    tight = {**DEFAULT, "cold": replace(DEFAULT["cold"], instance_types=("c7i.large",))}
    with pytest.raises(InfeasibleError, match="pool cold: no instance type holds") as error:
        size_pools(plan_of(shard(Tier.COLD, 50, 1, 1, 1, 1)), PRICES, tight)
    assert "53,687,091,200 bytes; allowed types: c7i.large" in error.value.violations[0]


def test_the_verb_writes_the_pools(cli: Cli, folder: Path) -> None:
    run = cli("plan", "--workload", "rm1", "--nodes-from", folder, "-o", "json")
    assert run.returncode == 0, run.stderr
    pools = json.loads((folder / WRITTEN).read_text())["planned_pools"]
    assert "hot" in pools
    for pool in pools.values():
        assert 0 <= pool["min_size"] <= pool["max_size"]
    assert any(line.startswith("pool hot: ") for line in json.loads(run.stdout)["verdict"])
    assert not list(folder.glob(".*.tmp-*"))
