"""The documented variables are those that are read, no more and no fewer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

import pytest

from erless.serve.settings import Kind, read_settings
from erless.serve.variables import VARIABLES

DIGEST = "a" * 64


class Recorded(Mapping[str, str]):
    """An environment that remembers which of its variables were asked for."""

    def __init__(self, **values: str) -> None:
        self.values_by_name, self.asked = values, set[str]()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "monolith"])
def test_every_variable_that_is_read_is_documented(kind: Kind) -> None:
    names = {"ERLESS_STORE": "s", "ERLESS_SHARD": DIGEST, "ERLESS_RELEASE": DIGEST}
    environment = Recorded(**names, ERLESS_SHARD_URLS="{}")
    read_settings(kind, environment)
    documented = {variable.name for variable in VARIABLES}
    for_kind = {variable.name for variable in VARIABLES if kind in variable.kinds}
    assert environment.asked <= documented
    assert for_kind <= environment.asked


def test_each_variable_fills_the_setting_that_it_names() -> None:
    values = {"ERLESS_STORE": "s", "ERLESS_SHARD": DIGEST, "ERLESS_RELEASE": DIGEST}
    values["ERLESS_SHARD_URLS"] = "{}"
    changed = {"ERLESS_MAX_BATCH": "7", "ERLESS_COLD_MISS": "default", "ERLESS_DRAIN_S": "3"}
    settings = read_settings("gateway", {**values, **changed})
    assert (settings.max_batch, settings.cold_miss, settings.drain_s) == (7, "default", 3.0)
