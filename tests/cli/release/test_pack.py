"""`erless pack` and `erless releases` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.releases import Made, default_model, make_release


@pytest.fixture(scope="module")
def flow(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an example, its profile and a plan that cuts it."""
    folder = tmp_path_factory.mktemp("flow")
    for arguments in (
        ("example", "rm1", "--rows", 2000, "--out", "model"),
        ("profile", "--model", "model", "--log", "model/access.parquet", "--out", "profile"),
        (
            "plan",
            "--model",
            "model",
            "--profile",
            "profile",
            "--policy",
            "elasticrec",
            "--equal-containers",
            "--out",
            "plan.json",
        ),
    ):
        run = cli(*arguments, cwd=folder)
        assert run.returncode == 0, run.stderr
    return folder


def test_from_example_to_a_verified_release(cli: Cli, flow: Path) -> None:
    """No option: model, profile, plan and store are where erless.yaml has them by default."""
    packed = cli("pack", "-o", "json", cwd=flow)
    assert packed.returncode == 0, packed.stderr
    document = json.loads(packed.stdout)
    assert document["store"] == "releases"
    assert document["missing_shards"] == []
    assert sum(each["rows"] for each in document["shards"]) == 10 * 2000
    verified = cli("releases", "verify", cwd=flow)
    assert verified.returncode == 0, verified.stderr
    assert f"sound: {document['release']}" in verified.stdout
    listed = json.loads(cli("releases", "list", "-o", "json", cwd=flow).stdout)
    assert [each["release"] for each in listed["releases"]] == [document["release"]]
    shown = cli("releases", "show", document["release"][:8], cwd=flow)
    assert document["shards"][0]["digest"] in shown.stdout
    shared = cli("pack", "--workers", 2, "--store", "shared", "-o", "json", cwd=flow)
    assert json.loads(shared.stdout)["release"] == document["release"]


def test_erless_yaml_says_where(cli: Cli, flow: Path) -> None:
    (flow / "elsewhere").mkdir()
    (flow / "elsewhere" / "erless.yaml").write_text(
        "model: ../model\nprofile: ../profile\nstore: ../other\n"
    )
    packed = cli("pack", "--plan", "../plan.json", cwd=flow / "elsewhere")
    assert packed.returncode == 0, packed.stderr
    assert (flow / "other" / "store.json").is_file()
    assert cli("releases", "verify", cwd=flow / "elsewhere").returncode == 0


def test_one_shard_at_a_time(cli: Cli, flow: Path) -> None:
    first = cli("pack", "--shard", 0, "--store", "parts", "-o", "json", cwd=flow)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["release"] is None
    assert json.loads(first.stdout)["missing_shards"]
    waiting = cli("pack", "--shard", 0, "--store", "parts", cwd=flow)
    assert "the release waits for: " in waiting.stdout
    wrong = cli("pack", "--shard", 9999, "--store", "parts", cwd=flow)
    assert wrong.returncode == 1
    assert "there is no shard 9999" in wrong.stderr


def test_damage_is_exit_1_and_names_the_file(cli: Cli, tmp_path: Path) -> None:
    made = make_release(tmp_path, model=default_model(300, 4))
    blob = Path(made.store) / made.release.gateway.routing.path
    blob.chmod(0o644)
    blob.write_bytes(b"x" * made.release.gateway.routing.size_bytes)
    found = cli("releases", "verify", "--store", made.store)
    assert found.returncode == 1
    assert f"damaged: {blob}: altered: sha256" in found.stderr
    assert "try: " in found.stderr
    as_json = cli("releases", "verify", "--all", "--store", made.store, "-o", "json")
    assert as_json.returncode == 1
    (release,) = json.loads(as_json.stdout)["releases"]
    assert not release["sound"]
    assert release["damage"][0]["name"] == made.release.gateway.routing.path
    again = (
        "pack",
        "--model",
        made.bundle,
        "--profile",
        made.profile,
        "--plan",
        made.plan,
        "--store",
        made.store,
    )
    assert cli(*again, "--verify").returncode == 0
    assert cli("releases", "verify", "--store", made.store).returncode == 0


def test_prune(cli: Cli, packed_release: Made) -> None:
    run = cli("releases", "prune", "--store", packed_release.store, "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "would remove 0 releases, 0 objects" in run.stdout


MISTAKES = [
    (("pack", "--model", "nope"), "no model at nope"),
    (("releases", "list", "--store", "nope"), "nope is not a release store: no such directory"),
    (("releases", "show", "abc", "--store", "{store}"), "holds no release abc"),
    (("releases", "verify", "abc", "--store", "{store}"), "0 releases begin with 'abc'"),
    (("releases", "prune", "--keep", "abc", "--store", "{store}"), "holds no release abc"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES)
def test_mistakes_are_told_short(
    cli: Cli, packed_release: Made, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    filled = [each.format(store=packed_release.store) for each in arguments]
    run = cli(*filled, cwd=tmp_path)
    assert run.returncode == 1
    assert says in run.stderr
    assert "try: " in run.stderr
    assert "Traceback" not in run.stderr
