"""Which deployment a verb is about, and where a release goes."""

from __future__ import annotations

import re

import pytest

from erless.deploy.deployed_models import (
    DeployedModel,
    deployment_to_change,
    deployment_to_compare,
    deployment_to_destroy,
    find_deployment,
    model_key,
)
from erless.errors import NotDeployedError, OtherModelError, SeveralModelsError

FIRST, SECOND = DeployedModel("", "recs"), DeployedModel("ads", "ads")
OLD = DeployedModel("", "")  # from before records named the model


def test_a_name_becomes_a_part_of_kubernetes_names_and_none_two_names_part() -> None:
    names = ["ads", "Ads", "ads_v2", "ads-v2", "a" * 30, "a" * 31, "__", "über"]
    keys = [model_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", key) for key in keys)


@pytest.mark.parametrize(
    ("asked", "deployed", "key"),
    [
        ("", [], ""),
        ("", [SECOND], "ads"),
        ("recs", [FIRST, SECOND], ""),
        ("ads", [FIRST, SECOND], "ads"),
        # by its own name, though another serves a model of that name now
        ("ads", [DeployedModel("", "ads"), DeployedModel("ads", "other")], "ads"),
    ],
)
def test_finds_the_deployment(asked: str, deployed: list[DeployedModel], key: str) -> None:
    assert find_deployment(asked, deployed) == key


def test_says_what_is_here_where_it_is_not_clear() -> None:
    with pytest.raises(SeveralModelsError, match="'recs', 'ads'"):
        find_deployment("", [FIRST, SECOND])
    with pytest.raises(NotDeployedError, match="'adz' is not deployed here; here are 'recs'"):
        find_deployment("adz", [FIRST])
    assert deployment_to_destroy("adz", [FIRST]) == "adz"  # what a first deploy may have left


@pytest.mark.parametrize(
    ("asked", "model", "deployed", "replace", "key"),
    [
        ("", "recs", [], False, ""),
        ("recs", "recs", [], False, "recs"),
        ("", "recs", [FIRST, SECOND], False, ""),
        ("", "ads", [FIRST, SECOND], False, "ads"),
        ("ads", "ads", [FIRST], False, "ads"),  # beside
        ("", "ads", [FIRST], True, ""),  # in its place
        ("recs", "ads", [FIRST, SECOND], True, ""),
        ("", "recs", [OLD], False, ""),
    ],
)
def test_a_release_goes_to_its_models_deployment(
    asked: str, model: str, deployed: list[DeployedModel], replace: bool, key: str
) -> None:
    assert deployment_to_change(asked, model, deployed, replace=replace) == key


def test_a_release_of_another_model_takes_nobodys_clients_unless_told_to() -> None:
    with pytest.raises(OtherModelError, match="model 'recs' answers queries here, not 'ads'"):
        deployment_to_change("", "ads", [FIRST], replace=False)
    with pytest.raises(OtherModelError, match="the release is of model 'ads', not 'recs'"):
        deployment_to_change("recs", "ads", [FIRST], replace=False)
    with pytest.raises(SeveralModelsError):
        deployment_to_change("", "new", [FIRST, SECOND], replace=True)
    assert deployment_to_compare("", "ads", [FIRST], replace=False) == ""
    with pytest.raises(OtherModelError):
        deployment_to_compare("", "new", [FIRST, SECOND], replace=False)
