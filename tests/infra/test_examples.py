"""Each example applied to an AWS API: no change after, nothing left at the end; erless on top."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from erless.deploy.infra import read_infra
from erless.plan.nodes.prices import read_prices
from tests.conftest import Cli
from tests.infra.conftest import Applied, Example
from tests.infra.terraform import SOURCE, TIMEOUT_S

pytestmark = pytest.mark.timeout(600)
NAMES = ["minimal", "production"]


def client(service: str, applied: Applied) -> Any:
    return applied.aws.client(service)


def left(applied: Applied) -> dict[str, list[str]]:
    """What of ours is in the account."""
    ec2, iam, eks = client("ec2", applied), client("iam", applied), client("eks", applied)
    keys = client("kms", applied)
    states = [
        keys.describe_key(KeyId=each["KeyId"])["KeyMetadata"] for each in keys.list_keys()["Keys"]
    ]
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "isDefault", "Values": ["false"]}])["Vpcs"]
    nat = ec2.describe_nat_gateways()["NatGateways"]
    return {
        "clusters": eks.list_clusters()["clusters"],
        "vpcs": [each["VpcId"] for each in vpcs],
        "addresses": [each["AllocationId"] for each in ec2.describe_addresses()["Addresses"]],
        "nat": [each["NatGatewayId"] for each in nat if each["State"] != "deleted"],
        "templates": [
            each["LaunchTemplateId"] for each in ec2.describe_launch_templates()["LaunchTemplates"]
        ],
        "groups": [
            each["AutoScalingGroupName"]
            for each in client("autoscaling", applied).describe_auto_scaling_groups()[
                "AutoScalingGroups"
            ]
        ],
        "roles": [each["RoleName"] for each in iam.list_roles()["Roles"]],
        "issuers": iam.list_open_id_connect_providers()["OpenIDConnectProviderList"],
        "buckets": [each["Name"] for each in client("s3", applied).list_buckets()["Buckets"]],
        "repositories": [
            each["repositoryName"]
            for each in client("ecr", applied).describe_repositories()["repositories"]
        ],
        "logs": [
            each["logGroupName"]
            for each in client("logs", applied).describe_log_groups()["logGroups"]
        ],
        "keys": [each["KeyId"] for each in states if each["KeyState"] == "Enabled"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_what_erless_reads(examples: dict[str, Example], name: str) -> None:
    infra = read_infra(examples[name].applied().terraform.folder)
    assert infra.cluster.name == f"erless-{name}"
    assert infra.store_url == f"s3://erless-{name}-releases-123456789012-us-east-1/releases"
    assert infra.registry_url == f"123456789012.dkr.ecr.us-east-1.amazonaws.com/erless-{name}"
    assert set(infra.repositories) == {"gateway", "sparse", "dense"}
    assert set(infra.placement) == {"gateway", "dense", "hot", "warm", "cold", "frozen"}
    assert infra.identity.functions_role_arn.endswith(f":role/erless-{name}-functions")
    pool = "all" if name == "minimal" else "cold"
    assert infra.place("cold").node_selector == {"erless.dev/pool": pool}
    if name == "production":
        assert infra.place("dense").tolerations[0].key == "nvidia.com/gpu"


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_line_holds(examples: dict[str, Example], name: str) -> None:
    """Nodes at their smallest, at the shipped prices."""
    prices = {each.name: each.usd_per_month for each in read_prices().every}
    pools = read_infra(examples[name].applied().terraform.folder).node_pools
    nodes = sum(pool.min_size * prices[pool.instance_types[0]] for pool in pools.values())
    readme = (SOURCE / "examples" / name / "README.md").read_text(encoding="utf-8")
    assert f"nodes ${nodes:,.0f} (" in readme


def test_what_was_applied_is_what_was_meant(examples: dict[str, Example]) -> None:
    """A look at the account itself, past Terraform."""
    applied = examples["production"].applied()
    eks = client("eks", applied)
    cluster = eks.describe_cluster(name="erless-production")["cluster"]
    assert cluster["resourcesVpcConfig"]["endpointPublicAccess"] is False
    assert set(eks.list_addons(clusterName="erless-production")["addons"]) == {
        "vpc-cni",
        "kube-proxy",
        "eks-pod-identity-agent",
        "coredns",
        "aws-ebs-csi-driver",
    }
    groups = eks.list_nodegroups(clusterName="erless-production")["nodegroups"]
    assert set(groups) == {"system", "hot", "cold", "gpu"}
    gpu = eks.describe_nodegroup(clusterName="erless-production", nodegroupName="gpu")["nodegroup"]
    tags = client("autoscaling", applied).describe_tags(
        Filters=[
            {
                "Name": "auto-scaling-group",
                "Values": [gpu["resources"]["autoScalingGroups"][0]["name"]],
            }
        ]
    )["Tags"]
    prefix = "k8s.io/cluster-autoscaler/node-template"
    assert {each["Key"]: each["Value"] for each in tags} == {
        f"{prefix}/label/erless.dev/pool": "gpu",
        f"{prefix}/label/nvidia.com/gpu.present": "true",
        f"{prefix}/taint/nvidia.com/gpu": "true:NoSchedule",
        f"{prefix}/resources/ephemeral-storage": "200Gi",
    }


def test_from_terraform_to_a_rendered_deploy(
    examples: dict[str, Example], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apply → outputs read → packed to that bucket → deploy --dry-run: nothing by hand."""
    applied = examples["production"].applied()
    infra = read_infra(applied.terraform.folder)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    there = ("--infra", applied.terraform.folder, "--endpoint-url", applied.aws.url, "-o", "json")

    def run(*arguments: object) -> Any:
        done = cli(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run("example", "rm1", "--rows", 2000, "--out", "m", "-o", "json")
    run("profile", "--model", "m", "--log", "m/access.parquet", "--out", "p", "-o", "json")
    run("plan", "--model", "m", "--profile", "p", "--out", "plan.json", "--shards", 2, "-o", "json")
    packed = run("pack", "--model", "m", "--profile", "p", "--plan", "plan.json", *there)
    assert packed["store"] == infra.store_url
    listed = client("s3", applied).list_objects_v2(Bucket=infra.bucket)["Contents"]
    assert all(each["Key"].startswith("releases/") for each in listed)
    assert any(packed["release"] in each["Key"] for each in listed)

    images = []
    for kind, digit in (("gateway", "a"), ("sparse", "b"), ("dense", "c")):
        images += ["--image", f"{kind}=sha256:{digit * 64}"]
    deployed = run("deploy", "--target", "knative", "--dry-run", *images, *there)
    assert deployed["release"] == packed["release"]
    services = [each for each in deployed["objects"] if each["kind"] == "Service"]
    assert len(services) >= 2
    for service in services:
        spec = service["spec"]["template"]["spec"]
        container = spec["containers"][0]
        settings = {each["name"]: each.get("value") for each in container["env"]}
        assert settings["ERLESS_STORE"] == infra.store_url
        assert container["image"].startswith(f"{infra.registry_url}/")
        pool = spec["nodeSelector"]["erless.dev/pool"]
        assert pool in {"hot", "cold", "gpu"}
        assert spec["serviceAccountName"] == infra.identity.service_account
        assert service["metadata"]["namespace"] == infra.identity.namespace
    pools = {
        each["spec"]["template"]["spec"]["nodeSelector"]["erless.dev/pool"] for each in services
    }
    assert {"hot", "cold"} <= pools


@dataclass(frozen=True)
class Ending:
    """A plan after the apply, then destroy: what each said, and what was in the account."""

    plan: subprocess.CompletedProcess[str]
    before: dict[str, list[str]]
    state: str
    after: dict[str, list[str]]


@pytest.fixture(scope="module")
def endings(examples: dict[str, Example]) -> Iterator[dict[str, Future[Ending]]]:
    """Both examples end side by side: the provider mostly waits."""

    def end(applied: Applied) -> Ending:
        terraform = applied.terraform
        plan = terraform.run("plan", "-detailed-exitcode", "-input=false", "-no-color")
        before = left(applied)
        terraform.must("destroy", "-auto-approve", "-refresh=false", "-input=false", "-no-color")
        return Ending(plan, before, terraform.must("state", "list"), left(applied))

    with ThreadPoolExecutor(len(NAMES)) as pool:
        yield {name: pool.submit(end, examples[name].applied()) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_change_then_nothing_left(endings: dict[str, Future[Ending]], name: str) -> None:
    ending = endings[name].result(timeout=TIMEOUT_S)
    assert ending.plan.returncode == 0, ending.plan.stdout
    assert "No changes." in ending.plan.stdout
    assert all(ending.before.values()), ending.before
    assert ending.state == ""
    assert ending.after == {key: [] for key in ending.before}
