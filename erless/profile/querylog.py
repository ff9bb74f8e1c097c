"""Query files (`erless.dlrm.queries`) as access logs: as `erless example` writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from erless.dlrm.queries import QueryFile
from erless.errors import ErlessError, LogError
from erless.profile.logs import Chunk, unknown_table
from erless.progress import Step, Unit
from erless.storage.atomic import os_errors
from erless.storage.tensors import TensorFile

__all__ = ["QueryLog"]

CHUNK_IDS = 4_000_000


class QueryLog:
    """Ids lie table by table in the file, so each table is read in one sweep of large reads."""

    unit: Unit = "accesses"

    def __init__(self, path: Path, tables: Sequence[str], only: str | None) -> None:
        self.path = path
        try:
            self._file = QueryFile(path)
            self._values = TensorFile(path).info("values")
        except ErlessError as error:
            raise LogError(f"cannot be read as queries: {error}") from error
        rows = len(self._file.lengths)
        names = self._file.table_names or list(tables)[: max(rows, 1)]
        if len(names) != len(self._file.lengths):
            raise LogError(
                f"{path}: lengths has {len(self._file.lengths)} rows for {len(names)} tables"
            )
        for name in names:
            if name not in tables:
                raise unknown_table(path, name, tables)
        if only is not None and only not in names:
            raise unknown_table(path, only, names)
        self._names = names
        self.tables = tuple(names) if only is None else (only,)
        self.samples: int | None = self._file.samples
        self.total: int | None = len(self._file.values)

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """Each table's ids in turn."""
        begin = 0
        dtype = self._values.dtype
        for index, name in enumerate(self._names):
            end = begin + int(self._file.lengths[index].sum(dtype=np.int64))
            if name in self.tables:
                for start in range(begin, end, CHUNK_IDS):
                    size = min(CHUNK_IDS, end - start)
                    offset = self._values.begin + start * dtype.itemsize
                    with os_errors(self.path, "read"):
                        # read, not mapped: a mapped log would count as memory of this process
                        ids = np.fromfile(self.path, dtype, size, offset=offset)
                    yield Chunk(name, ids, self._locate(index, start - begin))
            step.advance(end - begin)
            begin = end

    def _locate(self, index: int, begin: int) -> Callable[[int], str]:
        def locate(position: int) -> str:
            ends = np.cumsum(self._file.lengths[index], dtype=np.int64)
            return f"sample {int(np.searchsorted(ends, begin + position, side='right'))}"

        return locate
