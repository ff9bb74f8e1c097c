"""A saved `terraform output -json`, as tests of this and other stages need it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VALUE: dict[str, Any] = {
    "schema_version": 1,
    "region": "eu-central-1",
    "cluster": {
        "name": "recs",
        "endpoint": "https://0123.gr7.eu-central-1.eks.amazonaws.com",
        "certificate_authority_data": "LS0tLS1CRUdJTg==",
        "version": "1.33",
    },
    "store_url": "s3://recs-releases/releases",
    "registry_url": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/recs",
    "repositories": {
        kind: f"123456789012.dkr.ecr.eu-central-1.amazonaws.com/recs/{kind}"
        for kind in ("gateway", "dense", "sparse")
    },
    "identity": {
        "method": "pod-identity",
        "namespace": "erless",
        "service_account": "erless-functions",
        "functions_role_arn": "arn:aws:iam::123456789012:role/recs-functions",
        "deployer_role_arn": "arn:aws:iam::123456789012:role/recs-deployer",
    },
    "placement": {
        "hot": {"node_selector": {"erless.dev/pool": "hot"}, "tolerations": []},
        "dense": {
            "node_selector": {"erless.dev/pool": "gpu", "nvidia.com/gpu.present": "true"},
            "tolerations": [
                {
                    "key": "nvidia.com/gpu",
                    "operator": "Equal",
                    "value": "true",
                    "effect": "NoSchedule",
                }
            ],
        },
    },
    "node_pools": {
        "hot": {
            "instance_types": ["c7i.2xlarge"],
            "capacity_type": "ON_DEMAND",
            "min_size": 1,
            "max_size": 8,
            "node_selector": {"erless.dev/pool": "hot"},
            "tolerations": [],
        }
    },
}


def write_outputs(path: Path, value: object = VALUE, name: str = "erless") -> Path:
    """Save `value` as the output `name`."""
    path.write_text(json.dumps({name: {"sensitive": False, "type": "dynamic", "value": value}}))
    return path
