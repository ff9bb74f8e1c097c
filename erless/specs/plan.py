"""The plan: which rows live in which function, at which precision, on how many replicas.

A plan names rows by *rank* in the profile's hotness order (`RankRange`), so it stays small at any
table size; pack turns ranks into row ids with the profile whose digest the plan carries.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from erless.specs.artifact import Artifact, Frozen

__all__ = ["Plan", "Precision", "RankRange", "ShardPlan", "Tier"]


class Tier(StrEnum):
    """What a shard is for."""

    RESIDENT = "resident"
    HOT = "hot"
    WARM = "warm"
    COLD = "cold"
    FROZEN = "frozen"


class Precision(StrEnum):
    """How rows are stored. int8 and int4 are row-wise: fp16 scale and bias precede nothing else."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"

    def row_bytes(self, dim: int) -> int:
        """Bytes of one stored row of `dim` elements, with its scale and bias (fp16 each).

        >>> [each.row_bytes(32) for each in Precision]
        [128, 64, 36, 20]
        """
        if self is Precision.FP32:
            return 4 * dim
        if self is Precision.FP16:
            return 2 * dim
        return (dim if self is Precision.INT8 else (dim + 1) // 2) + 4


class RankRange(Frozen):
    """Ranks `start` … `stop - 1` of one table, hottest first."""

    table: str
    start: int = Field(ge=0)
    stop: int = Field(gt=0)

    @property
    def rows(self) -> int:
        """Rows in the range."""
        return self.stop - self.start


class ShardPlan(Frozen):
    """One shard: a function of its own, or (tier resident) rows inside every gateway replica."""

    name: str = Field(pattern=r"^[a-z][a-z0-9\-]{0,39}$")
    tier: Tier
    slices: tuple[RankRange, ...] = Field(min_length=1)
    precision: Precision = Precision.FP32


class Plan(Artifact):
    """All shards of a release. Every row of every table is in exactly one of them."""

    KIND: ClassVar[str] = "erless plan"

    model_digest: str
    profile_digest: str
    policy: str
    shards: tuple[ShardPlan, ...]
