"""Whatever is changed in a good archive, it loads or is refused as an ArtifactError."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erless.dlrm.archive import load_exported
from erless.errors import ArtifactError
from tests.dlrm.archive.hostile import CONSTANTS, MODEL, WEIGHTS, put_together, take_apart
from tests.towers import DeepFm, export

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63),
    1.5,
    1e308,
    "",
    "x",
    "as_int",
    "dense",
    "9**9**9",
    "__class__",
    "\x00",
    [],
    [None],
    [[[]]],
    {},
    {"as_int": 1},
    {"as_name": "s0"},
    {"as_expr": {"expr_str": "s0", "hint": None}},
    {"as_tensor": {"name": "pooled"}},
]
QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "tower.pt2"
    export(DeepFm(3, 2, 4), path, 3, 2, 4)
    return path


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value of a document."""
    children: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, list):
        children = list(enumerate(node))
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def change(document: Any, choose: random.Random) -> None:
    """Replace, drop, add, repeat or swap one value somewhere in `document`."""
    everywhere = places(document)[1:]
    if not everywhere:
        return
    path = choose.choice(everywhere)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    match choose.randrange(5):
        case 0:
            parent[key] = choose.choice(ODD)
        case 1:
            del parent[key]
        case 2 if isinstance(parent, dict):
            parent[choose.choice(["as_none", "as_graph", "extra", "as_ints"])] = parent[key]
        case 3 if isinstance(parent, list):
            parent.insert(choose.randrange(len(parent) + 1), parent[key])
        case _:
            other = choose.choice(everywhere)
            source = document
            for step in other:
                source = source[step]
            parent[key] = json.loads(json.dumps(source))


def loads_or_is_refused(path: Path) -> None:
    try:
        load_exported(path)
    except ArtifactError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 1000


@QUICK
@given(record=st.sampled_from([MODEL, MODEL, WEIGHTS, CONSTANTS]), seed=st.integers(0, 2**32))
def test_a_changed_document(good: Path, tmp_path: Path, record: str, seed: int) -> None:
    files = take_apart(good)
    document = json.loads(files[record])
    choose = random.Random(seed)
    for _ in range(choose.randint(1, 3)):
        change(document, choose)
    files[record] = json.dumps(document).encode()
    loads_or_is_refused(put_together(files, tmp_path / "changed.pt2"))


@QUICK
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1),
    cut=st.floats(0, 1) | st.just(1.0),
    tail=st.booleans(),
)
def test_changed_bytes(
    good: Path, tmp_path: Path, changes: list[tuple[float, int]], cut: float, tail: bool
) -> None:
    data = bytearray(good.read_bytes())
    span = min(2000, len(data)) if tail else len(data)  # the directory lies at the end
    for place, value in changes:
        data[len(data) - span + int(place * span)] = value
    path = tmp_path / "changed.pt2"
    path.write_bytes(data[: max(1, int(len(data) * cut))])
    loads_or_is_refused(path)
