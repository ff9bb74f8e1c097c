"""The counts of one table in a profile: which rows the log touched, hottest first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError
from erless.specs.profile import TableAccess
from erless.storage.atomic import path_inside
from erless.storage.tensors import TensorFile

__all__ = ["open_counts", "read_histogram"]

NAMES = ("ids", "counts")
CHUNK = 1 << 20  # rows compared at a time


def open_counts(profile: Path, access: TableAccess, *, placed: bool = False) -> TensorFile | None:
    """The file of `access` in the profile's folder: `ids` and `counts`, each (touched,) int64.

    Counts are at least 1 and do not rise, so that a row's place is its rank; in a placed profile
    they may. None where the log never touched the table.

    Raises:
        ArtifactError: it is missing, holds other tensors, or its counts are none of a log's.
    """
    if access.counts is None:
        return None
    file = TensorFile(path_inside(profile, access.counts.path))
    strange = sorted(set(file.tensors) - set(NAMES))
    if strange:
        raise ArtifactError(f"{file.path}: tensor {strange[0]} is not known: ids and counts are")
    for name in NAMES:
        info = file.info(name)
        if info.dtype_name != "I64" or info.shape != (access.touched,):
            raise ArtifactError(
                f"{file.path}: {name} are {info.dtype_name} {list(info.shape)}, expected I64 "
                f"[{access.touched}]: so many rows were touched"
            )
    _check_counts(file, file.map("counts"), access, placed)
    return file


def read_histogram(
    profile: Path, access: TableAccess
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Distinct counts, falling, and how many rows have each; None where there is no histogram.

    Raises:
        ArtifactError: it is missing, or not what the profile says of the table.
    """
    if access.histogram is None:
        return None
    file = TensorFile(path_inside(profile, access.histogram.path))
    values, rows = file.read("values"), file.read("rows")
    falling = len(values) == len(rows) > 0 and (np.diff(values) < 0).all() and values[-1] > 0
    if not falling or (int(rows.sum()), int((values * rows).sum())) != (
        access.touched,
        access.accesses,
    ):
        raise ArtifactError(f"{file.path}: not the histogram that the profile speaks of")
    return values, rows


def _check_counts(
    file: TensorFile, counts: NDArray[np.int64], access: TableAccess, placed: bool
) -> None:
    total = 0
    for begin in range(0, len(counts), CHUNK):
        part = counts[begin : begin + CHUNK + 1]  # one more, to compare across the border
        rising = np.flatnonzero(part[1:] > part[:-1])
        if len(rising) and not placed:
            raise ArtifactError(
                f"{file.path}: counts rise at rank {begin + int(rising[0]) + 1:,}: they must be "
                "in falling order"
            )
        total += int(part[:CHUNK].sum(dtype=np.float64))
    least = int(counts.min(initial=1) if placed else counts[-1]) if len(counts) else 1
    if least < 1:
        raise ArtifactError(f"{file.path}: counts fall to {least}: a touched row has 1 or more")
    if abs(total - access.accesses) > total * 1e-12:
        raise ArtifactError(
            f"{file.path}: the counts add up to {total:,} accesses, the profile says "
            f"{access.accesses:,}"
        )
