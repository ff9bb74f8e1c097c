"""What a query to a model holds, and how it becomes rows: features, id rules, named tensors.

A *feature* is an input of ids. Several features may share a table. How a feature's ids become row
numbers is its id rule; what happens to an id that no rule knows is its `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from erless.specs.artifact import FileEntry, Frozen

__all__ = [
    "NAME",
    "POOLED",
    "Datatype",
    "ExactIds",
    "FeatureSpec",
    "HashedIds",
    "IdRule",
    "ModuloIds",
    "NamedTensor",
    "Pooling",
    "Unknown",
    "VocabularyIds",
]

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"  # of models, tables, features: in URLs and file names
Datatype = Literal[
    "BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES"
]


class Pooling(StrEnum):
    """How the rows of one bag become one vector. An empty bag is the zero vector under each.

    `none`, of features only: each id is a bag of its own, its row the vector, in the ids' order.
    """

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    WEIGHTED_SUM = "weighted_sum"
    NONE = "none"


POOLED = tuple(pooling for pooling in Pooling if pooling is not Pooling.NONE)


class ExactIds(Frozen):
    """An id is a row number, below `rows` where the table's last rows are no ids'."""

    kind: Literal["exact"] = "exact"
    rows: int | None = Field(None, gt=0)

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out rows where all are, so that digests stay what they were."""
        fields = dump(self)
        return {key: value for key, value in fields.items() if key != "rows" or value}


class ModuloIds(Frozen):
    """The row is `id mod rows`, never negative; every id is known."""

    kind: Literal["modulo"] = "modulo"
    rows: int = Field(gt=0, description="rows that ids are spread over, the table's first")


class HashedIds(Frozen):
    """The row is `hash(id) mod rows`; every id is known.

    `xxh64` is XXH64 of the string's UTF-8 bytes, or of an integer's eight little-endian ones;
    `splitmix64` mixes an integer XOR `seed` (Steele et al. 2014) and takes no strings.
    """

    kind: Literal["hash"] = "hash"
    function: Literal["xxh64", "splitmix64"] = "xxh64"
    seed: int = Field(0, ge=0, lt=1 << 64)
    rows: int = Field(gt=0, description="rows that ids are spread over, the table's first")


class VocabularyIds(Frozen):
    """A file gives each known id its row; see `erless.dlrm.vocabulary`."""

    kind: Literal["vocabulary"] = "vocabulary"
    keys: Literal["string", "int64"]
    entries: int = Field(ge=0)
    file: FileEntry


IdRule = Annotated[ExactIds | ModuloIds | HashedIds | VocabularyIds, Field(discriminator="kind")]

# What an unknown id does: refuse the query; take no part, so that alone it gives the zero vector;
# or stand for a row.
Unknown = Literal["reject", "zero"] | Annotated[int, Field(ge=0)]


class FeatureSpec(Frozen):
    """One feature, an input of ids.

    In a model whose tower is a graph, `ids`, `offsets` and `weights` name tensors: inputs of the
    model, or results of its front. Without `offsets` and `lengths`, ids of pooled features are
    (bags, ids of each bag), and ids of any shape give vectors of that shape and dim where nothing
    is pooled. With `offsets`, ids are one after the other, and offsets are one more than there are
    bags: where each bag begins, and where the last ends. With `lengths` likewise, (bags,): how many
    ids each bag has. In other models a feature is a row of the KeyedJaggedTensor.

    Args:
        padding_idx: an id that takes no part in a pooled bag.
        rule: how ids become rows.
        unknown: what an id that is no row does.
        per: whether its ids come for each sample, or once for the whole request.
    """

    name: str = Field(pattern=NAME)
    table: str = Field(pattern=NAME)
    pooling: Pooling = Pooling.SUM
    padding_idx: int | None = None
    rule: IdRule = ExactIds()
    unknown: Unknown = "reject"
    per: Literal["sample", "request"] = "sample"
    ids: str | None = Field(None, pattern=NAME)
    offsets: str | None = Field(None, pattern=NAME)
    weights: str | None = Field(None, pattern=NAME)
    lengths: str | None = Field(None, pattern=NAME)

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out lengths where there are none, so that digests stay what they were."""
        fields = dump(self)
        return {key: value for key, value in fields.items() if key != "lengths" or value}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ids is None and (self.offsets or self.weights or self.lengths):
            raise ValueError(
                f"feature {self.name} has offsets, lengths or weights, but names no ids"
            )
        if self.offsets and self.lengths:
            raise ValueError(f"feature {self.name} has offsets and lengths: one tells of the other")
        if self.ids and (self.pooling is Pooling.WEIGHTED_SUM) != bool(self.weights):
            raise ValueError(f"feature {self.name}: weights go with the pooling weighted_sum")
        bags = self.offsets or self.lengths or self.padding_idx is not None
        if self.pooling is Pooling.NONE and bags:
            raise ValueError(f"feature {self.name} pools nothing: offsets and padding do not apply")
        return self


class NamedTensor(Frozen):
    """An input or output: its name, datatype in the protocol's words, and shape.

    -1 stands for a size that differs from call to call. The first size of an input is the samples,
    or 1 where it comes once for the whole request. An input per `entry` has a first size of its
    own: ids of all samples one after the other, or their weights or offsets.
    """

    name: str = Field(pattern=NAME)
    datatype: Datatype
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    per: Literal["sample", "request", "entry"] = "sample"
