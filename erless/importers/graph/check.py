"""Compare a bundle with the model it was made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from erless.dlrm.graph_model import GraphModel
from erless.errors import ModelError
from erless.importers.graph.program import Example, Program, evaluating

__all__ = ["check_predictions"]

TOLERANCE = 1e-5  # of the largest value of an output


def check_predictions(
    bundle: GraphModel, model: nn.Module, program: Program, example: Example
) -> None:
    """Let both predict `example`.

    Raises:
        ModelError: they differ by more than `TOLERANCE`.
    """
    with torch.inference_mode(), evaluating(model):
        expected = pytree.tree_leaves(model(*example.args, **example.kwargs))
    found = bundle.predict(dict(zip(program.inputs, example.tensors, strict=True)))
    for (name, got), wanted in zip(found.items(), expected, strict=True):
        difference = _difference(got, wanted)
        if difference > TOLERANCE:
            raise ModelError(
                f"output {name} differs from the model's by {difference:.1e}, at most {TOLERANCE}"
            )


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    expected = expected.cpu()
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    scale = expected.abs().nan_to_num(0, 0, 0).max().clamp(min=1e-30) if expected.numel() else 1
    equal = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(equal, 0, (found - expected).abs() / scale)
    return float(difference.nan_to_num(float("inf")).max()) if expected.numel() else 0.0
