"""What Terraform made, as erless needs it: cluster, store, registry, identity, placement.

`infra/terraform` has one output, `erless`, that holds all of it, so a root module that wraps ours
passes on one value. It is read from a Terraform folder, or from a saved `terraform output -json`:

    erless deploy --target knative --infra infra/terraform
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from erless.deploy.programs import run_program
from erless.errors import InfraError
from erless.specs.artifact import FromElsewhere
from erless.specs.cluster import PodPlacement, PodToleration
from erless.storage.atomic import os_errors

__all__ = ["Identity", "Infra", "NodePool", "TerraformCluster", "read_infra"]

OUTPUT = "erless"
SCHEMA_VERSION = 1
TIMEOUT_S = 120.0  # a remote state may be far away
PROGRAMS = ("terraform", "tofu")


class TerraformCluster(FromElsewhere):
    """An EKS cluster."""

    name: str
    endpoint: str
    certificate_authority_data: str = Field(description="base64 of the PEM bundle")
    version: str = ""


class Identity(FromElsewhere):
    """How pods get credentials: the service account, and the role that AWS maps it to.

    With `pod-identity` the association lives in AWS and the service account needs no annotation;
    with `irsa` it needs `eks.amazonaws.com/role-arn: functions_role_arn`.
    """

    method: Literal["pod-identity", "irsa"] = "pod-identity"
    namespace: str
    service_account: str
    functions_role_arn: str
    deployer_role_arn: str = ""


class NodePool(FromElsewhere):
    """One node pool: what it is made of and how far it scales."""

    instance_types: tuple[str, ...]
    capacity_type: str = "ON_DEMAND"
    min_size: int
    max_size: int
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[PodToleration, ...] = ()


class Infra(FromElsewhere):
    """Everything that `erless deploy --target knative` would else ask a person for.

    `placement` has a key per role: `gateway`, `dense`, and the tiers `hot`, `warm`, `cold`,
    `frozen`; a role without one runs anywhere.
    """

    schema_version: int
    region: str
    cluster: TerraformCluster
    store_url: str = Field(pattern=r"^s3://[^/]+(/.*)?$", description="s3://bucket/prefix")
    registry_url: str = Field(description="ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME")
    repositories: dict[str, str] = Field(
        default_factory=dict, description="function kind (gateway, dense, sparse) → repository URL"
    )
    identity: Identity
    placement: dict[str, PodPlacement] = Field(default_factory=dict)
    node_pools: dict[str, NodePool] = Field(default_factory=dict)

    @property
    def bucket(self) -> str:
        """The store's bucket."""
        return self.store_url.removeprefix("s3://").partition("/")[0]

    def place(self, role: str) -> PodPlacement:
        """Where pods of `role` may run."""
        return self.placement.get(role, PodPlacement())


def read_infra(source: Path, *, timeout_s: float = TIMEOUT_S) -> Infra:
    """Read what was applied in the Terraform folder `source`, or a saved `terraform output -json`.

    Raises:
        ArtifactError: there is no such folder or file.
        InfraError: no Terraform program, no Terraform code in the folder, nothing applied yet, the
            output `erless` is missing, of a newer schema or invalid.
    """
    if source.is_dir():
        text = _run_output(source, timeout_s)
    else:
        with os_errors(source, "read"):
            text = source.read_text(encoding="utf-8")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InfraError(f"{source}: not the JSON of `terraform output -json` ({error})") from error
    return _parse(source, document)


def _run_output(folder: Path, timeout_s: float) -> str:
    """`terraform output -json` of `folder`."""
    if not any([*folder.glob("*.tf"), *folder.glob("*.tf.json")]):
        raise InfraError(f"{folder} holds no Terraform code (*.tf)")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise InfraError(
            f"cannot read {folder}: neither {' nor '.join(PROGRAMS)} is on PATH; a file saved by "
            "`terraform output -json` is read without it"
        )
    command = [program, f"-chdir={folder}", "output", "-no-color", "-json"]
    done = run_program(command, timeout_s, InfraError)
    if done.returncode:
        raise InfraError(f"{folder}: {_first_error(done.stderr)}")
    return done.stdout


def _first_error(stderr: str) -> str:
    """What Terraform's error box says first."""
    lines = [line.strip("│╷╵ \n") for line in stderr.splitlines()]
    errors = [line for line in lines if line.startswith("Error:")] or [
        line for line in lines if line
    ]
    return errors[0] if errors else "terraform output failed without a word"


def _parse(source: Path, document: Any) -> Infra:
    if not isinstance(document, dict):
        raise InfraError(f"{source}: not the JSON of `terraform output -json`")
    if not document:
        raise InfraError(f"{source}: nothing is applied here yet: Terraform has no outputs")
    entry = document.get(OUTPUT)
    if not isinstance(entry, dict) or "value" not in entry:
        outputs = ", ".join(sorted(document))
        raise InfraError(f"{source}: Terraform has no output {OUTPUT!r}; it has {outputs}")
    value = entry["value"]
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InfraError(
            f"{source}: output {OUTPUT!r} is of schema {version}; this erless reads up to "
            f"{SCHEMA_VERSION}"
        )
    try:
        return Infra.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InfraError(f"{source}: output {OUTPUT!r}: {where}: {first['msg']}") from error
