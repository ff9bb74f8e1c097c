"""Files of queries to a model cut from a graph: its inputs by their names.

A file is safetensors and holds S samples, which are cut into queries of `batch`:

    <input>            (S, …)   of an input that comes for each sample
    <input>            (Q, …)   of one that comes once per request: one for each of the Q queries
    <input>            (n, …)   of entries of all samples, one after the other; <input>.weights too
    <input>.lengths    (S,)     an input as well: how many of these entries each sample has
    <input>            (n,)     uint8, where the input is strings: all of them, one after the other
    <input>.offsets    (S + 1,) int64, where each string begins
    labels             (S,)     float32, only where known: of the first output
    metadata           batch: samples per query
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.infer_request import DTYPES
from erless.errors import QueryError
from erless.specs.features import NamedTensor
from erless.storage.digests import FileDigest
from erless.storage.tensors import TensorFile, write_tensors

__all__ = ["GraphQueryFile", "served_inputs", "write_graph_queries"]

Array = NDArray[Any]
_OFFSETS = ".offsets"
_LABELS = "labels"
_KJT = {"values", "lengths", "dense", "weights"}


def served_inputs(listed: Sequence[Mapping[str, Any]]) -> tuple[NamedTensor, ...]:
    """The inputs that a gateway's metadata lists; none where they are a KeyedJaggedTensor's.

    Raises:
        KeyError, TypeError, ValueError: they are not the protocol's.
    """
    names = {tensor["name"] for tensor in listed}
    if names <= _KJT:
        return ()
    return tuple(
        NamedTensor(
            name=tensor["name"],
            datatype=tensor["datatype"],
            shape=tuple(tensor["shape"]),
            per=_guessed(tensor, names),
        )
        for tensor in listed
    )


def _guessed(tensor: Mapping[str, Any], names: set[str]) -> Literal["sample", "request", "entry"]:
    if tensor["shape"][:1] == [1]:
        return "request"
    return "entry" if _lengths_of(tensor["name"]) in names else "sample"


def _lengths_of(entries: str) -> str:
    """The input that says how many entries each sample has.

    >>> _lengths_of("clicked.weights")
    'clicked.lengths'
    """
    return entries.removesuffix(".weights") + ".lengths"


def write_graph_queries(
    path: Path, inputs: Mapping[str, Array], batch: int, labels: Array | None = None
) -> FileDigest:
    """Write all samples' `inputs` as a file of queries of `batch`.

    Args:
        inputs: by name; strings are object arrays (S,) of bytes. One that comes once per request
            has as many entries as there are queries.
        labels: (S,) float32, or None.
    """
    tensors: dict[str, Array] = {}
    for name, array in inputs.items():
        if array.dtype != object:
            tensors[name] = array
            continue
        texts = array.reshape(-1).tolist()
        tensors[name] = np.frombuffer(b"".join(texts), np.uint8)
        tensors[name + _OFFSETS] = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    if labels is not None:
        tensors[_LABELS] = labels
    return write_tensors(path, tensors, {"batch": str(batch)})


class GraphQueryFile:
    """The queries of a file, in order; the last may be smaller than `batch`.

    Args:
        path: the file; it is mapped.
        inputs: the model's; other tensors are refused.
        batch: samples per query; None takes the file's own.

    Raises:
        ArtifactError: not a safetensors file, or an input is missing.
        QueryError: the inputs do not fit the model, or each other.
    """

    def __init__(self, path: Path, inputs: Sequence[NamedTensor], batch: int | None = None) -> None:
        self.path, self._tensors = path, tuple(inputs)
        file = TensorFile(path)
        text = file.metadata.get("batch", "32")
        if batch is None and not re.fullmatch(r"[1-9][0-9]{0,8}", text, re.ASCII):
            raise QueryError(f"{path}: metadata batch is {text[:40]!r}, not a number of samples")
        own_batch = int(text) if text.isdigit() else 0
        self.batch = own_batch if batch is None else batch
        self._inputs = {tensor.name: self._input(file, tensor) for tensor in self._tensors}
        expected = {*self._inputs, *(name + _OFFSETS for name in self._inputs), _LABELS}
        strange = sorted(set(file.tensors) - expected)
        if strange:
            raise QueryError(
                f"{path} has a tensor {strange[0]!r}; the model's inputs are "
                f"{', '.join(self._inputs)}"
            )
        self.labels: NDArray[np.float32] | None = None
        if _LABELS in file.tensors:
            self.labels = file.map(_LABELS).astype(np.float32)
        self.samples = self._samples()
        self._begins = {
            tensor.name: self._entry_begins(tensor.name)
            for tensor in self._tensors
            if tensor.per == "entry"
        }
        for tensor in self._tensors:
            size = len(self._inputs[tensor.name])
            if tensor.per == "request" and (size != len(self) or batch not in (None, own_batch)):
                raise QueryError(
                    f"{path}: {tensor.name} comes once per request: it has {size:,} entries for "
                    f"{len(self):,} queries of {self.batch}"
                )

    def _samples(self) -> int:
        sizes = {
            tensor.name: len(self._inputs[tensor.name])
            for tensor in self._tensors
            if tensor.per == "sample"
        }
        if self.labels is not None:
            sizes[_LABELS] = len(self.labels)
        first = next(iter(sizes), None)
        if first is None:
            return self.batch * max(len(array) for array in self._inputs.values())
        for name, size in sizes.items():
            if size != sizes[first]:
                raise QueryError(
                    f"{self.path}: {name} has {size:,} samples, {first} has {sizes[first]:,}"
                )
        return sizes[first]

    def _entry_begins(self, name: str) -> NDArray[np.int64]:
        """Where each sample's entries begin, and the last sample's end, (S + 1,)."""
        lengths = self._inputs.get(_lengths_of(name))
        if lengths is None:
            raise QueryError(
                f"{self.path}: {name} lists entries of all samples, and no input "
                f"{_lengths_of(name)} says how many each has: such queries take no file"
            )
        begins = np.concatenate([[0], np.cumsum(lengths.reshape(-1), dtype=np.int64)])
        if begins[-1] != len(self._inputs[name]):
            raise QueryError(
                f"{self.path}: {name} has {len(self._inputs[name]):,} entries, "
                f"{_lengths_of(name)} tells of {begins[-1]:,}"
            )
        return begins

    def _input(self, file: TensorFile, tensor: NamedTensor) -> Array:
        """An input of all samples."""
        array = file.map(tensor.name)
        if tensor.datatype == "BYTES":
            offsets = file.map(tensor.name + _OFFSETS).tolist()
            whole = array.tobytes()
            strings = np.empty(max(0, len(offsets) - 1), object)
            strings[:] = [whole[begin:end] for begin, end in pairwise(offsets)]
            return strings
        dtype = np.dtype(DTYPES[tensor.datatype])
        fits = array.ndim == len(tensor.shape) and all(
            size in (-1, n) for size, n in zip(tensor.shape[1:], array.shape[1:], strict=False)
        )
        if array.dtype != dtype or not fits:
            raise QueryError(
                f"{self.path}: {tensor.name} is {array.dtype} {list(array.shape)}, the model takes "
                f"{tensor.datatype} {list(tensor.shape)}, -1 any size"
            )
        return array

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch)

    def __getitem__(self, index: int) -> dict[str, Array]:
        """The inputs of query number `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        samples = slice(index * self.batch, min((index + 1) * self.batch, self.samples))
        places = {"sample": samples, "request": slice(index, index + 1)}
        inputs = {}
        for tensor in self._tensors:
            place = places.get(tensor.per)
            if place is None:
                begins = self._begins[tensor.name]
                place = slice(int(begins[samples.start]), int(begins[samples.stop]))
            inputs[tensor.name] = np.array(self._inputs[tensor.name][place])
        return inputs

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self[index] for index in range(len(self)))
