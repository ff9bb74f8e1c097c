"""Query files of graphs: what is written comes back, what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.graph_queries import GraphQueryFile, write_graph_queries
from erless.errors import QueryError
from tests.graphs import ranker_inputs, ranker_spec

SPEC = ranker_spec(user_type="BYTES", per={"history": "request"})


def inputs(samples: int, queries: int) -> dict[str, np.ndarray]:
    found = ranker_inputs(samples, 4)
    found["history"] = found["history"][:queries]
    found["user"] = np.array([b"user-%d" % n for n in range(samples)], object)
    return found


def test_queries_come_back(tmp_path: Path) -> None:
    path, whole = tmp_path / "q.safetensors", inputs(10, 3)
    labels = np.arange(10, dtype=np.float32)
    write_graph_queries(path, whole, 4, labels)
    file = GraphQueryFile(path, SPEC.inputs)
    assert (len(file), file.samples, file.batch) == (3, 10, 4)
    assert file.labels is not None and file.labels.tolist() == labels.tolist()
    queries = list(file)
    assert [len(query["price"]) for query in queries] == [4, 4, 2]
    assert queries[2]["user"].tolist() == [b"user-8", b"user-9"]
    assert queries[1]["history"].tolist() == whole["history"][1:2].tolist()
    assert np.concatenate([q["tags"] for q in queries]).tolist() == whole["tags"].tolist()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"

    def refused(message: str, batch: int | None = None, **changes: np.ndarray) -> None:
        write_graph_queries(path, inputs(10, 3) | changes, 4)
        with pytest.raises(QueryError, match=message):
            GraphQueryFile(path, SPEC.inputs, batch)

    refused("target has 9 samples, user has 10", target=np.zeros(9, np.int64))
    refused(r"tags is int32 \[10, 4\], the model takes INT64", tags=np.zeros((10, 4), np.int32))
    refused("history comes once per request: it has 3 entries for 2 queries of 5", 5)
    refused("has a tensor 'more'", more=np.zeros(3))
