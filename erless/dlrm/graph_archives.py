"""A graph's archives as functions of named arrays, and what reads its queries with them.

torch is imported only where something is computed with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.graph_lookup import Compute, GraphLookup, graph_tower, per_request
from erless.errors import ConfigError, QueryError, ServeError, first_line
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.features import Pooling
from erless.specs.model import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

__all__ = [
    "GraphFiles",
    "from_numpy",
    "graph_files",
    "open_compute",
    "open_lookup",
    "open_tower_graph",
    "to_numpy",
]


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """Where a graph's archives lie, and its vocabularies by their path in the bundle."""

    tower: Path
    front: Path | None
    request_front: Path | None
    vocabularies: Mapping[str, Path]


def graph_files(folder: Path, bundle: BundleManifest) -> GraphFiles:
    """The files of the bundle at `folder`."""

    def place(entry: FileEntry | None) -> Path | None:
        return folder / entry.path if entry else None

    return GraphFiles(
        folder / bundle.tower.path,
        place(bundle.front),
        place(bundle.request_front),
        {entry.path: folder / entry.path for entry in bundle.vocabularies},
    )


def open_lookup(model: ModelSpec, files: GraphFiles, *, threads: int = 1) -> GraphLookup:
    """What reads the queries of a graph; torch is imported only where it has a front.

    Raises:
        ArtifactError: an archive or vocabulary is damaged.
    """
    tower = graph_tower(model)
    front = request_front = None
    if files.front is not None:
        takes, gives = tower.front_takes, tower.front_gives
        front = open_compute(files.front, takes, gives, threads=threads)
    if files.request_front is not None:
        takes, gives = tower.request_front_takes, tower.request_front_gives
        request_front = open_compute(files.request_front, takes, gives, threads=threads)
    return GraphLookup(model, files.vocabularies.__getitem__, front, request_front)


def open_tower_graph(
    model: ModelSpec, path: Path, *, device: str = "cpu", threads: int = 1, apart: bool = False
) -> Compute:
    """The tower of a graph: values by name → outputs by name. Errors as `open_predict`.

    Args:
        apart: whether it is a function of its own, which gets what comes once per request copied
            for every sample; else it gets such samples with a stride of 0.
    """
    names = [output.name for output in model.outputs]
    takes = graph_tower(model).takes
    widths = {} if apart else _widths(model)
    once = frozenset() if apart else per_request(model)
    return open_compute(
        path, takes, names, once=once, widths=widths, device=device, threads=threads
    )


def _widths(model: ModelSpec) -> dict[str, int]:
    """Widths of the values that are (samples, width)."""
    shapes = {tensor.name: tensor.shape for tensor in model.inputs}
    widths = {name: shape[1] for name, shape in shapes.items() if len(shape) == 2 and shape[1] > 0}
    for feature in model.features:
        one_each = feature.pooling is Pooling.NONE and len(shapes.get(feature.ids or "", ())) == 1
        if one_each or feature.pooling is not Pooling.NONE:
            widths[feature.name] = model.table(feature.table).dim
    return widths


def open_compute(
    path: Path,
    takes: Sequence[str],
    gives: Sequence[str],
    *,
    once: Set[str] = frozenset(),
    widths: Mapping[str, int] = MappingProxyType({}),
    device: str = "cpu",
    threads: int = 1,
) -> Compute:
    """The archive at `path` as a function of named arrays.

    Args:
        takes, gives: names of its inputs and results, in their order.
        once: inputs whose samples are one and the same, with a stride of 0. They are not copied.
        widths: of all inputs that are (samples, width).
        device: where it computes.
        threads: of torch.

    Raises:
        ArtifactError: it is damaged.
        ConfigError: the device is not there.
    """
    module = _open_module(path, device, threads)
    expanded, single = _repeated_inputs(module, takes, once, widths)

    def place(array: NDArray[Any]) -> Tensor:
        return from_numpy(array) if device == "cpu" else from_numpy(array).to(device)

    def tensor(name: str, array: NDArray[Any]) -> Tensor:
        if array.ndim == 0 or len(array) < 2:
            return place(array)
        repeated = not array.strides[0]
        if name in single and not repeated:
            raise QueryError(f"{name} comes once per request, but has {len(array):,} samples")
        if not (expanded and repeated):
            return place(array)
        one = place(array[:1])
        return one if name in single else one.expand(len(array), *one.shape[1:])

    def compute(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = _run(module, takes, [tensor(name, values[name]) for name in takes])
        return {name: to_numpy(result) for name, result in zip(gives, results, strict=True)}

    return compute


def _open_module(path: Path, device: str, threads: int) -> GraphModule:
    """The archive at `path` as a module on `device`. Errors as `open_compute`."""
    import torch

    from erless.dlrm.archive import build_module, move_module, read_archive

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("ERLESS_DEVICE is 'cuda', but torch finds no CUDA device here")
    module = build_module(read_archive(path))
    return module if device == "cpu" else move_module(module, device, torch.float32)


def _repeated_inputs(
    module: GraphModule, takes: Sequence[str], once: Set[str], widths: Mapping[str, int]
) -> tuple[bool, set[str]]:
    """Have `module` compute what depends on the inputs `once` alone for one sample only.

    Returns:
        Whether it takes inputs with a stride of 0, and the names of those that it takes as one
        sample.
    """
    from erless.dlrm.archive import compute_once, take_expanded

    if not once or not take_expanded(module):
        return False, set()
    numbers = {name: number for number, name in enumerate(takes)}
    wide = {numbers[name]: width for name, width in widths.items() if name in numbers}
    repeated = {numbers[name] for name in once & widths.keys() & numbers.keys()}
    return True, {takes[number] for number in compute_once(module, repeated, wide)}


def _run(module: GraphModule, names: Sequence[str], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Results of `module` for `tensors`, which errors call by these names.

    Raises:
        QueryError: it does not take them.
        ServeError: memory or the device did not suffice.
    """
    import torch

    try:
        with torch.inference_mode():
            results: Sequence[Tensor] = module(*tensors)
    except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError) as error:
        raise ServeError(f"the model cannot compute: {first_line(error)}", 503) from error
    except (RuntimeError, IndexError) as error:
        text = ", ".join(
            f"{name} {list(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True)
        )
        raise QueryError(f"the model does not take {text}: {first_line(error)[:200]}") from error
    return results


def from_numpy(array: NDArray[Any]) -> Tensor:
    """`array` as a tensor: uint16, which no input is, stands for the bits of bfloat16."""
    import torch

    flags = array.flags  # numpy.require takes ten times as long to see that there is nothing to do
    if not (flags.c_contiguous and flags.writeable):
        array = np.array(array, order="C")
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """The inverse of `from_numpy`, wherever the tensor lies."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.contiguous().view(torch.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array
