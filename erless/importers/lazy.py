"""Tensors whose rows are read as they are asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from erless.dlrm.archive.container import Bytes
from erless.errors import ArtifactError, CheckpointError

__all__ = ["LazyTensor", "RangedTensor", "checkpoint_errors"]


class LazyTensor(ABC):
    """A tensor of which rows are read as they are asked for.

    Args:
        name: of the tensor, for errors.
        dtype, shape: of the whole tensor.
    """

    def __init__(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape

    @abstractmethod
    def __getitem__(self, rows: slice) -> Tensor:
        """Rows `rows.start` to `rows.stop - 1`.

        Raises:
            CheckpointError: what is read is damaged.
        """

    @abstractmethod
    def scalar(self) -> Tensor:
        """The tensor, where it has no dimension."""

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def whole(self) -> Tensor:
        """The tensor in memory. Raises as reading rows does."""
        return self[0 : len(self)] if self.shape else self.scalar()


class RangedTensor(LazyTensor):
    """A tensor whose elements lie in order in a file that is read by ranges.

    Args:
        name, dtype, shape: of the tensor.
        data: its elements.
    """

    def __init__(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], data: Bytes) -> None:
        super().__init__(name, dtype, shape)
        self._data = data

    def __getitem__(self, rows: slice) -> Tensor:
        begin, end, _ = rows.indices(self.shape[0])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._read(begin * row, max(begin, end) * row).view(-1, *self.shape[1:])

    def scalar(self) -> Tensor:
        """The tensor, where it has no dimension."""
        return self._read(0, self.dtype.itemsize).reshape(())

    def _read(self, begin: int, end: int) -> Tensor:
        with checkpoint_errors():
            part = np.array(self._data[begin:end])
        return torch.from_numpy(part).view(self.dtype)


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """What is wrong with a file is wrong with the checkpoint.

    Raises:
        CheckpointError: for an ArtifactError inside the block.
    """
    try:
        yield
    except ArtifactError as error:
        raise CheckpointError(str(error)) from error
