"""Prices: instance types with vCPU, GiB, GPUs and $/h on demand, as dated data.

The file that ships is `prices.csv`; a user's own has the same columns, and a first line that
starts with `#` and says where it is from and of what date.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from erless.errors import PlanError
from erless.storage.atomic import os_errors

__all__ = ["InstanceType", "Prices", "read_prices"]

SHIPPED = Path(__file__).with_name("prices.csv")
HOURS_PER_MONTH = 730.0
GIB = 1 << 30
COLUMNS = ("instance_type", "vcpu", "memory_gib", "gpu", "usd_per_hour")


@dataclass(frozen=True)
class InstanceType:
    """One instance type. Kubelet and system keep 0.1 vCPU, 0.25 GiB and 3 % of the memory."""

    name: str
    vcpu: float
    memory_gib: float
    gpu: int
    usd_per_hour: float

    @property
    def usable_vcpu(self) -> float:
        """vCPU for containers."""
        return self.vcpu - 0.1

    @property
    def usable_bytes(self) -> float:
        """Memory for containers."""
        return (self.memory_gib * 0.97 - 0.25) * GIB

    @property
    def usd_per_month(self) -> float:
        """730 hours."""
        return self.usd_per_hour * HOURS_PER_MONTH


@dataclass(frozen=True)
class Prices:
    """Instance types without GPU (`types`) that nodes are chosen from, and all that were read."""

    source: str
    date: str
    every: tuple[InstanceType, ...]

    @cached_property
    def types(self) -> tuple[InstanceType, ...]:
        """Types that sparse functions and a CPU tower run on: the cheapest of each shape."""
        cheapest: dict[tuple[float, float], InstanceType] = {}
        for kind in sorted(self.cpu_types, key=lambda kind: (kind.usd_per_hour, kind.name)):
            cheapest.setdefault((kind.vcpu, kind.memory_gib), kind)
        types_kept = set(cheapest.values())
        return tuple(kind for kind in self.every if kind in types_kept)

    @property
    def cpu_types(self) -> tuple[InstanceType, ...]:
        """All instance types without GPUs."""
        return tuple(kind for kind in self.every if not kind.gpu)

    @property
    def gpu_types(self) -> tuple[InstanceType, ...]:
        """Instance types with GPUs, for the dense tower."""
        return tuple(kind for kind in self.every if kind.gpu)


def read_prices(path: Path | None = None) -> Prices:
    """Read a price file; without a path, the one that ships.

    Raises:
        ArtifactError: there is no such file.
        PlanError: a column is missing, unknown or given twice, a type is listed twice, or a value
            is not a positive number; names the line.
    """
    path = path or SHIPPED
    with os_errors(path, "read"):
        data = path.read_bytes()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PlanError(f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}") from error
    heading = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    rows = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]
    types = _types(path, rows)
    prices = Prices(str(path.name), _date(heading), tuple(types))
    if not prices.cpu_types:
        raise PlanError(f"{path}: no instance type without GPU")
    return prices


def _types(path: Path, rows: list[tuple[int, str]]) -> list[InstanceType]:
    """The types of a table whose first row names its columns; rows come with their line numbers."""
    table = csv.reader(line for _, line in rows)
    columns = [name.strip() for name in next(table, [])]
    for name in COLUMNS:
        if name not in columns:
            raise PlanError(f"{path}: column {name} is missing; expected {', '.join(COLUMNS)}")
    for name in columns:
        if name not in COLUMNS or columns.count(name) > 1:
            what = "is given twice" if name in COLUMNS else "is not known"
            raise PlanError(f"{path}: column {name} {what}; expected {', '.join(COLUMNS)}")
    lines: dict[str, int] = {}
    types = []
    for values in table:
        line = rows[table.line_num - 1][0]
        where = f"{path}:{line}"
        if len(values) != len(columns):
            raise PlanError(f"{where}: {len(values)} values for {len(columns)} columns")
        kind = _type(where, dict(zip(columns, values, strict=True)))
        if kind.name in lines:
            raise PlanError(f"{where}: {kind.name} is listed already in line {lines[kind.name]}")
        lines[kind.name] = line
        types.append(kind)
    return types


def _type(where: str, row: dict[str, str]) -> InstanceType:
    name = row["instance_type"].strip()
    if not name:
        raise PlanError(f"{where}: the type has no name")
    numbers = {}
    for column in COLUMNS[1:]:
        try:
            numbers[column] = float(row[column] or 0)
        except ValueError:
            raise PlanError(f"{where}: {name}: {column} is {row[column]!r}, no number") from None
        least = 0.0 if column == "gpu" else 1e-9
        if not least <= numbers[column] < math.inf:
            raise PlanError(f"{where}: {name}: {column} is {row[column]}: it must be above 0")
    if numbers["gpu"] % 1:
        raise PlanError(f"{where}: {name}: gpu is {row['gpu']}: it must be a whole number")
    return InstanceType(
        name, numbers["vcpu"], numbers["memory_gib"], int(numbers["gpu"]), numbers["usd_per_hour"]
    )


def _date(heading: str) -> str:
    cheapest = re.search(r"\d{4}-\d{2}(-\d{2})?", heading)
    return cheapest.group() if cheapest else "undated"
