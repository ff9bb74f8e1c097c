"""Inputs that come once per request: one user, many candidates."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from erless.errors import ModelError
from erless.importers.graph.lookups import TableLookup, module_of
from erless.importers.graph.program import Example, Program, slice_of, tensor_names

__all__ = ["check_single", "comes_once", "repeat_request"]


def repeat_request(model: torch.nn.Module, example: Example, request: Collection[str]) -> Example:
    """The example with the first sample of each input named in `request` for all samples.

    Raises:
        ModelError: there is no such input, or no other one.
    """
    if not request:
        return example
    names = tensor_names(model, example)
    for name in request:
        if name not in names:
            raise ModelError(f"request names {name}; the inputs are {', '.join(names)}")
    pairs = list(zip(names, example.tensors, strict=True))
    sizes = [len(tensor) for name, tensor in pairs if tensor.dim() and name not in request]
    if not sizes:
        raise ModelError("request names all inputs: of what would there be many?")

    def repeated(name: str, tensor: Tensor) -> Tensor:
        if name not in request:
            return tensor
        if not tensor.dim() or not len(tensor):
            raise ModelError(f"request names {name}, of which the example has no sample")
        return tensor[:1].expand(sizes[0], *tensor.shape[1:]).contiguous()

    return example.replaced([repeated(name, tensor) for name, tensor in pairs])


def check_single(program: Program, batch_min: int) -> None:
    """Refuse what is computed once by a model that takes no single sample."""
    if program.request and batch_min != 1:
        raise ModelError(
            f"the model takes no fewer than {batch_min} samples, so nothing is computed of the one "
            f"of {', '.join(sorted(program.request))}: leave `request` out"
        )


def comes_once(program: Program, lookup: TableLookup) -> bool:
    """Whether rows of `lookup` are the same for all samples of a request.

    Raises:
        ModelError: its ids are an input of the request, but not a sample each.
    """
    once = {node for name, node in program.inputs.items() if name in program.request}
    if not once:
        return False
    before = slice_of(lookup.sources, frozenset()) & set(program.inputs.values())
    samples = {str(node.meta["val"].shape[0]) for node in once}
    found = bool(before) and before <= once and str(_bags(lookup)) in samples
    if not found and once & set(lookup.sources):
        raise ModelError(
            f"{module_of(lookup.node)} looks up an input of `request` in a way that is not one or "
            "more ids per sample: leave it out of `request`"
        )
    return found


def _bags(lookup: TableLookup) -> int | torch.SymInt:
    """Samples of a lookup: the first size of its vectors."""
    first: Sequence[int | torch.SymInt]
    if lookup.lengths is not None:
        first = lookup.lengths.meta["val"].shape
    elif lookup.offsets is not None:
        first = lookup.node.meta["val"].shape
    else:
        first = _shape(lookup.ids)
    return first[0] if first else 0


def _shape(node: Node) -> Sequence[int | torch.SymInt]:
    shape: Sequence[int | torch.SymInt] = node.meta["val"].shape
    return shape
