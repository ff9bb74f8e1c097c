"""A vocabulary: each known id's row, in a file that is mapped.

The file is safetensors. An entry takes 12 bytes, 16 where the table has 2^32 rows or more:

    keys  (entries,) uint64, ascending: of integers the id's bits, of strings their XXH64
    rows  (entries,) uint32 or int64

Strings themselves are not kept. Two that have one hash are refused when the file is made; a string
that is not in the vocabulary is taken for one that is with probability entries / 2^64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.hashing import xxh64_strings
from erless.errors import ArtifactError, ModelError, QueryError
from erless.specs.artifact import FileEntry
from erless.specs.features import VocabularyIds
from erless.storage.tensors import TensorFile, write_tensors

__all__ = ["Vocabulary", "write_vocabulary"]

Keys = NDArray[np.uint64]


def write_vocabulary(
    folder: Path, name: str, ids: NDArray[Any], rows: NDArray[np.int64]
) -> VocabularyIds:
    """Write `folder/vocabulary/<name>.safetensors`, and return the rule that refers to it.

    Args:
        folder: of the bundle.
        name: the feature's.
        ids: (entries,) integers, or an object array of bytes or str.
        rows: (entries,) the row of each.

    Raises:
        ModelError: an id stands twice, two strings have one hash, or a row is below zero.
    """
    keys: Literal["string", "int64"] = "string" if ids.dtype == object else "int64"
    if keys == "string":
        ids = np.array([text.encode() if isinstance(text, str) else text for text in ids], object)
    hashes = _keys(ids)
    order = np.argsort(hashes, kind="stable")
    hashes, ids, rows = hashes[order], ids[order], rows[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(same):
        first, second = ids[same[0] : same[0] + 2].tolist()
        fact = (
            f"{first!r} twice"
            if first == second
            else f"{first!r} and {second!r}, which have one hash"
        )
        raise ModelError(f"the vocabulary of feature {name} has {fact}")
    if len(rows) and int(rows.min()) < 0:
        raise ModelError(f"the vocabulary of feature {name} has row {int(rows.min())}")
    narrow = not len(rows) or int(rows.max()) < 1 << 32
    path = f"vocabulary/{name}.safetensors"
    (folder / "vocabulary").mkdir(exist_ok=True)
    stored = rows.astype(np.uint32 if narrow else np.int64)
    digest = write_tensors(folder / path, {"keys": hashes, "rows": stored})
    entry = FileEntry(path=path, size_bytes=digest.size_bytes, sha256=digest.sha256)
    return VocabularyIds(keys=keys, entries=len(rows), file=entry)


def _keys(ids: NDArray[Any]) -> Keys:
    if ids.dtype == object:
        return xxh64_strings(ids)
    return ids.astype(np.int64).view(np.uint64)


class Vocabulary:
    """A vocabulary, mapped.

    Args:
        keys: (entries,) ascending.
        rows: of each.
        strings: whether its ids are strings.
    """

    def __init__(self, keys: Keys, rows: NDArray[Any], strings: bool) -> None:
        self._keys, self._rows, self._strings = keys, rows, strings

    @classmethod
    def open(cls, path: Path, rule: VocabularyIds, table_rows: int) -> Vocabulary:
        """The vocabulary at `path`.

        Raises:
            ArtifactError: it is damaged, or has a row that the table does not have.
        """
        file = TensorFile(path)
        keys, rows = file.map("keys", populate=True), file.map("rows", populate=True)
        shape = (rule.entries,)
        if keys.dtype != np.uint64 or (keys.shape, rows.shape) != (shape, shape):
            raise ArtifactError(f"{path}: not a vocabulary of {rule.entries:,} entries")
        if rows.dtype not in (np.uint32, np.int64):
            raise ArtifactError(f"{path}: rows are {rows.dtype}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < table_rows:
            raise ArtifactError(f"{path}: a row is none of the table's {table_rows:,}")
        return cls(keys, rows, rule.keys == "string")

    def rows(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The row of each of `ids` (n,), or -1.

        Raises:
            QueryError: they are integers where strings are known, or the other way round.
        """
        if (ids.dtype == object) != self._strings:
            known = "strings" if self._strings else "integers"
            raise QueryError(f"its ids are {known}, these are {ids.dtype}")
        if not len(self._keys):
            return np.full(len(ids), -1, np.int64)
        wanted = _keys(ids)
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[places] == wanted, self._rows[places].astype(np.int64), -1)
