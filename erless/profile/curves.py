"""What was measured of a machine, as a profile keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from erless.errors import ArtifactError
from erless.specs.profile import (
    DiskCurve,
    GpuTowerCurve,
    GpuTowerCurves,
    Profile,
    ThroughputCurve,
    TowerCurve,
)
from erless.specs.strict.findings import first_finding
from erless.storage.atomic import os_errors

__all__ = ["MachineCurves", "read_gpu_towers"]


class MachineCurves(NamedTuple):
    """Throughput of gathers, the tower on a CPU and on a GPU, and reads of the disk."""

    gathers: tuple[ThroughputCurve, ...] = ()
    towers: tuple[TowerCurve, ...] = ()
    disks: tuple[DiskCurve, ...] = ()
    gpus: tuple[GpuTowerCurve, ...] = ()

    def over(self, known: Profile) -> MachineCurves:
        """These, and of what was not measured those of the profile that is there."""
        return MachineCurves(
            self.gathers or known.curves,
            self.towers or known.towers,
            self.disks or known.disks,
            self.gpus or known.gpus,
        )

    def fields(self) -> dict[str, Any]:
        """As a profile has them."""
        return {
            "curves": self.gathers,
            "towers": self.towers,
            "disks": self.disks,
            "gpus": self.gpus,
        }


def read_gpu_towers(path: Path) -> tuple[GpuTowerCurve, ...]:
    """The curves of a report that `benchmarks/gpu_tower.py` wrote.

    Raises:
        ArtifactError: there is no such file, or it is no such report.
    """
    with os_errors(path, "read"):
        data = path.read_bytes()
    try:
        return GpuTowerCurves.model_validate_json(data).curves
    except ValidationError as error:
        keys, words = first_finding(error)
        where = f"{path}: {'.'.join(map(str, keys))}"
        raise ArtifactError(f"{where}: {words}: no report of benchmarks/gpu_tower.py") from error
