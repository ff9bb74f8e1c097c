"""A public name means one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.conftest import ROOT

# Classes that share a name still. A name leaves this list when its classes are told apart.
STILL_SHARED = {
    "Answer",
    "Limits",
    "Line",
    "QueryLog",
    "Record",
    "Reference",
}


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
    fresh = {name: homes for name, homes in shared.items() if name not in STILL_SHARED}
    assert not fresh, "\n".join(f"{name}: {', '.join(homes)}" for name, homes in fresh.items())


def test_names_that_are_told_apart_leave_the_list() -> None:
    homes = homes_of_classes()
    settled = sorted(name for name in STILL_SHARED if len(homes.get(name, ())) < 2)
    assert not settled, f"remove from STILL_SHARED: {', '.join(settled)}"
