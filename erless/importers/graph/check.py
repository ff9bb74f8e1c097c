"""Compare a bundle with the model it was made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from erless.dlrm.graph_archives import from_numpy, to_numpy
from erless.dlrm.whole_graph import WholeGraph
from erless.errors import ModelError, QueryError
from erless.importers.graph.program import Example, evaluating

__all__ = ["smallest_batch"]

TOLERANCE = 1e-5  # of the largest value of an output


def smallest_batch(bundle: WholeGraph, model: nn.Module, example: Example) -> int:
    """Let both predict the example, one sample more, and one alone.

    Returns:
        1, or 2 where the model or its export takes no single sample.

    Raises:
        ModelError: they differ by more than `TOLERANCE`.
    """
    _compare(bundle, example, _expected(model, example))
    most = max((len(tensor) for tensor in example.tensors if tensor.dim()), default=0)
    for count in (most + 1, 1):
        other = _resized(bundle, example, count)
        if other is None:
            return 1
        try:
            expected = _expected(model, other)
        except Exception:  # whatever a model raises for a batch that it does not take
            if count == 1:
                return 2
            raise
        try:
            _compare(bundle, other, expected)
        except ModelError:
            if count == 1:
                return 2
            raise
    return 1


def _expected(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad(), evaluating(model):  # fbgemm computes nothing in inference mode
        leaves = pytree.tree_leaves(model(*example.args, **example.kwargs))
    return [leaf.cpu() for leaf in leaves if isinstance(leaf, Tensor)]


def _compare(bundle: WholeGraph, example: Example, expected: Sequence[Tensor]) -> None:
    inputs = {
        each.name: to_numpy(tensor[:1] if each.per == "request" else tensor)
        for each, tensor in zip(bundle.model.inputs, example.tensors, strict=True)
    }
    try:
        outputs = bundle.predict(inputs)
    except QueryError as error:
        raise ModelError(
            f"the bundle does not predict the example, {_sizes(example)}: {error}"
        ) from error
    for (name, output), expectation in zip(outputs.items(), expected, strict=True):
        difference = _difference(from_numpy(output), expectation)
        if difference > TOLERANCE:
            raise ModelError(
                f"output {name} differs from the model's by {difference:.1e} of its largest "
                f"value, at most {TOLERANCE}"
            )


def _sizes(example: Example) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in example.tensors[:8])


def _resized(bundle: WholeGraph, example: Example, count: int) -> Example | None:
    """The example with `count` samples; None where its inputs are not one row per sample each."""
    inputs = bundle.model.inputs
    named = {each.name: t for each, t in zip(inputs, example.tensors, strict=True)}
    lengths = {
        each.name: named.get(f"{each.name.removesuffix('.weights')}.lengths")
        for each in inputs
        if each.per == "entry"
    }
    sizes = {len(t) if t.dim() else 0 for name, t in named.items() if name not in lengths}
    if len(sizes) != 1 or 0 in sizes or None in lengths.values():
        return None
    places = [place % max(sizes) for place in range(count)]

    def chosen(name: str, tensor: Tensor) -> Tensor:
        length = lengths.get(name)
        if length is None:
            return tensor[places]
        entries = torch.split(tensor, length.tolist())
        return torch.cat([entries[place] for place in places])

    return example.replaced([chosen(name, tensor) for name, tensor in named.items()])


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value; inf for another shape or dtype."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else float("inf")
    actual, expected = actual.double(), expected.double()
    scale = expected.abs().nan_to_num(0, 0, 0).max().clamp(min=1e-30)
    equal = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = torch.where(equal, 0, (actual - expected).abs() / scale)
    return float(difference.nan_to_num(float("inf")).max())
