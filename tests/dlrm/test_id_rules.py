"""Ids become rows: hashes as others compute them, vocabularies as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.dlrm.hashing import hash_ids, splitmix64, xxh64_integers, xxh64_strings
from erless.dlrm.id_rules import IdRows
from erless.dlrm.vocabulary import Vocabulary, write_vocabulary
from erless.errors import ArtifactError, ModelError, QueryError
from erless.specs.features import FeatureSpec, HashedIds, ModuloIds
from erless.specs.model import TableSpec

TABLE = TableSpec(name="t", rows=100, dim=4)


def strings(*texts: bytes) -> np.ndarray:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def test_xxh64_is_what_xxhash_computes() -> None:
    """Values of python-xxhash's README and of xxHash's own test suite."""
    texts = strings(b"", b"a", b"abc", b"Nobody inspects the spammish repetition")
    assert [f"{value:016x}" for value in xxh64_strings(texts).tolist()] == [
        "ef46db3751d8e999",
        "d24ec4f1a98c6e5b",
        "44bc2cf5ad770999",
        "fbcea83c8a378bf1",
    ]
    assert xxh64_strings(strings(b"xxhash"), 20141025).tolist() == [0xB559B98D844E0635]


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_an_integers_hash_is_that_of_its_bytes(seed: int) -> None:
    ids = np.array([0, 1, -1, 2**62], np.int64)
    texts = strings(*(int(each).to_bytes(8, "little", signed=True) for each in ids))
    found = hash_ids(ids, "xxh64", seed)
    assert found.tolist() == xxh64_strings(texts, seed).tolist()
    assert found.tolist() == xxh64_integers(ids.view(np.uint64), seed).tolist()


def test_splitmix64_gives_the_published_sequence() -> None:
    """Vigna's splitmix64.c with seed 1234567: the state grows by the golden ratio."""
    states = np.array([1234567, 1234567 + 0x9E3779B97F4A7C15], np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973]
    with pytest.raises(QueryError, match="splitmix64 takes integers"):
        hash_ids(strings(b"a"), "splitmix64", 0)


def test_rules_give_rows_and_tell_what_is_unknown(tmp_path: Path) -> None:
    def rows(ids: list[int], **fields: Any) -> tuple[list[int], list[bool] | None]:
        feature = FeatureSpec(name="f", table="t", **fields)
        found, unknown = IdRows(feature, TABLE, tmp_path.joinpath).rows(np.array(ids))
        return found.tolist(), None if unknown is None else unknown.tolist()

    assert rows([0, 99]) == ([0, 99], None)
    assert rows([-1, 5, 100]) == ([0, 5, 0], [True, False, True])
    assert rows([-1, 5, 100], unknown=7) == ([7, 5, 7], [True, False, True])
    assert rows([-1, 205, 10], rule=ModuloIds(rows=10)) == ([9, 5, 0], None)
    hashed = rows([-1, 205, 2**40], rule=HashedIds(rows=50, seed=3))
    assert hashed[1] is None
    assert all(0 <= row < 50 for row in hashed[0])


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_a_vocabulary_finds_what_was_written(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.permutation(10**6)[:5000] - 500_000
    ids = strings(*(b"id-%d" % n for n in numbers)) if kind == "string" else numbers
    rows = rng.integers(0, 100, 5000)
    rule = write_vocabulary(tmp_path, "f", ids, rows)
    path = tmp_path / rule.file.path
    assert path.stat().st_size < 13 * 5000
    vocabulary = Vocabulary.open(path, rule, 100)
    assert vocabulary.rows(ids).tolist() == rows.tolist()
    others = strings(b"", b"id-") if kind == "string" else np.array([10**7, -(10**7)])
    assert vocabulary.rows(others).tolist() == [-1, -1]
    with pytest.raises(QueryError, match="its ids are"):
        vocabulary.rows(numbers if kind == "string" else strings(b"a"))
    with pytest.raises(ArtifactError, match="a row is none of the table's 50"):
        Vocabulary.open(path, rule, 50)
    feature = FeatureSpec(name="f", table="t", rule=rule, unknown="zero")
    found, unknown = IdRows(feature, TABLE, tmp_path.joinpath).rows(others)
    assert found.tolist() == [0, 0]
    assert unknown is not None and unknown.all()


def test_a_vocabulary_that_is_ambiguous_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has b'a' twice"):
        write_vocabulary(tmp_path, "f", strings(b"a", b"b", b"a"), np.arange(3))
    with pytest.raises(ModelError, match="has row -1"):
        write_vocabulary(tmp_path, "f", np.arange(2), np.array([0, -1]))
