"""Credentials from Docker's configuration and helpers, as people and programs leave them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from erless.deploy.image.credentials import find_credentials
from erless.errors import ImageError

HOST = "registry.example"


def write_config(folder: Path, monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def write_helper(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    helper = folder / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    write_config(folder, monkeypatch, {"credHelpers": {HOST: "test"}})


@pytest.mark.parametrize("config", [[], {"auths": None}, {"auths": {HOST: None}}, {"auths": []}])
def test_a_configuration_without_logins_is_anonymous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    write_config(tmp_path, monkeypatch, config)
    assert find_credentials(HOST) == (None, None)


@pytest.mark.parametrize("auth", ["dXNlcg=", "//79", 7])
def test_a_login_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auth: Any
) -> None:
    write_config(tmp_path, monkeypatch, {"auths": {HOST: {"auth": auth}}})
    with pytest.raises(ImageError, match=rf"config.json: auth of {HOST}: not user:password"):
        find_credentials(HOST)


def test_a_helper_answers_with_user_and_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_helper(tmp_path, monkeypatch, '{"Username": "user", "Secret": "word"}')
    assert find_credentials(HOST) == ("user", "word")


@pytest.mark.parametrize("answer", ["credentials not found", "[]", '{"Username": "user"}'])
def test_a_helper_that_answers_something_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    write_helper(tmp_path, monkeypatch, answer)
    with pytest.raises(ImageError, match="docker-credential-test gave no user and secret"):
        find_credentials(HOST)
