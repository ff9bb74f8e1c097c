"""The account that `erless autoscale` asks for, as a user applies it."""

from __future__ import annotations

import yaml

from tests.conftest import Cli


def test_the_account_is_printed_for_kubectl(cli: Cli) -> None:
    done = cli("autoscale", "--access", "--target", "kubernetes", "--namespace", "recs")
    assert done.returncode == 0, done.stderr
    account, role, binding = yaml.safe_load_all(done.stdout)
    assert (account["kind"], account["metadata"]["namespace"]) == ("ServiceAccount", "recs")
    allowed = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert allowed == {"pods", "pods/proxy", "pods/resize", "leases"}
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "recs"}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
