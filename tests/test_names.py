"""A public name means one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.conftest import ROOT


def homes_of_classes() -> dict[str, list[str]]:
    """The modules that define each public class, by the class's name."""
    homes = defaultdict(list)
    for path in sorted((ROOT / "erless").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    return homes


def test_two_public_classes_never_share_a_name() -> None:
    shared = {name: homes for name, homes in homes_of_classes().items() if len(homes) > 1}
    assert not shared, "\n".join(f"{name}: {', '.join(homes)}" for name, homes in shared.items())
