"""`erless plan` over the paper's workloads, as the README calls it."""

import itertools
import json

import pytest

from tests.conftest import Cli

FIELDS = {
    "policy", "memory_bytes", "memory_reduction", "memory_utility", "functions", "containers",
    "fan_out", "vcpu", "nodes", "usd_per_month", "predicted_p95_ms", "lower_bound_gap",
}  # fmt: skip


@pytest.mark.parametrize(
    ("workload", "locality"), list(itertools.product(["rm1", "rm2", "rm3"], [0.5, 0.9]))
)
def test_joint_under_the_papers_terms(cli: Cli, workload: str, locality: float) -> None:
    run = cli(
        *("plan", "--workload", workload, "--locality", locality, "--traffic", "8x"),
        *("--equal-containers", "--objective", "memory", "--compare", "-o", "json"),
    )
    assert run.returncode == 0, run.stderr
    policies = {each["policy"]: each for each in json.loads(run.stdout)["policies"]}
    assert set(policies) == {"model-wise", "table-wise", "elasticrec", "joint"}
    assert all(set(each) >= FIELDS for each in policies.values())
    joint, elasticrec = policies["joint"], policies["elasticrec"]
    assert joint["memory_bytes"] <= elasticrec["memory_bytes"]
    assert 0 <= joint["lower_bound_gap"] <= 0.01
    if locality == 0.9:
        assert joint["containers"] <= elasticrec["containers"] / 2
