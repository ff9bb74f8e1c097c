"""A public name means one thing in the whole package."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.conftest import ROOT

# Not ast.parse: Python 3.11 lets it fail where another thread, such as a test server's, parses too.
CLASS = re.compile(r"^class ([A-Za-z]\w*)", re.MULTILINE)


def homes_of_classes() -> dict[str, list[str]]:
    """The modules that define each public class, by the class's name."""
    homes = defaultdict(list)
    for path in sorted((ROOT / "erless").rglob("*.py")):
        for name in CLASS.findall(path.read_text(encoding="utf-8")):
            homes[name].append(str(path.relative_to(ROOT)))
    return homes


def test_classes_are_found() -> None:
    assert homes_of_classes()["Coalescer"] == ["erless/serve/protocol/coalescing.py"]


def test_two_public_classes_never_share_a_name() -> None:
    shared = {name: homes for name, homes in homes_of_classes().items() if len(homes) > 1}
    assert not shared, "\n".join(f"{name}: {', '.join(homes)}" for name, homes in shared.items())
