"""Secrets that some gateway may still send stay accepted."""

from __future__ import annotations

from pathlib import Path

from erless.deploy.local.supervisor.folder.secret import MOST, SecretFile


def test_a_deploy_that_is_undone_sends_the_old_secret_and_accepts_its_own(tmp_path: Path) -> None:
    file = SecretFile(tmp_path / "secret")
    file.rotate()
    (served,) = before = file.rotate()
    fresh = file.lines()[0]
    file.restore(before)
    assert file.lines() == (served, fresh)
    file.rotate()
    assert file.lines()[1:] == (served, fresh)  # gateways that send either one may be alive
    file.settle()
    assert len(file.lines()) == 1


def test_a_first_deploy_that_is_undone_leaves_no_secret(tmp_path: Path) -> None:
    file = SecretFile(tmp_path / "secret")
    file.restore(file.rotate())
    assert not file.path.exists()


def test_deploys_that_fail_for_ever_do_not_let_the_file_grow(tmp_path: Path) -> None:
    file = SecretFile(tmp_path / "secret")
    file.rotate()
    served = file.lines()[0]
    for _ in range(3 * MOST):
        file.restore(file.rotate())
    assert file.lines()[0] == served
    assert len(file.lines()) == MOST
