"""What was measured of a machine, as a profile keeps it."""

from __future__ import annotations

from typing import Any, NamedTuple

from erless.specs.profile import DiskCurve, Profile, ThroughputCurve, TowerCurve

__all__ = ["MachineCurves"]


class MachineCurves(NamedTuple):
    """Throughput of gathers, latency of the tower, and reads of the disk."""

    gathers: tuple[ThroughputCurve, ...] = ()
    towers: tuple[TowerCurve, ...] = ()
    disks: tuple[DiskCurve, ...] = ()

    def over(self, known: Profile) -> MachineCurves:
        """These, and of what was not measured those of the profile that is there."""
        return MachineCurves(
            self.gathers or known.curves, self.towers or known.towers, self.disks or known.disks
        )

    def fields(self) -> dict[str, Any]:
        """As a profile has them."""
        return {"curves": self.gathers, "towers": self.towers, "disks": self.disks}
