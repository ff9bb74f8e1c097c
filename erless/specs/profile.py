"""The profile: how hot each row is, and how fast this code gathers, as measured.

    profile/
      profile.json                      this document
      counts/<table>.safetensors        `ids` int64 and `counts` int64, hottest first
      histograms/<table>.safetensors    of a large table, `values` and `rows` int64: distinct
                                        counts, falling, and how many rows have each; enough to
                                        plan, and all there is of a table too large to rank

Rows are ranked by count, descending; ties, and the rows that the log never touched, by id. This is
the one definition of a row's *rank* (`erless.pack.ranks`), which plans refer to. The profile of a
replan is *placed*: its ranks follow where rows lie, shard by shard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_serializer, model_validator

from erless.specs.artifact import Artifact, FileEntry, Frozen
from erless.specs.plan import Precision

__all__ = [
    "MANIFEST",
    "CurveSample",
    "DiskCurve",
    "GpuTowerCurve",
    "GpuTowerCurves",
    "Machine",
    "Profile",
    "TableAccess",
    "ThroughputCurve",
    "TowerCurve",
    "TowerSample",
]

MANIFEST = "profile.json"


class TableAccess(Frozen):
    """Accesses of one table in the log; `counts` is absent where the log never touched it."""

    table: str
    rows: int = Field(gt=0)
    samples: int = Field(ge=0, description="samples that the log covers")
    accesses: int = Field(ge=0)
    touched: int = Field(ge=0, description="distinct rows accessed")
    locality: float = Field(0.0, ge=0, le=1, description="share of the hottest 10 % of rows")
    counts: FileEntry | None = None
    histogram: FileEntry | None = Field(
        None, description="of a large table: how many rows have each count; enough to plan"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what most have none of, so that their digests stay what they were."""
        return {key: value for key, value in dump(self).items() if value or key != "histogram"}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.touched > min(self.rows, self.accesses):
            raise ValueError(
                f"table {self.table}: {self.touched:,} rows touched, of {self.rows:,} rows in "
                f"{self.accesses:,} accesses"
            )
        if self.counts and self.counts.path != f"counts/{self.table}.safetensors":
            raise ValueError(f"table {self.table}: its counts cannot lie in {self.counts.path}")
        if self.histogram and self.histogram.path != f"histograms/{self.table}.safetensors":
            raise ValueError(f"table {self.table}: no histogram lies in {self.histogram.path}")
        return self

    @property
    def pooling_factor(self) -> float:
        """Mean ids per bag."""
        return self.accesses / self.samples if self.samples else 0.0


class Machine(Frozen):
    """Where a curve was measured."""

    processor: str
    cores: int
    memory_bytes: int
    python: str
    measured_on: str


class CurveSample(Frozen):
    """One measured point: `gathers` rows per call took `seconds` of CPU (median)."""

    gathers: int = Field(ge=0)
    row_bytes: int = Field(gt=0)
    precision: Precision
    locality: float = Field(ge=0, le=1)
    vcpu: float = Field(gt=0)
    seconds: float = Field(ge=0)
    spread: float = Field(0.0, description="interquartile range ÷ median")


class ThroughputCurve(Frozen):
    """QPS(n; c) = c / (a + β·n): call overhead a, cost β per gather; seconds on one vCPU."""

    name: str
    overhead_s: float = Field(gt=0, description="a")
    gather_s: float = Field(ge=0, description="β at `row_bytes` and `precision`")
    row_bytes: int = Field(gt=0)
    precision: Precision = Precision.FP32
    locality: float = Field(0.9, ge=0, le=1, description="access skew that it was measured under")
    vcpu: float = Field(1.0, gt=0, description="cores that gathered at once during the measurement")
    residual: float = Field(0.0, ge=0, description="largest relative error of the fit")
    shipped: bool = Field(False, description="a default, not measured on the user's machine")
    machine: Machine | None = None
    samples: tuple[CurveSample, ...] = ()


class TowerSample(Frozen):
    """One measured point: the tower took `seconds` of CPU for `batch` samples (median)."""

    batch: int = Field(ge=1)
    seconds: float = Field(ge=0)
    spread: float = 0.0


class TowerCurve(Frozen):
    """CPU seconds of the dense tower for B samples: a + β·B, on one vCPU."""

    name: str
    overhead_s: float = Field(gt=0, description="a")
    sample_s: float = Field(ge=0, description="β")
    macs_per_sample: int = Field(0, ge=0, description="multiply-adds of the MLPs and interaction")
    residual: float = Field(0.0, ge=0, description="largest relative error of the fit")
    shipped: bool = Field(False, description="a default, not measured on the user's machine")
    machine: Machine | None = None
    samples: tuple[TowerSample, ...] = ()


class GpuTowerCurve(Frozen):
    """Seconds of one GPU for a pass of B samples: a + β·B, inputs and answer copied."""

    name: str = Field(description="of the model whose tower it is")
    gpu: str = Field(description="as its driver calls it")
    precision: Literal["fp32", "bf16"] = "fp32"
    overhead_s: float = Field(gt=0, description="a")
    sample_s: float = Field(ge=0, description="β")
    cpu_s: float = Field(ge=0, description="CPU of one query at the function, beside the GPU")
    macs_per_sample: int = Field(0, ge=0, description="multiply-adds of the layers")
    residual: float = Field(0.0, ge=0, description="largest relative error of the fit")
    machine: Machine | None = None
    samples: tuple[TowerSample, ...] = ()


class GpuTowerCurves(Frozen):
    """The part of `benchmarks/gpu_tower.py`'s report that a profile takes."""

    model_config = ConfigDict(extra="ignore")

    curves: tuple[GpuTowerCurve, ...] = Field(min_length=1)


class DiskCurve(Frozen):
    """Random reads of one block of 4 KiB from a local disk, as the disk tier makes them."""

    reads_per_s: float = Field(gt=0, description="at full depth")
    read_cpu_s: float = Field(gt=0, description="CPU of one, in the function and in the kernel")
    seek_s: float = Field(gt=0, description="median of one alone")
    engine: Literal["io_uring", "pread"]
    direct: bool = Field(description="around the page cache")
    machine: Machine | None = None


class Profile(Artifact):
    """Hotness of each table, in the model's order, and the curves measured with it."""

    KIND: ClassVar[str] = "erless profile"

    model_digest: str = Field(description="digest of the bundle whose tables these are")
    sources: tuple[str, ...] = Field(description="the logs, as given")
    tables: tuple[TableAccess, ...]
    curves: tuple[ThroughputCurve, ...] = ()
    towers: tuple[TowerCurve, ...] = ()
    disks: tuple[DiskCurve, ...] = ()
    placed: bool = Field(
        False, description="rows are ranked as `erless replan` placed them: counts may rise"
    )
    gpus: tuple[GpuTowerCurve, ...] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what most have none of, so that their digests stay what they were."""
        later = ("disks", "placed", "gpus")
        return {key: value for key, value in dump(self).items() if value or key not in later}

    @model_validator(mode="after")
    def _each_table_once(self) -> Self:
        names = [access.table for access in self.tables]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"table {twice} is listed twice")
        return self
