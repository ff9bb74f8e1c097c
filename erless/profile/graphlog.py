"""Query files of models cut from a graph (`erless.dlrm.graph_queries`) as access logs.

A query's ids are known only after its front and its features' rules: both run here as they do in a
gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from erless.dlrm.graph_archives import graph_files, open_lookup
from erless.dlrm.graph_queries import GraphQueryFile
from erless.errors import ErlessError, LogError, QueryError
from erless.profile.logs import Chunk
from erless.progress import Step, Unit
from erless.specs.bundle import BundleManifest

__all__ = ["GraphLog"]


class GraphLog:
    """Row ids of every query, feature by feature.

    Args:
        path: the log.
        model: folder of the bundle.
    """

    unit: Unit = "queries"

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        bundle = BundleManifest.open(model)
        try:
            self._lookup = open_lookup(bundle.model, graph_files(model, bundle))
            self._file = GraphQueryFile(path, bundle.model.inputs)
        except ErlessError as error:
            raise LogError(f"cannot be read as queries: {error}") from error
        self.tables = tuple(table.name for table in bundle.model.tables)
        self.samples: int | None = self._file.samples
        self.total: int | None = len(self._file)

    def chunks(self, step: Step) -> Iterator[Chunk]:
        """The rows of each lane, query by query."""
        lanes = self._lookup.lanes
        for number, inputs in enumerate(self._file):
            batch = max(len(array) for array in inputs.values())
            try:
                query = self._lookup.open(inputs, batch)
            except QueryError as error:
                raise LogError(f"{self.path}: query {number:,}: {error}") from error
            for table, span in zip(lanes.tables, query.spans(), strict=True):
                if span.stop > span.start:
                    yield Chunk(table.name, query.values[span], _locate(number))
            step.advance(1)


def _locate(number: int) -> Callable[[int], str]:
    return lambda position: f"query {number:,}"
