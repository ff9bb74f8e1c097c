"""Open foreign checkpoints as plain tensors, never executing a pickle."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erless.errors import CheckpointError, first_line
from erless.importers.bundle import row_chunks
from erless.storage.atomic import os_errors
from erless.storage.tensors import TensorFile

__all__ = ["float_rows", "layer_stack", "open_state_dict", "to_float32"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# dlrm_s_pytorch.py saves its accuracy and losses as numpy scalars beside the weights; rebuilding
# one runs no code of the checkpoint's.
_NUMPY_SCALARS: list[Any] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(code)) for code in ("f8", "f4", "i8", "i4", "u8", "u1", "?")),
]


def open_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: torch's zip or legacy format, or safetensors.

    A dict under `state_dict` or `model_state_dict` is unwrapped and the `module.` prefix of
    DistributedDataParallel dropped. Zip checkpoints are mapped, so tables may exceed memory.

    Raises:
        CheckpointError: not a checkpoint, truncated, or holding objects other than tensors.
        ArtifactError: there is no such file.
    """
    with os_errors(path, "read"), path.open("rb") as file:
        file.read(1)
    document = _read(path)
    for key in ("state_dict", "model_state_dict"):
        if isinstance(document.get(key), Mapping):
            document = document[key]
    tensors = {str(k): v for k, v in document.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        TensorFile(path)  # says where it is damaged, which the library does not
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path}: {error}") from error
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the protocols it then refuses
            document = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of plain tensors; it holds other pickled objects, and "
            "erless executes none. Save model.state_dict() with torch.save, or safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: truncated or not a checkpoint ({size:,} bytes): {first_line(error)}"
        ) from error
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path}: holds a {type(document).__name__}, not a state dict")
    return document


def to_float32(name: str, tensor: Tensor) -> NDArray[np.float32]:
    """`tensor` as a float32 array; fp16 and bf16 convert exactly, fp64 is rounded.

    Raises:
        CheckpointError: it does not hold floats.
    """
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(f"{name} holds {tensor.dtype}, not floats")
    array: NDArray[np.float32] = tensor.detach().to(torch.float32).numpy()
    return array


def float_rows(name: str, tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    """The rows of a table as float32 chunks."""
    chunks = row_chunks(tensor, tensor.element_size() * tensor.shape[1])
    return (to_float32(name, chunk) for chunk in chunks)


def layer_stack(
    tensors: Mapping[str, Tensor], layers: list[str], inputs: int | None, what: str
) -> tuple[list[tuple[NDArray[np.float32], NDArray[np.float32]]], tuple[int, ...]]:
    """(weight, bias) of each linear layer named in `layers`, and the output widths.

    Raises:
        CheckpointError: a layer is missing, or its width does not continue the one before.
    """
    if not layers:
        raise CheckpointError(f"the checkpoint has no {what}")
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


def _tensor(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> NDArray[np.float32]:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no {name}")
    if tensors[name].dim() != dimensions:
        raise CheckpointError(f"{name} has shape {tuple(tensors[name].shape)}")
    return to_float32(name, tensors[name])
