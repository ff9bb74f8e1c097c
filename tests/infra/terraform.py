"""Terraform as the tests run it: which provider, on a copy, with deadlines.

The provider comes from a local mirror (a folder that holds `registry.terraform.io/…`): the one that
`ERLESS_TERRAFORM_MIRROR` or `TF_PLUGIN_CACHE_DIR` names, else one of the places where Terraform or
a system's packages put them, else from Terraform's own configuration and the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "infra" / "terraform"
PROVIDER = "registry.terraform.io/hashicorp/aws"
LEFT_OUT = shutil.ignore_patterns(".terraform*", "terraform.tfstate*", "*.tfplan", "*.auto.tfvars*")
TIMEOUT_S = 550  # an apply takes 70 s of waiting, and more on a loaded machine


def mirror() -> Path | None:
    """The local provider mirror, if there is one."""
    named = [os.environ.get(name) for name in ("ERLESS_TERRAFORM_MIRROR", "TF_PLUGIN_CACHE_DIR")]
    usual = [
        "~/.terraform.d/plugins",
        "~/.local/share/terraform/plugins",
        "/usr/local/share/terraform/plugins",
        "/usr/share/terraform/plugins",
    ]
    folders = [Path(name).expanduser() for name in [*filter(None, named), *usual]]
    folders += sorted(Path("/opt").glob("*/registry.terraform.io/hashicorp/aws/../../.."))
    return next((folder.resolve() for folder in folders if (folder / PROVIDER).is_dir()), None)


@dataclass(frozen=True)
class Terraform:
    """Runs verbs in `folder`, a copy of (a part of) infra/terraform."""

    program: str
    folder: Path
    environment: dict[str, str]

    def run(self, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run one verb, with `typed` as its input; stdout and stderr come together."""
        return subprocess.run(
            [self.program, f"-chdir={self.folder}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            input=typed,
            text=True,
            env=self.environment,
            timeout=TIMEOUT_S,
            check=False,
        )

    def must(self, *arguments: str) -> str:
        """Run one verb that has to work; says all when it does not."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"terraform {' '.join(arguments)}\n{done.stdout}"
        return done.stdout

    def init(self) -> subprocess.CompletedProcess[str]:
        """Install the provider, from the mirror where there is one."""
        folder = mirror()
        source = [f"-plugin-dir={folder}"] if folder else []
        return self.run("init", "-input=false", "-no-color", *source)

    def with_installed_provider(self, settings: Path) -> dict[str, str]:
        """The environment in which every folder uses the provider installed here.

        Terraform else hashes the provider's 700 MB at every command, and GOGC spares its collector
        the schema: together two thirds of the CPU time of a validate.
        """
        installed = self.folder / ".terraform/providers" / PROVIDER
        (package,) = installed.glob("*/*")
        settings.write_text(
            f'provider_installation {{\n  dev_overrides {{\n    "hashicorp/aws" = "{package}"\n'
            "  }\n  direct {}\n}\n"
        )
        return {**self.environment, "TF_CLI_CONFIG_FILE": str(settings), "GOGC": "400"}


def environment(cache: Path) -> dict[str, str]:
    """The environment of the first run: no questions, no account, a provider cache."""
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "TF_"))
    }
    own = os.environ.get("TF_CLI_CONFIG_FILE", "")
    if Path(own).is_file():
        variables["TF_CLI_CONFIG_FILE"] = own
    return {
        **variables,
        "TF_IN_AUTOMATION": "1",
        "TF_PLUGIN_CACHE_DIR": os.environ.get("TF_PLUGIN_CACHE_DIR", str(cache)),
        "CHECKPOINT_DISABLE": "1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def copy_source(target: Path) -> Path:
    """A copy of infra/terraform, free of anyone's state."""
    shutil.copytree(SOURCE, target, ignore=LEFT_OUT)
    return target
