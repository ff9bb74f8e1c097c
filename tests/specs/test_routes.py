"""Codes of a few bits say what a byte for every row said; files of both layouts are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.errors import ArtifactError
from erless.specs.model import TableSpec
from erless.specs.plan import Precision, Tier
from erless.specs.release import ReleaseShard
from erless.specs.routes import (
    PACKED,
    RoutingFile,
    TableRoute,
    pack_codes,
    packed_tensors,
    route_bits,
)
from erless.storage.tensors import write_tensors


@st.composite
def routed(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """The shards of up to 60 rows, and the holders among them, some of which have none."""
    held = draw(st.sampled_from([1, 2, 3, 4, 5, 16, 17, 255]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    holders = np.sort(generator.choice(255, held, replace=False))
    numbers = generator.choice(holders, draw(st.integers(0, 60))).astype(np.uint8)
    return numbers, holders.tolist()


@given(routed(), st.integers(0, 60))
def test_a_route_says_the_shard_of_every_row(case: tuple[np.ndarray, list[int]], cut: int) -> None:
    numbers, holders = case
    route = TableRoute.of(numbers, holders)
    assert len(route.codes) == -(-len(numbers) * route_bits(len(holders)) // 8)
    np.testing.assert_array_equal(route.all_shards(), numbers)
    ids = np.random.default_rng(0).permutation(len(numbers))
    np.testing.assert_array_equal(route.shards(ids), numbers[ids])
    before = TableRoute.of(numbers[:cut], holders).grown(numbers[cut:])
    np.testing.assert_array_equal(before.codes, route.codes)
    assert before.rows == route.rows


def test_a_row_of_a_shard_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ArtifactError, match="routed to shard 4, which has none of its table"):
        pack_codes(np.array([3, 4], np.uint8), [3, 5])
    with pytest.raises(ArtifactError, match="routed to shard 4"):
        TableRoute.of(np.array([3, 3], np.uint8), [3]).grown(np.array([4], np.uint8))
    with pytest.raises(ArtifactError, match=r"shape \(2,\) of uint8, expected \(1,\)"):
        TableRoute(8, 1, (0, 1), np.zeros(2, np.uint8))


def test_beside_a_home_and_one_more_shard_nothing_is_left_to_say() -> None:
    numbers = np.array([0, 2, 0, 2], np.uint8)
    away = TableRoute.of(numbers, [0, 2]).elsewhere(0)
    assert (away.bits, away.holders, len(away.codes)) == (0, (2,), 0)
    three = TableRoute.of(numbers, [0, 1, 2])
    assert three.elsewhere(0) is three
    alone = TableRoute.of(numbers[:1], [0])
    assert alone.elsewhere(0) is alone


def shard(name: str, *tables: str) -> ReleaseShard:
    return ReleaseShard(
        name=name,
        tier=Tier.COLD,
        precision=Precision.FP32,
        digest="0" * 64,
        tables=tables,
        rows=1,
        row_bytes=1,
        size_bytes=1,
        largest_error=0.0,
    )


def test_files_of_both_layouts_are_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shards = [shard("a", "x", "y"), shard("b", "x"), shard("c", "x", "y", "z")]
    holders: dict[str, tuple[int, ...]] = {"x": (0, 1, 2), "y": (0, 2), "z": (2,)}
    sizes = {"x": 99, "y": 1, "z": 5}
    tables = [TableSpec(name=name, rows=rows, dim=1) for name, rows in sizes.items()]
    numbers = {
        table.name: generator.choice(holders[table.name], table.rows).astype(np.uint8)
        for table in tables
    }
    rows = {table.name: table.rows for table in tables}
    write_tensors(tmp_path / "bytes", numbers)
    packed = {name: pack_codes(each, holders[name]) for name, each in numbers.items()}
    declared = packed_tensors(tables, holders)
    assert {name: each.shape for name, each in packed.items()} == {
        name: shape for name, (_, shape) in declared.items()
    }
    write_tensors(tmp_path / "packed", packed, PACKED)
    assert (tmp_path / "packed").stat().st_size < (tmp_path / "bytes").stat().st_size
    for layout in ("bytes", "packed"):
        file = RoutingFile(tmp_path / layout, rows, shards)
        for name, expected in numbers.items():
            np.testing.assert_array_equal(file.route(name).all_shards(), expected)
            np.testing.assert_array_equal(file.read(name, 0, rows[name]), expected)
        np.testing.assert_array_equal(file.read("x", 16, 40), numbers["x"][16:40])
    write_tensors(tmp_path / "later", packed, {"layout": "ranges"})
    with pytest.raises(ArtifactError, match="layout 'ranges': a newer erless wrote it"):
        RoutingFile(tmp_path / "later", rows, shards)
    with pytest.raises(ArtifactError, match="table x: its routing has shape"):
        RoutingFile(tmp_path / "packed", rows | {"x": 500}, shards).route("x")
