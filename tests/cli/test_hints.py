"""The next thing to try is a command that may be typed, and follows what was typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from erless.cli.hints import FailedVerb, again, example, hint_for, trying
from erless.errors import CheckpointError, ExistsError, LogError, OptionError, PlanError
from tests.conftest import Cli

HELP = "Do it.\n\n    Example: `erless do it --once\n    --again`, `erless do other`"


def test_a_note_stands_before_the_kind() -> None:
    with pytest.raises(PlanError) as raised, trying("other", OptionError):
        with trying("`erless plan`", PlanError):
            raise PlanError("no")
    assert hint_for(raised.value, FailedVerb(HELP, {})) == "`erless plan`"


@pytest.mark.parametrize("kind", [OptionError, LogError, PlanError])
def test_the_example_of_the_verb_is_on_one_line(kind: type[OptionError]) -> None:
    assert hint_for(kind("no"), FailedVerb(HELP, {})) == "`erless do it --once --again`"
    assert example("Do it.") == ""


def test_the_command_that_was_given_may_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/erless", "pack", "--out", "a b"])
    assert again("--overwrite") == "`erless pack --out 'a b' --overwrite`"
    there = ExistsError("there")
    assert hint_for(there, FailedVerb(HELP, {"overwrite": False})) == again("--overwrite")
    assert "--overwrite" not in hint_for(there, FailedVerb(HELP, {}))


def test_a_checkpoint_can_be_looked_into() -> None:
    hint = hint_for(CheckpointError("odd"), FailedVerb(HELP, {"checkpoint": Path("a b.pt")}))
    assert hint.startswith("`erless import inspect 'a b.pt'`")


def test_an_option_without_a_default_has_to_be_given(cli: Cli) -> None:
    run = cli("drill", "--against", "m")
    assert run.returncode == 2
    assert "Missing option '--queries'" in run.stderr
    assert "MISSING" not in cli("drill", "--help").stdout
