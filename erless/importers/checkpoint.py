"""Open foreign checkpoints as plain tensors, without executing a pickle.

The first bytes of a file decide what it is, not its name. A state dict may lie inside of a
dictionary, and wrappers of torch (DistributedDataParallel, torch.compile) leave words in the names
of tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erless.dlrm.archive.container import Bytes
from erless.errors import ArtifactError, CheckpointError
from erless.importers.bundle import row_chunks
from erless.importers.distributed import METADATA, read_distributed
from erless.importers.lazy import LazyTensor, RangedTensor, checkpoint_errors
from erless.importers.storages import read_torch_file
from erless.storage.atomic import os_errors
from erless.storage.ranged import LazyBytes, open_ranges
from erless.storage.tensor_header import TensorHeader, TensorInfo
from erless.storage.tensors import TensorFile

__all__ = [
    "Checkpoint",
    "Stored",
    "TableRows",
    "float_rows",
    "layer_stack",
    "open_checkpoint",
    "to_float32",
    "whole",
]

Stored = Tensor | LazyTensor

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Where a training script puts the model's state dict.
_MODEL_KEYS = ("state_dict", "model_state_dict", "model", "module")
# What it puts beside it, whose tensors belong to training.
_TRAINING_KEYS = {
    "optimizer",
    "optimizer_state_dict",
    "optimizer_states",
    "opt_state_dict",
    "optim",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "scheduler_state_dict",
    "scaler",
    "loss",
    "rng_state",
    "cuda_rng_state",
    "torch_rng_state",
    "loops",
    "callbacks",
    "hyper_parameters",
    "train_loss",
    "total_loss",
    "test_acc",
    "train_acc",
    "epoch",
    "iter",
    "nepochs",
    "nbatches",
    "nbatches_test",
}
_WRAPPERS = {"module", "_orig_mod"}

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Checkpoint(NamedTuple):
    """The tensors of a model by name.

    Args:
        tensors: in the order of the file.
        ordered: whether that order is the model's: an `OrderedDict`, which `state_dict()` returns.
            safetensors sorts by name, and a plain dictionary may be merged from shards: a
            distributed checkpoint lists each trainer's tensors, one trainer after another.
    """

    tensors: dict[str, Stored]
    ordered: bool


@dataclass(frozen=True, slots=True)
class TableRows:
    """A table, read chunk by chunk: its shape (rows, dim), and a new pass over its rows."""

    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[NDArray[np.float32]]]


def open_checkpoint(path: Path | str, endpoint_url: str | None = None) -> Checkpoint:
    """The model's tensors in a checkpoint.

    It is a file of `torch.save` (zip or legacy), safetensors, or a folder of
    `torch.distributed.checkpoint`; on a disk, or at `s3://bucket/…`, where rows are read by ranges
    as they are asked for. `endpoint_url`: of the bucket's service, where it is not AWS's.

    A dictionary under `state_dict`, `model_state_dict`, `model` or `module` is unwrapped, and the
    words that DistributedDataParallel (`module`) and torch.compile (`_orig_mod`) put into names
    are dropped wherever they stand. Tensors are mapped, so tables may exceed memory.

    Raises:
        CheckpointError: not a checkpoint, truncated, holding objects other than tensors, or
            tensors of which it is not clear whether they belong to the model.
        ArtifactError: there is no such file.
    """
    in_bucket = str(path).startswith("s3://")
    document = _read_bucket(str(path), endpoint_url) if in_bucket else _read(Path(path))
    state = _unwrap(path, document)
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Stored)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    plain = {_without_wrappers(name): tensor for name, tensor in tensors.items()}
    ordered = isinstance(state, OrderedDict)
    return Checkpoint(plain if len(plain) == len(tensors) else tensors, ordered)


def _unwrap(path: Path | str, document: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict in `document`; nothing beside it may be left over."""
    for _ in range(3):  # a script's dictionary around a trainer's
        key = next((key for key in _MODEL_KEYS if isinstance(document.get(key), Mapping)), None)
        if key is None:
            return document
        for other, value in document.items():
            if other != key and str(other) not in _TRAINING_KEYS and _holds_tensors(value):
                raise CheckpointError(
                    f"{path}: the tensors under {str(other)[:100]!r} are not used: the model is "
                    f"taken from {key!r}. Save the state dict of the model alone"
                )
        document = document[key]
    return document


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping) and depth < 4:
        return any(_holds_tensors(item, depth + 1) for item in value.values())
    return isinstance(value, Stored)


def _without_wrappers(name: str) -> str:
    """A tensor's name without the words of wrappers.

    >>> _without_wrappers("_orig_mod.bot_l.module.0.weight")
    'bot_l.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _read(path: Path) -> Mapping[Any, Any]:
    """What `path` holds, before the state dict is looked for. Errors as `open_checkpoint`."""
    with os_errors(path, "read"):
        if path.is_dir():
            if not (path / METADATA).is_file():
                raise CheckpointError(
                    f"{path} is a folder without {METADATA}: neither one file nor a whole "
                    "distributed checkpoint"
                )
            return read_distributed(path)
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no file")
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "c") if size else np.zeros(0, np.uint8)
    if _is_safetensors(path, data):
        return _read_safetensors(path)
    return _read_saved(path, data)


def _read_bucket(url: str, endpoint_url: str | None) -> Mapping[Any, Any]:
    """What lies at `url`: an object, or else the prefix of a distributed checkpoint."""
    try:
        data = LazyBytes(open_ranges(url.rstrip("/"), endpoint_url))
    except ArtifactError as error:
        try:
            return read_distributed(url, endpoint_url)
        except ArtifactError:
            raise CheckpointError(f"{error}, and no {METADATA} below it") from error
    with checkpoint_errors():
        if not _is_safetensors(Path(url), data):
            return _read_saved(url, data)
        header = TensorHeader(
            url, len(data), lambda begin, size: data[begin : begin + size].tobytes()
        )
        return {name: _ranged(name, info, data) for name, info in header.tensors.items()}


def _ranged(name: str, info: TensorInfo, data: LazyBytes) -> RangedTensor:
    dtype = _SAFETENSORS.get(info.dtype_name)
    if dtype is None:
        raise CheckpointError(f"{name} holds {info.dtype_name}, which PyTorch has not")
    return RangedTensor(name, dtype, info.shape, data[info.begin : info.end])


def _read_saved(path: Path | str, data: Bytes) -> Mapping[Any, Any]:
    """What torch.save wrote."""
    head, size = data[:9].tobytes(), len(data)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise CheckpointError(f"{path}: is compressed ({name}); decompress it first")
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"{path}: truncated or not a checkpoint ({size:,} bytes)")
    document = read_torch_file(path, data)
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path}: holds a {type(document).__name__}, not a state dict")
    return document


def _is_safetensors(path: Path, data: Bytes) -> bool:
    """Whether the file begins as safetensors does: the size of a JSON object, and its brace."""
    head = data[:9].tobytes()
    if any(head.startswith(magic) for magic in _COMPRESSED):
        return False
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:] == b"{" and 8 + length <= len(data))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        TensorFile(path)  # its error names what is damaged, which the library's does not
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {error}") from error


def to_float32(name: str, tensor: Stored) -> NDArray[np.float32]:
    """`tensor` as a float32 array; fp16 and bf16 convert exactly, fp64 is rounded.

    Raises:
        CheckpointError: it does not hold floats.
    """
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{name} holds {tensor.dtype}, not floats: quantized rows do not import; save the "
            "model before it is quantized"
        )
    array: NDArray[np.float32] = whole(tensor).detach().to(torch.float32).numpy()
    return array


def whole(stored: Stored) -> Tensor:
    """The tensor itself; one in pieces is put together in memory."""
    return stored.whole() if isinstance(stored, LazyTensor) else stored


def float_rows(name: str, tensor: Stored) -> Iterator[NDArray[np.float32]]:
    """The rows of a table as float32 chunks."""
    chunks = row_chunks(tensor, tensor.element_size() * tensor.shape[1])
    return (to_float32(name, chunk) for chunk in chunks)


def layer_stack(
    tensors: Mapping[str, Stored], layers: list[str], inputs: int | None, label: str
) -> tuple[list[tuple[NDArray[np.float32], NDArray[np.float32]]], tuple[int, ...]]:
    """(weight, bias) of each linear layer named in `layers`, and the output widths.

    Args:
        tensors: by name.
        layers: names without ".weight" and ".bias", in order.
        inputs: width that the first layer must take; None: any.
        label: what an error calls the stack.

    Raises:
        CheckpointError: a layer is missing, or its width does not continue the one before.
    """
    if not layers:
        raise CheckpointError(f"the checkpoint has no {label}")
    stack, sizes = [], []
    for layer in layers:
        weight = _tensor(tensors, f"{layer}.weight", 2)
        bias = _tensor(tensors, f"{layer}.bias", 1)
        if inputs is not None and weight.shape[1] != inputs:
            raise CheckpointError(
                f"{layer}.weight takes {weight.shape[1]} inputs, the layer before gives {inputs}"
            )
        if len(bias) != len(weight):
            raise CheckpointError(f"{layer}: {len(bias)} biases for {len(weight)} outputs")
        inputs = len(weight)
        sizes.append(inputs)
        stack.append((weight, bias))
    return stack, tuple(sizes)


def _tensor(tensors: Mapping[str, Stored], name: str, dimensions: int) -> NDArray[np.float32]:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no {name}")
    if tensors[name].dim() != dimensions:
        raise CheckpointError(f"{name} has shape {tuple(tensors[name].shape)}")
    return to_float32(name, tensors[name])
