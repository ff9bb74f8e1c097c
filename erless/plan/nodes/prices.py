"""Prices: instance types with vCPU, GiB, GPUs and $/h on demand, as dated data.

The file that ships is `prices.csv`; a user's own has the same columns, of which `MORE_COLUMNS` may
be left out, and a first line that starts with `#` and says where it is from and of what date.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from erless.errors import PlanError
from erless.plan.nodes.hull import Price, hull_prices
from erless.specs.dollars import month_usd
from erless.specs.planning import ARCHITECTURES, Architecture
from erless.storage.atomic import os_errors, staged_file

__all__ = ["InstanceType", "Prices", "read_prices", "write_prices"]

SHIPPED = Path(__file__).with_name("prices.csv")
SHIPPED_DISKS = Path(__file__).with_name("nvme.csv")
DISK_SHARE = 0.85  # of a local disk for rows: images and logs lie there, too
GIB = 1 << 30
COLUMNS = ("instance_type", "vcpu", "memory_gib", "gpu", "usd_per_hour")
# May be left out, or empty: x86 without NVMe, not sold on the spot market, room by kubelet's rule
MORE_COLUMNS = (
    *("arch", "allocatable_vcpu", "allocatable_gib"),
    *("local_nvme_gb", "spot_usd_per_hour"),
)


@dataclass(frozen=True)
class InstanceType:
    """One instance type.

    Args:
        name: as the provider has it.
        vcpu: of the machine.
        memory_gib: of the machine.
        gpu: how many it has.
        usd_per_hour: what a node costs.
        arch: amd64 or arm64, as Kubernetes labels nodes.
        allocatable_vcpu: for containers; 0: all but 0.1.
        allocatable_gib: likewise; 0: all but 0.25 GiB and 3 %.
        local_nvme_gb: size of the disks that the price includes.
        spot_usd_per_hour: of a node that may be taken back; 0: none are sold.
        read_iops: random reads/s of 4 KiB that its local disks are rated at; 0: not known.
    """

    name: str
    vcpu: float
    memory_gib: float
    gpu: int
    usd_per_hour: float
    arch: Architecture = "amd64"
    allocatable_vcpu: float = 0.0
    allocatable_gib: float = 0.0
    local_nvme_gb: float = 0.0
    spot_usd_per_hour: float = 0.0
    read_iops: float = 0.0

    @property
    def disk_bytes(self) -> float:
        """Of its local disk, for rows; 0 where its speed is not known."""
        return DISK_SHARE * self.local_nvme_gb * 1e9 if self.read_iops else 0.0

    @property
    def usable_vcpu(self) -> float:
        """vCPU for containers."""
        return self.allocatable_vcpu or self.vcpu - 0.1

    @property
    def usable_bytes(self) -> float:
        """Memory for containers."""
        return (self.allocatable_gib or self.memory_gib * 0.97 - 0.25) * GIB

    @cached_property
    def room(self) -> tuple[float, float, float, float]:
        """What a node has for containers: vCPU, bytes, and of its disk bytes and reads/s."""
        return (self.usable_vcpu, self.usable_bytes, self.disk_bytes, self.read_iops)

    def disk_holds(self, other: InstanceType) -> bool:
        """Whether its disk is as large and as fast as that of `other`."""
        return self.disk_bytes >= other.disk_bytes and self.read_iops >= other.read_iops

    @property
    def usd_per_month(self) -> float:
        """730 hours."""
        return month_usd(self.usd_per_hour)


@dataclass(frozen=True)
class Prices:
    """Instance types without GPU (`types`) that nodes are chosen from, and all that were read."""

    source: str
    date: str
    every: tuple[InstanceType, ...]
    disks: bool = False  # whether local disks are wanted, too

    @cached_property
    def types(self) -> tuple[InstanceType, ...]:
        """Types worth choosing for sparse functions and a CPU tower.

        Left out is a type of which another has as much vCPU and memory (and disk, where disks are
        wanted) at no higher price.
        """
        kept: list[InstanceType] = []
        for kind in sorted(self.cpu_types, key=_cheapest_and_largest):
            if not any(
                other.usable_vcpu >= kind.usable_vcpu
                and other.usable_bytes >= kind.usable_bytes
                and (not self.disks or other.disk_holds(kind))
                for other in kept
            ):
                kept.append(kind)
        return tuple(kind for kind in self.every if kind in kept)

    @cached_property
    def hull(self) -> tuple[Price, ...]:
        """Prices of a vCPU and a byte at which no type sells below."""
        months = ((kind, kind.usd_per_month) for kind in self.types)
        points = [(kind.usable_vcpu / usd, kind.usable_bytes / usd) for kind, usd in months]
        return tuple(hull_prices(points))

    def least_usd(self, vcpu: float, memory: float) -> float:
        """Dollars a month below which no nodes have so many vCPU and bytes."""
        return max(price.vcpu * vcpu + price.memory * memory for price in self.hull) * (1 - 1e-9)

    @property
    def cpu_types(self) -> tuple[InstanceType, ...]:
        """All instance types without GPUs."""
        return tuple(kind for kind in self.every if not kind.gpu)

    @property
    def gpu_types(self) -> tuple[InstanceType, ...]:
        """Instance types with GPUs, for the dense tower."""
        return tuple(kind for kind in self.every if kind.gpu)

    def limited(self, archs: Sequence[str], spot: bool) -> Prices:
        """Only nodes of these architectures, at their spot price where `spot` is wanted.

        Raises:
            PlanError: no such type is left for a function without a GPU.
        """
        every = [kind for kind in self.every if kind.arch in archs]
        what = " or ".join(archs)
        if spot:
            every = [
                replace(kind, usd_per_hour=kind.spot_usd_per_hour)
                for kind in every
                if kind.spot_usd_per_hour
            ]
            what += " with a spot price"
        if not any(not kind.gpu for kind in every):
            raise PlanError(
                f"{self.source}: no instance type of {what}: add one to the table "
                "(`erless prices` makes it from the provider's own price list)"
            )
        return replace(self, every=tuple(every))


def _cheapest_and_largest(kind: InstanceType) -> tuple[float, float, float, str]:
    return kind.usd_per_hour, -kind.usable_vcpu, -kind.usable_bytes, kind.name


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


def write_prices(path: Path, source: str, types: Sequence[InstanceType]) -> None:
    """Write a table that `read_prices` reads; `source` says where it is from and of what date.

    Raises:
        StorageError: the disk refused.
    """
    columns = [*COLUMNS[:4], *MORE_COLUMNS[:4], COLUMNS[4], MORE_COLUMNS[4]]
    lines = [f"# {source}", ",".join(columns)]
    for kind in types:
        values = (getattr(kind, "name" if name == "instance_type" else name) for name in columns)
        lines.append(",".join(_cell(value) for value in values))
    with staged_file(path) as stage, os_errors(stage):
        stage.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


def _types(path: Path, rows: list[tuple[int, str]]) -> list[InstanceType]:
    """The types of a table whose first row names its columns; rows come with their line numbers."""
    table = csv.reader(line for _, line in rows)
    columns = [name.strip() for name in next(table, [])]
    for name in COLUMNS:
        if name not in columns:
            raise PlanError(f"{path}: column {name} is missing; expected {', '.join(COLUMNS)}")
    known = (*COLUMNS, *MORE_COLUMNS)
    for name in columns:
        if name not in known or columns.count(name) > 1:
            what = "is given twice" if name in known else "is not known"
            raise PlanError(f"{path}: column {name} {what}; expected {', '.join(known)}")
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
    for column in (*COLUMNS[1:], *MORE_COLUMNS[1:]):
        text = row.get(column, "").strip()
        try:
            numbers[column] = float(text or 0)
        except ValueError:
            raise PlanError(f"{where}: {name}: {column} is {text!r}, no number") from None
        least = 0.0 if column == "gpu" or column in MORE_COLUMNS else 1e-9
        if not least <= numbers[column] < math.inf:
            raise PlanError(f"{where}: {name}: {column} is {text}: it must be above 0")
    if numbers["gpu"] % 1:
        raise PlanError(f"{where}: {name}: gpu is {row['gpu']}: it must be a whole number")
    named = row.get("arch", "").strip() or ARCHITECTURES[0]
    arch = next((known for known in ARCHITECTURES if known == named), None)
    if arch is None:
        raise PlanError(f"{where}: {name}: arch is {named!r}: {' or '.join(ARCHITECTURES)}")
    for room, whole in (("allocatable_vcpu", "vcpu"), ("allocatable_gib", "memory_gib")):
        if numbers[room] > numbers[whole]:
            raise PlanError(f"{where}: {name}: {room} is {row[room]}, the machine has {row[whole]}")
    gpu = int(numbers.pop("gpu"))
    iops = _shipped_iops().get(name, 0.0)
    return InstanceType(name, gpu=gpu, arch=arch, read_iops=iops, **numbers)


@cache
def _shipped_iops() -> dict[str, float]:
    """Random reads/s that local disks are rated at, by type."""
    with SHIPPED_DISKS.open(encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {row["instance_type"]: float(row["read_iops"]) for row in rows}


def _date(heading: str) -> str:
    found = re.search(r"\d{4}-\d{2}(-\d{2})?", heading)
    return found.group() if found else "undated"
