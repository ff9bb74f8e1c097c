"""The gateway's routing (`erless.specs.routes`), written from the windows of all tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from erless.pack.inputs import PackInputs
from erless.pack.kept import KeptShards
from erless.pack.ranks import Window
from erless.pack.stream import Pipeline, StreamWriter
from erless.specs.artifact import FileEntry
from erless.specs.model import TableSpec
from erless.specs.routes import PACKED, pack_codes, packed_tensors

__all__ = ["RoutingWriter", "holders"]


def holders(inputs: PackInputs, kept: KeptShards) -> dict[str, tuple[int, ...]]:
    """Table → the numbers of the shards that have rows of it.

    Raises:
        PlanError: a kept shard is not in the store.
    """
    held: dict[str, set[int]] = {table.name: set() for table in inputs.model.tables}
    for part in inputs.slices:
        held[part.table.name].add(part.shard)
    for number, planned in enumerate(inputs.plan.shards):
        if planned.kept is not None:
            for name in kept.shard(planned).tables:
                held[name].add(number)
    return {name: tuple(sorted(numbers)) for name, numbers in held.items()}


class RoutingWriter:
    """The routing while it is written, all tables in the model's order.

    Args:
        inputs: what is packed.
        kept: shards of an earlier release.
        stage: folder for the file.

    Raises:
        PlanError: a kept shard is not in the store.
        StorageError: the disk refused.
    """

    def __init__(self, inputs: PackInputs, kept: KeptShards, stage: Path) -> None:
        self._inputs, self._kept = inputs, kept
        self._holders = holders(inputs, kept)
        self.path = stage / "routing.safetensors"
        tensors = packed_tensors(inputs.model.tables, self._holders)
        self._pipeline = Pipeline()
        self._writer = StreamWriter(self.path, tensors, self._pipeline, PACKED)

    def through(self, table: TableSpec, windows: Iterator[Window]) -> Iterator[Window]:
        """Note where the rows of each window go, and hand it on.

        Raises:
            PlanError: a row is routed to a kept shard that does not hold it.
            StorageError: the disk refused.
        """
        for window in windows:
            self._check_kept(table.name, window)
            codes = pack_codes(window.routes, self._holders[table.name])
            self._writer.write(table.name, codes)
            yield window

    def _check_kept(self, table: str, window: Window) -> None:
        for number, planned in enumerate(self._inputs.plan.shards):
            if planned.kept is not None:
                self._kept.check(planned, table, window.begin, window.routes == number)

    def finish(self) -> FileEntry:
        """Make the file durable, and say what it is in a store."""
        size, sha256 = self._writer.close()
        return FileEntry(path=f"blobs/{sha256}.safetensors", size_bytes=size, sha256=sha256)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._pipeline.__exit__(*details)
        self._writer.__exit__(*details)
