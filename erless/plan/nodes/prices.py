"""Prices: instance types with vCPU, GiB, GPUs and $/h on demand, as dated data.

The file that ships is `prices.csv`; a user's own has the same columns, and a first line that
starts with `#` and says where it is from and of what date.
"""

from __future__ import annotations

import csv
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
        found: dict[tuple[float, float], InstanceType] = {}
        for kind in sorted(self.cpu_types, key=lambda each: (each.usd_per_hour, each.name)):
            found.setdefault((kind.vcpu, kind.memory_gib), kind)
        chosen = set(found.values())
        return tuple(each for each in self.every if each in chosen)

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
        PlanError: a column is missing or a value is not a positive number; names the line.
    """
    path = path or SHIPPED
    with os_errors(path, "read"):
        lines = path.read_text(encoding="utf-8").splitlines()
    heading = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    rows = csv.DictReader(line for line in lines if line.strip() and not line.startswith("#"))
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise PlanError(f"{path}: column {missing[0]} is missing; expected {', '.join(COLUMNS)}")
    types = []
    for row in rows:
        try:
            entry = InstanceType(
                row["instance_type"],
                float(row["vcpu"]),
                float(row["memory_gib"]),
                int(row["gpu"] or 0),
                float(row["usd_per_hour"]),
            )
        except (TypeError, ValueError) as error:
            raise PlanError(f"{path}: {row['instance_type']}: {error}") from error
        if min(entry.vcpu, entry.memory_gib, entry.usd_per_hour) <= 0:
            raise PlanError(f"{path}: {entry.name}: vCPU, memory and price must be above 0")
        types.append(entry)
    prices = Prices(str(path.name), _date(heading), tuple(types))
    if not prices.cpu_types:
        raise PlanError(f"{path}: no instance type without GPU")
    return prices


def _date(heading: str) -> str:
    found = re.search(r"\d{4}-\d{2}(-\d{2})?", heading)
    return found.group() if found else "undated"
