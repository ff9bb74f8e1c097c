"""`erless profile --disk`: what reads cost, kept beside the other curves, and planned with."""

from __future__ import annotations

from pathlib import Path

import pytest

from erless.errors import StorageError
from erless.plan.costs.measured import MeasuredSpeed, disk_terms
from erless.profile import disk as disk_profile
from erless.profile.access import extend_profile
from erless.profile.curves import MachineCurves
from erless.profile.disk import measure_disk
from erless.specs.profile import MANIFEST, DiskCurve, Profile


def curve(read_cpu_s: float = 5e-6) -> DiskCurve:
    return DiskCurve(
        reads_per_s=50_000, read_cpu_s=read_cpu_s, seek_s=1e-4, engine="pread", direct=True
    )


def test_a_disk_is_measured_and_the_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_profile, "QUICK_FILE_BYTES", 32 << 20)
    monkeypatch.setattr(disk_profile, "QUICK_SECONDS", 0.1)
    found = measure_disk(tmp_path, quick=True)
    assert found.reads_per_s > 0
    assert 0 < found.read_cpu_s < 1e-3
    assert 0 < found.seek_s < 1
    assert found.machine is not None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_profile, "FILE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="are needed twice over"):
        measure_disk(tmp_path)


def test_a_disk_stays_beside_what_is_measured_later(tmp_path: Path) -> None:
    extend_profile(tmp_path / "p", None, MachineCurves(disks=(curve(),)))
    assert Profile.load(tmp_path / "p" / MANIFEST).disks == (curve(),)
    extend_profile(tmp_path / "p", None, MachineCurves())
    assert Profile.load(tmp_path / "p" / MANIFEST).disks == (curve(),)
    extend_profile(tmp_path / "p", None, MachineCurves(disks=(curve(1e-5),)))
    assert Profile.load(tmp_path / "p" / MANIFEST).disks == (curve(1e-5),)


def test_a_profile_without_a_disk_is_written_as_before() -> None:
    profile = Profile.create(model_digest="", sources=(), tables=())
    assert "disks" not in profile.model_dump()


def test_plans_take_what_was_measured() -> None:
    terms = disk_terms(MeasuredSpeed(disks=(curve(),)))
    assert (terms.read_s, terms.seek_s) == (5e-6, 1e-4)
    assert "pread" in terms.source
    assert "shipped default" in disk_terms(MeasuredSpeed()).source
