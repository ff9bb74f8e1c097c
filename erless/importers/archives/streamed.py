"""An archive in a bucket: a copy here without its large tables, and their rows by ranges.

The copy is an archive too. Its large tables are zeros, which a file with holes keeps without room
on the disk, and their checksums in its directory are those of zeros. So whatever reads an archive
reads the copy, and a table's rows go from bucket to bundle, once.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from erless.dlrm.archive.container import Record
from erless.dlrm.archive.graph import Archive, count_uses
from erless.dlrm.archive.operators import LOOKUPS
from erless.importers.lazy import RangedTensor
from erless.storage.atomic import os_errors
from erless.storage.ranged import LazyBytes, RangedFile, open_ranges, read_bytes

__all__ = ["ArchiveHere", "archive_here"]

LEAST_BYTES = 1 << 20  # of a table that is not copied
CHUNK_BYTES = 8 << 20
_OPERATOR = "torch.ops.aten."


@dataclass(frozen=True)
class ArchiveHere:
    """An archive on this machine.

    Args:
        path: of the archive, or of its copy.
        tables: the weights that are zeros there, by the archive's names.
    """

    path: Path
    tables: Mapping[str, RangedTensor]


@contextmanager
def archive_here(
    location: Path | str, beside: Path, small_rows: int, endpoint_url: str | None = None
) -> Iterator[ArchiveHere]:
    """The archive at `location`, a path or `s3://bucket/key`; a copy goes when the block ends.

    Args:
        location: of the archive.
        beside: the copy lies beside this path.
        small_rows: tables with fewer rows are copied, since they stay in the tower.
        endpoint_url: of the bucket's service, where it is not AWS's.

    Raises:
        ArtifactError: it is no archive, or not there.
        StorageError: the disk or bucket refused.
    """
    if not str(location).startswith("s3://"):
        yield ArchiveHere(Path(location), {})
        return
    url = str(location)
    file = open_ranges(url, endpoint_url)
    data = LazyBytes(file)
    archive = Archive(url, data=data)
    places = _places(archive, small_rows)
    tables = {
        name: RangedTensor(
            name,
            torch.float32,
            archive.payloads.shape(name),
            data[place.begin : place.begin + place.size],
        )
        for name, place in places.items()
    }
    beside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{beside.name}-archive-", dir=beside.parent) as folder:
        path = Path(folder) / Path(url).name
        with os_errors(path):
            _copy(file, path, sorted(places.values()))
        yield ArchiveHere(path, tables)


def _places(archive: Archive, small_rows: int) -> dict[str, Record]:
    """Where the rows of large weights lie that are tables of lookups and nothing else."""
    nodes = archive.program.graph_module.graph.nodes
    bags: set[str] = set()  # which are cut however few rows they have
    lookups: Counter[str] = Counter()
    for node in nodes:
        operator = node.target.removeprefix(_OPERATOR)
        if operator not in LOOKUPS | {"embedding.default"}:
            continue
        for argument in node.inputs:
            if argument.name == "weight" and argument.arg.as_tensor is not None:
                lookups[argument.arg.as_tensor.name] += 1
                if operator in LOOKUPS:
                    bags.add(argument.arg.as_tensor.name)
    uses = count_uses(nodes)
    outputs = {output.node for output in archive.signature.outputs}
    places = {}
    for value, name in archive.signature.tensors.items():
        looked_up = lookups[value] == uses.get(value, 0) > 0 and value not in outputs
        place = archive.payloads.rows_at(name) if looked_up else None
        if place is None or place.size < LEAST_BYTES:
            continue
        if value in bags or archive.payloads.shape(name)[0] >= small_rows:
            places[name] = place
    return places


def _copy(file: RangedFile, path: Path, holes: Sequence[Record]) -> None:
    """Copy `file` but for `holes`, which become zeros."""
    with path.open("wb") as copy:
        copy.truncate(file.size_bytes)
        begin = 0
        for end, behind in [*((h.begin, h.begin + h.size) for h in holes), (file.size_bytes, 0)]:
            while begin < end:
                chunk = read_bytes(file, begin, min(CHUNK_BYTES, end - begin))
                copy.seek(begin)
                copy.write(chunk)
                begin += len(chunk)
            begin = behind
        for hole in holes:
            copy.seek(hole.crc_begin)
            copy.write(struct.pack("<L", _checksum_of_zeros(hole.size)))


def _checksum_of_zeros(size: int) -> int:
    zeros, checksum = bytes(min(size, CHUNK_BYTES)), 0
    for begin in range(0, size, CHUNK_BYTES):
        checksum = zlib.crc32(zeros[: size - begin], checksum)
    return checksum
