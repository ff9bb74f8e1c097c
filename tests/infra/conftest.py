"""A real terraform, a real provider, and an AWS API per example."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.conftest import ROOT
from tests.infra.terraform import TIMEOUT_S, Terraform, copy_source, environment

SERVICES = ["autoscaling", "budgets", "ec2", "ecr", "eks", "iam", "kms", "logs", "s3", "sts"]
STARTUP_S = 120


@pytest.fixture(scope="session")
def terraform_in(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Callable[[Path], Terraform]:
    """Terraform for a folder; skips, with the reason, where it or the provider is absent."""
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform is not on PATH")
    cache = pytestconfig.cache.mkdir("terraform-providers")
    folder = tmp_path_factory.mktemp("trial")
    shutil.copy(ROOT / "infra/terraform/versions.tf", folder)
    trial = Terraform(program, folder, environment(cache))
    done = trial.init()
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "rror" in line] or ["no reason given"]
        pytest.skip(f"no AWS provider (ERLESS_TERRAFORM_MIRROR is not set): {lines[0]}")
    settings = trial.with_installed_provider(folder / "terraform.rc")
    return lambda folder: Terraform(program, folder, settings)


@pytest.fixture(scope="session")
def root_module(
    terraform_in: Callable[[Path], Terraform], tmp_path_factory: pytest.TempPathFactory
) -> Terraform:
    """The root module with its modules, on a copy."""
    terraform = terraform_in(copy_source(tmp_path_factory.mktemp("root") / "terraform"))
    terraform.must("get")
    return terraform


@dataclass(frozen=True)
class AwsApi:
    """A running AWS API on loopback."""

    url: str

    def client(self, service: str, account: str = "testing") -> Any:
        """A boto3 client of it."""
        make_client: Callable[..., Any] = boto3.client  # of whatever service is asked for
        return make_client(
            service,
            "us-east-1",
            endpoint_url=self.url,
            aws_access_key_id=account,
            aws_secret_access_key=account,
        )

    def override(self, folder: Path) -> None:
        """Point the AWS provider of a root module there: the test-only override file."""
        endpoints = "\n".join(f'    {name} = "{self.url}"' for name in SERVICES)
        (folder / "aws_api_override.tf").write_text(
            'provider "aws" {\n  region = "us-east-1"\n  s3_use_path_style = true\n'
            f"  skip_metadata_api_check = true\n  endpoints {{\n{endpoints}\n  }}\n}}\n"
        )


@pytest.fixture(scope="session")
def start_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], AwsApi]]:
    """Start AWS APIs; they end with the session."""
    servers: list[subprocess.Popen[bytes]] = []

    def start() -> AwsApi:
        port_file = tmp_path_factory.mktemp("aws") / "port"
        log = port_file.with_suffix(".log")
        with log.open("wb") as sink:
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.infra.aws_api", str(port_file)],
                cwd=ROOT,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
            )
        servers.append(server)
        deadline = time.monotonic() + STARTUP_S
        while not port_file.exists():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no AWS API in {STARTUP_S} s: {log.read_text()}"
            time.sleep(0.1)
        return AwsApi(f"http://127.0.0.1:{port_file.read_text()}")

    yield start
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait(timeout=30)


@dataclass(frozen=True)
class Applied:
    """An example that was applied."""

    terraform: Terraform
    aws: AwsApi


@dataclass(frozen=True)
class Example:
    """One example: being applied in the background, `applied` waits for it."""

    name: str
    work: Future[Applied]

    def applied(self) -> Applied:
        """The applied example."""
        return self.work.result(timeout=TIMEOUT_S)


@pytest.fixture(scope="session")
def examples(
    terraform_in: Callable[[Path], Terraform],
    start_aws: Callable[[], AwsApi],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Example]]:
    """Every example, being applied: the provider mostly waits, so the tests meanwhile go on."""
    names = ["minimal", "production"]
    pool = ThreadPoolExecutor(len(names))

    def apply(name: str, terraform: Terraform) -> Applied:
        aws = start_aws()
        aws.override(terraform.folder)
        terraform.must("get")
        lines = ["force_destroy = true"]
        if name == "production":
            lines.append('budget = { limit_usd = 2500, emails = ["ml@example.com"] }')
        (terraform.folder / "test.auto.tfvars").write_text("\n".join(lines) + "\n")
        terraform.must("apply", "-auto-approve", "-input=false", "-no-color", "-compact-warnings")
        return Applied(terraform, aws)

    folders = {name: copy_source(tmp_path_factory.mktemp(name) / "terraform") for name in names}
    yield {
        name: Example(name, pool.submit(apply, name, terraform_in(folder / "examples" / name)))
        for name, folder in folders.items()
    }
    pool.shutdown(wait=True)
