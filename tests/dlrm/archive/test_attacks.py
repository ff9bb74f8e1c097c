"""A hostile archive is refused within 2 s of CPU and 200 MB, and nothing of it ever runs."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dlrm.archive.attacks import ATTACKS
from tests.dlrm.archive.hostile import Bomb, by_hand, put_together, take_apart, zeros_deflated
from tests.towers import DeepFm, export

Record = tuple[bytes, bytes, dict[str, object]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "tower.pt2"
    export(DeepFm(3, 2, 4), path, 3, 2, 4)
    return path


def loads(paths: list[Path]) -> list[str]:
    """What became of each load, in processes of their own."""
    command = [sys.executable, "-m", "tests.dlrm.archive.confined_loads", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    results: list[str] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def outcomes(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of every attack of the corpus."""
    folder = tmp_path_factory.mktemp("attacks")
    paths = []
    for number, (change, _) in enumerate(ATTACKS.values()):
        files = take_apart(good)
        change(files, folder / f"bomb-{number}")
        paths.append(put_together(files, folder / f"attack-{number}.pt2"))
    results = loads([*paths, good])
    assert results.pop() == "loaded"  # within the same limits
    exploded = [path.name for path in folder.iterdir() if path.name.startswith("bomb")]
    assert exploded == []
    return dict(zip(ATTACKS, results, strict=True))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_by_name(outcomes: dict[str, str], attack: str) -> None:
    assert outcomes[attack].startswith("refused: "), outcomes[attack]
    assert re.search(ATTACKS[attack][1], outcomes[attack]), outcomes[attack]
    assert len(outcomes[attack]) < 1000


def test_the_bomb_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "bomb")))  # noqa: S301
    assert (tmp_path / "bomb").exists()


def test_a_container_that_lies_is_refused(good: Path, tmp_path: Path) -> None:
    records: list[Record] = [
        (f"t/{name}".encode(), data, {}) for name, data in take_apart(good).items()
    ]
    bomb = zeros_deflated(3)
    assert len(bomb) < 4 << 20
    first = records[0][0]
    other = b"t/data/weights/weight_90"
    cases: list[tuple[list[Record], str]] = [
        ([*records, (other, bomb, {"method": 8, "size": 3 << 30})], "is compressed"),
        ([*records, (other, bomb, {"method": 8})], "is compressed"),
        ([*records, (other, b"x", {"size": 3 << 30})], "is compressed"),
        ([*records, (b"t/models/model.json", b"{}", {})], "model.json is in the archive twice"),
        ([*records, (first, b"", {"offset": 0})], "twice"),
        ([*records, (other, b"x", {"offset": 0})], "another name"),
        ([*records, (other, b"x", {"offset": 2**31})], "outside of the file"),
        ([*records, (other, b"x", {"flags": 1})], "is encrypted"),
        ([*records, (other, b"x", {"inner_name": first})], "another name"),
        ([*records, (b"u/data/weights/weight_90", b"x", {})], "outside of the folder"),
        ([*records, (b"t/../../etc/passwd", b"x", {})], "no record of an archive"),
        ([*records, (b"/etc/passwd", b"x", {})], "outside of the folder"),
        ([*records, (b"t/data/weights/weight_0\x00.pt", b"x", {})], "control characters"),
        ([*records, ("t/dàta".encode(), b"x", {})], "not ASCII"),
        ([*records, (b"t/" + b"a" * 400, b"x", {})], "name has 402 bytes"),
        ([*records, *((b"t/%d" % n, b"", {}) for n in range(20_001))], "records, at most"),
    ]
    paths = [by_hand(tmp_path / f"{n}.pt2", case) for n, (case, _) in enumerate(cases)]
    for (_, message), outcome in zip(cases, loads(paths), strict=True):
        assert outcome.startswith("refused: "), outcome
        assert re.search(message, outcome), outcome


def test_a_file_that_is_no_archive_is_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    contents = [b"", b"PK", data[:500], data[:-1], data + b"x", data[100:], bytes(1 << 20)]
    paths = [tmp_path / f"{n}.pt2" for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    outcomes = loads([*paths, tmp_path])
    assert all(outcome.startswith("refused: ") for outcome in outcomes), outcomes
    assert all("not a torch.export archive" in outcome for outcome in outcomes), outcomes


def test_an_archive_with_sizes_of_64_bits_is_read(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 10)
    monkeypatch.setattr("zipfile.ZIP_FILECOUNT_LIMIT", 1)
    long = put_together(take_apart(good), tmp_path / "long.pt2")
    assert b"PK\x06\x06" in long.read_bytes()
    assert loads([long]) == ["loaded"]
