"""The options of `erless plan` are the fields of the request, and erless.yaml's keys are too."""

from __future__ import annotations

import pytest
from pydantic import BaseModel
from typer.utils import get_params_from_function

from erless.cli.release.plan import plan
from erless.cli.release.plan_inputs import BY_TIER
from erless.plan.request import PlanRequest
from erless.specs.config import Config, PlannerConfig, PrecisionConfig, TrafficConfig
from tests.conftest import Cli

NOT_OF_THE_REQUEST = {  # of the price table, and of what precisions are chosen by
    *("prices", "queries", "max_auc_loss", "max_relative_error"),
}


def test_every_field_of_the_request_has_an_option() -> None:
    options = get_params_from_function(plan)
    filled = {field for fields in BY_TIER.values() for field in fields}
    for name in PlanRequest.model_fields:
        assert name in options or name in filled, name


@pytest.mark.parametrize("section", [TrafficConfig, PlannerConfig, PrecisionConfig])
def test_a_key_of_the_file_and_an_option_have_one_range_and_meaning(
    section: type[BaseModel],
) -> None:
    for name in set(section.model_fields) - NOT_OF_THE_REQUEST - {"min_replicas"}:
        written, asked = section.model_fields[name], PlanRequest.model_fields[name]
        assert name in Config.model_fields or name in PlanRequest.model_fields
        values: tuple[object, ...] = (-1, 0, 255, float("inf"), float("nan"), "no word", [], {})
        for value in values:
            assert accepts(section, name, value) == accepts(PlanRequest, name, value), (name, value)
        assert written.annotation is not None
        assert asked.annotation is not None


def accepts(model: type[BaseModel], name: str, value: object) -> bool:
    if (name, value) == ("allowed", []):
        return True  # the file must name one, the request takes `precision` where none is named
    try:
        model.model_validate({name: value})
    except ValueError:
        return False
    return True


def test_the_help_says_ranges_choices_and_defaults(cli: Cli) -> None:
    done = cli("plan", "--help")
    assert done.returncode == 0, done.stderr
    for words in (
        "dollars|memory",
        "0<=x<=1",
        "x>=1",
        "[32]",
        "[8x]",
        "[auto]",
        "--frozen-window-s",
    ):
        assert words in done.stdout, words
