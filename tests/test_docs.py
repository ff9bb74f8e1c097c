"""What the documents tell a reader to type is understood, and what they name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from erless.cli.main import app
from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")])
PLACES = ("erless/", "functions/", "loadtests/", "infra/", "tests/", "benchmarks/", "docs/")


def typed(page: Path) -> list[str]:
    """Each `$ erless ...` of a page, with its continuation lines, in parts between `&&` and `;`."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^\$ (.+)$", text, re.MULTILINE)
    parts = [part.strip() for line in lines for part in re.split(r"&&|;", line)]
    return [part for part in parts if part.startswith("erless ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path) -> None:
    for line in typed(page):
        words = shlex.split(line, comments=True)[1:]
        if words == ["--help"]:
            continue
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            command = command.get_command(None, words.pop(0))
        command.make_context("erless", words)  # UsageError where it is not


def options(command: Any) -> set[str]:
    """The options of a verb, or of all verbs below it."""
    found = {each for param in command.params for each in (*param.opts, *param.secondary_opts)}
    for name in getattr(command, "commands", ()):
        found |= options(command.get_command(None, name))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_named_is_there(page: Path) -> None:
    """One of a verb, or of a benchmark or load test."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8")))
    scripts = "".join(
        script.read_text(encoding="utf-8")
        for folder in ("benchmarks", "loadtests", "erless/observe/loadtest/locust")
        for script in (ROOT / folder).rglob("*.py")
    )
    unknown = named - options(get_command(app))
    assert [each for each in unknown if each.removeprefix("--") not in scripts] == []


def test_the_commands_are_found() -> None:
    assert "erless deploy --store releases" in typed(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    here = [each for each in links if "://" not in each]
    assert [each for each in here if not (page.parent / each).exists()] == []


def test_the_map_names_what_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = [each for each in re.findall(r"`([\w./-]+)`", text) if each.startswith(PLACES)]
    assert len(paths) > 15
    assert [each for each in paths if not (ROOT / each).exists()] == []
    packages = [each.parent.name for each in (ROOT / "erless").glob("*/__init__.py")]
    assert [each for each in packages if f"`erless/{each}/" not in text] == []
