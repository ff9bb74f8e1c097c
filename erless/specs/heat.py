"""Live heat: what gateways saw of the queries that they sampled, kept in the store.

    STORE/heat/<release>/<replica>.json                     a `HeatSpill`, replaced at each interval
    STORE/heat/<release>/<replica>-<number>.safetensors     its counts; the one before is removed

Each replica of a gateway has a name of its own. Counts of a table are in the form of a profile's:
`ids.<table>` and `counts.<table>` int64, hottest first, in units of 1/256 access, since accesses
weigh half as much after each half-life. `sampled.<table>` and `sampled_counts.<table>` are those of
the hash sample, `registers.<table>` those of HyperLogLog (`erless.dlrm.heat_sketch`).

What the deployed plan's shards saw lately lies beside them, interval by interval, the last one at
the end: `recent.gathers` (W, S, T) int64, `recent.touched` (W, S) int64: sampled queries that
touched a shard, `recent.queries` (W,) int64 and `recent.seconds` (W,) float64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from erless.errors import ArtifactError
from erless.specs.artifact import Artifact, FileEntry, Frozen
from erless.storage.store import Blob, Ignore, Store
from erless.storage.tensors import TensorFile, write_tensors

__all__ = ["UNITS", "HeatSpill", "HeatTable", "Seen", "heat_prefix", "publish_heat", "read_heat"]

UNITS = 256  # counts are in units of 1/256 access
_HEX = r"^[0-9a-f]{64}$"


class Seen(NamedTuple):
    """What went where in a window that ends now.

    gathers: (S, T) of sampled queries, by shard and table. touched: (S,) of them that asked each
    shard. queries: how many were sampled. qps: of all. seconds: that the window lasted.
    """

    gathers: NDArray[np.int64]
    touched: NDArray[np.int64]
    queries: int
    qps: float
    seconds: float


class HeatTable(Frozen):
    """One table's accesses in a spill; `accesses`, `squares` and `error` as of `TableSketch`."""

    table: str
    rows: int = Field(gt=0)
    capacity: int = Field(gt=0)
    accesses: float = Field(ge=0)
    squares: float = Field(ge=0)
    error: float = Field(ge=0)
    level: int = Field(ge=0, le=63)


class HeatSpill(Artifact):
    """All that one replica saw, as of one moment."""

    KIND: ClassVar[str] = "erless live heat"

    release: str = Field(pattern=_HEX)
    model: str = Field(pattern=_HEX, description="digest of the bundle")
    replica: str = Field(pattern=r"^[0-9a-f]{12}$")
    number: int = Field(ge=1, description="of this replica's spills")
    sample: float = Field(gt=0, le=1, description="share of queries that was sampled")
    half_life_s: float = Field(gt=0)
    spilled_at_s: float = Field(description="Unix time on the gateway's clock: for people")
    samples: float = Field(ge=0, description="samples of the sampled queries, decayed")
    dropped: int = Field(ge=0, description="sampled queries that were not counted: no room")
    tables: tuple[HeatTable, ...]
    shards: tuple[str, ...] = Field(description="names of the plan's shards, in order")
    file: FileEntry


def heat_prefix(release: str) -> str:
    """What the names of a release's live heat begin with."""
    return f"heat/{release}/"


def publish_heat(
    store: Store, tensors: Mapping[str, NDArray[Any]], fields: Mapping[str, Any]
) -> HeatSpill:
    """Write a replica's counts, then its manifest, then remove the counts before.

    Args:
        store: of the release.
        tensors: see above.
        fields: those of `HeatSpill` but `file`.

    Raises:
        StorageError: the disk or service refused.
    """
    base = f"{heat_prefix(fields['release'])}{fields['replica']}"
    name = f"{base}-{fields['number']}.safetensors"
    with store.staging() as stage:
        path = stage / "heat.safetensors"
        size, sha256 = write_tensors(path, tensors)
        store.adopt(path, Blob(name, size, sha256), Ignore())
    entry = FileEntry(path=name, size_bytes=size, sha256=sha256)
    spill = HeatSpill.create(**fields, file=entry)
    store.replace(f"{base}.json", (spill.model_dump_json() + "\n").encode())
    if fields["number"] > 1:
        store.delete(f"{base}-{fields['number'] - 1}.safetensors")
    return spill


def read_heat(store: Store, name: str, release: str) -> tuple[HeatSpill, dict[str, NDArray[Any]]]:
    """The spill whose manifest is called `name`, and its tensors.

    One that is replaced while it is read is read again.

    Raises:
        ArtifactError: it is damaged, torn, or of another release.
        StorageError: the disk or service refused.
    """
    before = ""
    while True:
        where = f"{store.url}/{name}"
        spill = HeatSpill.parse(store.read(name), where)
        if spill.release != release:
            raise ArtifactError(f"{where}: is of release {spill.release[:12]}")
        try:
            return spill, _tensors(store, spill, where)
        except ArtifactError:
            if spill.digest == before:
                raise
            before = spill.digest


def _tensors(store: Store, spill: HeatSpill, where: str) -> dict[str, NDArray[Any]]:
    entry = spill.file
    with tempfile.TemporaryDirectory(prefix="erless-heat-") as folder:
        path = Path(folder) / "heat.safetensors"
        store.fetch(Blob(entry.path, entry.size_bytes, entry.sha256), path, Ignore())
        file = TensorFile(path)
        tensors = {tensor: file.read(tensor) for tensor in file.tensors}
    expected = {"recent.gathers", "recent.touched", "recent.queries", "recent.seconds"}
    for table in spill.tables:
        kinds = ("ids", "counts", "sampled", "sampled_counts", "registers")
        expected |= {f"{kind}.{table.table}" for kind in kinds}
    if set(tensors) != expected:
        raise ArtifactError(f"{where}: its file does not have the tensors of its tables")
    shape = (len(tensors["recent.queries"]), len(spill.shards), len(spill.tables))
    if tensors["recent.gathers"].shape != shape or tensors["recent.touched"].shape != shape[:2]:
        raise ArtifactError(f"{where}: its counts by shard are not of its shards and tables")
    for table in spill.tables:
        ids = tensors[f"ids.{table.table}"]
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < table.rows):
            raise ArtifactError(f"{where}: names a row outside table {table.table}")
    return tensors
