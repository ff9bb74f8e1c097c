"""infra/terraform without an account: format, validation, plans, policy, documentation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erless.plan.nodes.prices import read_prices
from tests.conftest import ROOT, Cli
from tests.infra.conftest import AwsApi, Example
from tests.infra.terraform import SOURCE, Terraform

pytestmark = pytest.mark.timeout(600)
MODULES = [SOURCE, *sorted(SOURCE.glob("modules/*")), *sorted(SOURCE.glob("examples/*"))]
BLOCK = re.compile(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True, scope="module")
def _examples_meanwhile(examples: dict[str, Example]) -> None:
    """The examples' applies start now and go on while these tests run."""


def blocks(module: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, name and body of every variable and output."""
    for path in sorted(module.glob("*.tf")):
        yield from BLOCK.findall(path.read_text(encoding="utf-8"))


def test_it_is_formatted(terraform_in: Callable[[Path], Terraform]) -> None:
    terraform_in(SOURCE).must("fmt", "-check", "-recursive", "-diff")


def test_it_is_valid(root_module: Terraform) -> None:
    answer = json.loads(root_module.must("validate", "-json"))
    assert answer["valid"]
    said = [each["summary"] for each in answer["diagnostics"]]
    assert [each for each in said if "development overrides" not in each] == []


def test_every_module_plans_as_asserted(root_module: Terraform) -> None:
    """`terraform test`: tests/*.tftest.hcl, with a mocked provider."""
    said = root_module.must("test", "-no-color")
    assert re.search(r"Success! \d+ passed, 0 failed", said), said


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_variables_and_outputs_are_documented(module: Path) -> None:
    readme = (module / "README.md").read_text(encoding="utf-8")
    found = list(blocks(module))
    assert found
    for kind, name, body in found:
        assert re.search(r"^  description = (\".+\"|<<-EOT)$", body, re.MULTILINE), name
        assert f"`{name}`" in readme, f"{module.name}/README.md does not mention {kind} {name}"
        if kind == "variable":
            assert re.search(r"^  type +=", body, re.MULTILINE), name
            simple = re.search(r"^  type +(= bool)$", body, re.MULTILINE)
            assert simple or "validation {" in body, f"{name} is not validated"
            for message in re.findall(r'error_message = "([^"]*)', body):
                assert message.startswith(name), f"{name}: {message}"


def test_every_priced_instance_type_is_known(root_module: Terraform) -> None:
    """The planner and Terraform agree on the families: both patterns, every priced type."""
    text = (SOURCE / "modules/node_pools/variables.tf").read_text(encoding="utf-8")
    families = {
        re.sub(r"\\\\", r"\\", each) for each in re.findall(r'regex\("(\^\(\(c\|[^"]+)"', text)
    }
    assert len(families) == 1
    gpu = re.compile(r"^(g|p)[0-9a-z]+\.")
    for each in read_prices().every:
        assert re.match(families.copy().pop(), each.name), each.name
        assert bool(gpu.match(each.name)) == bool(each.gpu), each.name


def test_a_plan_sizes_the_pools(root_module: Terraform, cli: Cli) -> None:
    """`erless plan --nodes-from` → Terraform loads the file and takes types and sizes from it."""
    folder = root_module.folder
    done = cli("plan", "--workload", "rm1", "--nodes-from", folder, "-o", "json")
    assert done.returncode == 0, done.stderr
    written = folder / "erless.auto.tfvars.json"
    planned = json.loads(written.read_text())["planned_pools"]
    asked = root_module.run("console", typed="jsonencode(local.node_pools)\n")
    written.unlink()
    assert asked.returncode == 0, asked.stdout
    pools = json.loads(json.loads(asked.stdout.splitlines()[-1]))
    assert planned
    for name, pool in planned.items():
        assert pool.items() <= pools[name].items()
    assert pools["system"]["instance_types"] == ["m7i.large"]
    assert pools["hot"]["roles"] == ["gateway", "dense", "hot", "warm"]


def test_a_taken_bucket_name_says_which_variable(
    terraform_in: Callable[[Path], Terraform], start_aws: Callable[[], AwsApi], tmp_path: Path
) -> None:
    aws = start_aws()
    aws.client("s3", "other").create_bucket(Bucket="taken-by-someone")
    shutil.copytree(SOURCE / "modules/artifacts", tmp_path / "artifacts")
    terraform = terraform_in(tmp_path / "artifacts")
    aws.override(terraform.folder)
    done = terraform.run(
        "apply",
        "-auto-approve",
        "-input=false",
        "-no-color",
        "-var",
        "name=recs",
        "-var",
        "bucket_name=taken-by-someone",
        "-target=aws_s3_bucket.releases",
    )
    assert done.returncode == 1
    assert "BucketAlreadyExists" in done.stdout
    assert "var.bucket_name" in done.stdout


def checkov() -> str | None:
    own = ROOT / ".venv-checkov" / "bin" / "checkov"
    return str(own) if own.exists() else shutil.which("checkov")


def test_no_policy_check_fails() -> None:
    """checkov; what is skipped has its reason beside it."""
    program = checkov()
    if program is None:
        pytest.skip("checkov is not installed: `make checkov` puts it into .venv-checkov")
    done = subprocess.run(
        [
            program,
            "-d",
            str(SOURCE),
            "--framework",
            "terraform",
            "--compact",
            "--skip-download",
            "--download-external-modules",
            "false",
            "-o",
            "json",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    report = json.loads(done.stdout)
    failed = [
        f"{each['check_id']} {each['resource']} {each['file_path']}: {each['check_name']}"
        for each in report["results"]["failed_checks"]
    ]
    assert not failed, "\n".join(failed)
    assert report["summary"]["passed"] > 100


def test_skipped_policy_checks_have_reasons() -> None:
    lines = [line for path in SOURCE.rglob("*.tf") for line in path.read_text().splitlines()]
    skips = [line for line in lines if "checkov:skip" in line]
    assert skips
    for line in skips:
        assert re.search(r"#checkov:skip=CKV2?_AWS_\d+:.{30,}\.$", line), line
