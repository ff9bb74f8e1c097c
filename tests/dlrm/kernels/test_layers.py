"""The C kernels have layers: each folder uses only those below it, and no two files use each other.

What a file uses is read from its `#include` lines and, since a declaration can be written anywhere,
from the symbols of its object file. `make check` runs this.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[3] / "erless/dlrm/kernels"
LAYERS = ("arithmetic", "disk", "fast_lane", "python")  # lowest first
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)

Uses = dict[str, set[str]]  # unit, such as "arithmetic/gather" → the units it uses


def unit(root: Path, path: Path) -> str:
    """A source file and its header are one unit."""
    return path.relative_to(root).with_suffix("").as_posix()


def sources(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".c", ".h"))


def included(root: Path) -> Uses:
    uses: Uses = {}
    for path in sources(root):
        own = unit(root, path)
        uses.setdefault(own, set())
        for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
            if (root / name).is_file():
                uses[own] |= {unit(root, root / name)} - {own}
            elif name == "Python.h":
                uses[own].add("Python")
    return uses


def symbols(path: Path, *options: str) -> set[str]:
    output = subprocess.check_output(["nm", "-g", "-P", *options, str(path)], text=True)
    return {line.split()[0] for line in output.splitlines()}


def linked(root: Path, objects: Path) -> Uses:
    """Compile every file, and tell whose symbols it needs."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = ["-I", str(root), "-I", sysconfig.get_path("include")]
    built: dict[str, Path] = {}
    for path in root.rglob("*.c"):
        built[unit(root, path)] = target = objects / f"{len(built)}.o"
        command = [compiler, "-std=gnu11", *headers, "-c", str(path), "-o", str(target)]
        subprocess.run(command, check=True)
    owners = {name: own for own, path in built.items() for name in symbols(path, "--defined-only")}
    uses: Uses = {}
    for own, path in built.items():
        needed = symbols(path, "--undefined-only")
        uses[own] = {owners[name] for name in needed & owners.keys()} - {own}
        if any(re.match(r"_?Py[A-Z_]", name) for name in needed):
            uses[own].add("Python")
    return uses


def layer(name: str) -> int:
    return LAYERS.index(name.split("/", maxsplit=1)[0])


def faults(uses: Uses) -> list[str]:
    """What points up, reaches Python from below its folder, or goes in a circle."""
    wrong = [
        f"{own} uses {other}"
        for own, others in sorted(uses.items())
        for other in sorted(others)
        if (layer(own) < len(LAYERS) - 1 if other == "Python" else layer(own) < layer(other))
    ]
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        wrong.append("a circle: " + " → ".join(error.args[1]))
    return wrong


def merged(*parts: Uses) -> Uses:
    names: Iterable[str] = {name for part in parts for name in part}
    return {name: set().union(*(part.get(name, set()) for part in parts)) for name in names}


def test_the_kernels_point_one_way(tmp_path: Path) -> None:
    uses = merged(included(KERNELS), linked(KERNELS, tmp_path))
    assert {name.split("/")[0] for name in uses} == set(LAYERS)
    assert "arithmetic/gather" in uses["fast_lane/fast_path"]  # it does see what is used
    assert faults(uses) == []


@pytest.mark.parametrize(
    ("folder", "text", "fault"),
    [
        ("arithmetic", '#include "fast_lane/form.h"', "arithmetic/new uses fast_lane/form"),
        ("fast_lane", "#include <Python.h>", "fast_lane/new uses Python"),
        (
            "arithmetic",
            "int form_check(void); int new(void) { return form_check(); }",
            "arithmetic/new uses fast_lane/form",
        ),
        (
            "arithmetic",
            "int back(void); int to(void) { return back(); }",
            "a circle: arithmetic/other → arithmetic/new → arithmetic/other",
        ),
    ],
)
def test_a_file_that_points_up_is_seen(tmp_path: Path, folder: str, text: str, fault: str) -> None:
    root, objects = tmp_path / "kernels", tmp_path / "objects"
    objects.mkdir()
    for name in LAYERS:
        (root / name).mkdir(parents=True)
    (root / "fast_lane/form.h").write_text("int form_check(void);\n")
    (root / "fast_lane/form.c").write_text("int form_check(void) { return 0; }\n")
    (root / "arithmetic/other.c").write_text("int to(void); int back(void) { return to(); }\n")
    if "circle" not in fault:
        (root / "arithmetic/other.c").unlink()
    (root / folder / "new.c").write_text(text + "\n")
    found = faults(merged(included(root), linked(root, objects)))
    assert [each for each in found if set(each.split()) == set(fault.split())], found
