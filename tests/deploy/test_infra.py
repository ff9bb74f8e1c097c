from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from erless.deploy.infra import read_infra
from erless.errors import ArtifactError, InfraError
from erless.specs.cluster import PodPlacement
from tests.deploy.infra_outputs import VALUE, write_outputs


def test_a_saved_output_is_read(tmp_path: Path) -> None:
    infra = read_infra(write_outputs(tmp_path / "infra.json"))
    assert infra.bucket == "recs-releases"
    assert infra.cluster.name == "recs"
    assert infra.repositories["sparse"].endswith("recs/sparse")
    assert infra.identity.method == "pod-identity"
    assert infra.place("dense").tolerations[0].effect == "NoSchedule"
    assert infra.place("hot").node_selector == {"erless.dev/pool": "hot"}
    assert infra.place("nowhere") == PodPlacement()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not the JSON"),
        ("[1]", "not the JSON"),
        ("{}", "nothing is applied here yet"),
        ('{"bucket": {"value": "b"}}', "no output 'erless'; it has bucket"),
        ('{"erless": {"value": 3}}', "schema None"),
        ('{"erless": {"value": {"schema_version": 2}}}', "schema 2; this erless reads up to 1"),
        ('{"erless": {"value": {"schema_version": 1}}}', "region: Field required"),
    ],
)
def test_a_file_that_is_no_output_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "infra.json"
    path.write_text(text)
    with pytest.raises(InfraError) as error:
        read_infra(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_store_that_is_no_bucket_is_refused(tmp_path: Path) -> None:
    path = write_outputs(tmp_path / "infra.json", {**VALUE, "store_url": "releases"})
    with pytest.raises(InfraError, match="store_url"):
        read_infra(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent does not exist"):
        read_infra(tmp_path / "absent")
    with pytest.raises(InfraError, match="holds no Terraform code"):
        read_infra(tmp_path)


def test_without_terraform_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.tf").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError, match="neither terraform nor tofu is on PATH"):
        read_infra(tmp_path)


def program(folder: Path, script: str) -> None:
    path = folder / "terraform"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_silent_terraform_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.tf").touch()
    program(tmp_path, "exec /bin/sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError, match=r"did not finish within 0\.5 s"):
        read_infra(tmp_path, timeout_s=0.5)


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not on PATH")
def test_real_terraform_reads_its_state(tmp_path: Path) -> None:
    """The built-in provider needs no network: apply, then read; break it, and read again."""
    import json
    import subprocess

    code = tmp_path / "main.tf.json"
    code.write_text(json.dumps({"output": {"erless": {"value": VALUE}}}))
    with pytest.raises(InfraError, match="nothing is applied here yet"):
        read_infra(tmp_path)
    for verb in (["init"], ["apply", "-auto-approve"]):
        subprocess.run(
            ["terraform", f"-chdir={tmp_path}", *verb, "-no-color"],
            check=True,
            capture_output=True,
            timeout=120,
        )
    assert read_infra(tmp_path).store_url == VALUE["store_url"]
    code.write_text("{")
    with pytest.raises(InfraError, match=r"Error: "):
        read_infra(tmp_path)
