"""Bring the models of public zoos in by `erless.export`, and compare what they predict.

    python tests/outside/zoo_sweep.py deepctr recbole own
    python tests/outside/zoo_sweep.py fuxictr dlrm --fuxictr CHECKOUT --dlrm CHECKOUT

Runs in an environment of its own, see CONTRIBUTING.md. Every table of a model is cut out, however
small; inputs are random, weights are as the zoo makes them, at a scale at which predictions differ.
A model is *exact* where a bundle predicts as it does, within 1e-5, on batches of 1, 5 and 64.
`--record FOLDER` keeps the bundle of each, with queries and the model's own answers: what
`zoo_serving.py` serves.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import erless
from erless.dlrm.graph_archives import from_numpy, to_numpy
from erless.dlrm.graph_queries import write_graph_queries
from erless.dlrm.whole_graph import WholeGraph
from erless.errors import ErlessError
from erless.specs.model import ModelSpec
from erless.storage.tensors import write_tensors
from tests.outside import zoos

BATCHES = (1, 5, 64)
QUERIES, SAMPLES = 1000, 3


def sweep(zoo: str, cases: Any, only: list[str], kept: Path | None) -> collections.Counter[str]:
    """Export each case's model and tell what became of it."""
    counts: collections.Counter[str] = collections.Counter()
    for name, case in cases:
        if only and name not in only:
            continue
        outcome, reason = try_case(case, kept and kept / f"{zoo}-{name}")
        counts[outcome] += 1
        print(f"{zoo:8} {name:16} {outcome:8} {reason}", flush=True)
    return counts


def try_case(case: zoos.Case, kept: Path | None) -> tuple[str, str]:
    """`exact`, `refused` (by erless, naming the reason), `wrong`, or `broken` (by itself).

    `kept`: the folder for what `record` writes; None writes nothing.
    """
    torch.manual_seed(0)
    try:
        model, make = case()
        with torch.no_grad():
            for parameter in model.parameters():  # zoos start at 1e-4, where all is nearly zero
                if (
                    parameter.dim() == 2
                    and parameter.is_floating_point()
                    and parameter.std() < 0.01
                ):
                    parameter.normal_(0, 0.3)
        model.eval()
        example = make(4)
        with torch.no_grad():
            model(*example)
    except Exception as error:
        return "broken", f"{type(error).__name__}: {error} at {place_of(error)}"
    with contextlib.ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            manifest = erless.export(model, example, folder / "model", small_rows=0)
        except ErlessError as error:
            return "refused", str(error).replace("\n", " | ")
        bundle = WholeGraph(folder / "model")
        try:
            differences = [difference(model, bundle, make(batch)) for batch in BATCHES]
        except Exception as error:
            return "wrong", f"{type(error).__name__}: {error} at {place_of(error)}"
    if kept:
        record(model, make, manifest.model, kept)
    worst = max(each for each in differences if each is not None)
    told = f"{len(manifest.model.tables)} tables, {len(manifest.model.features)} features"
    return ("exact" if worst <= 1e-5 else "wrong"), f"{told}, off by {worst:.0e}"


def place_of(error: Exception) -> traceback.FrameSummary:
    """The line that raised."""
    return traceback.extract_tb(error.__traceback__)[-1]


def difference(model: torch.nn.Module, bundle: WholeGraph, inputs: tuple[Any, ...]) -> float | None:
    """The largest difference of a prediction, as a share of its output's largest.

    None where the model itself takes no such batch.
    """
    try:
        expected = own_answer(model, inputs)
    except RuntimeError:
        return None
    found = bundle.predict(by_name(bundle.model, inputs))
    return max(
        float(
            (from_numpy(got).double() - wanted.double()).abs().max()
            / wanted.double().abs().max().clamp(min=1e-30)
        )
        for got, wanted in zip(found.values(), expected, strict=True)
    )


def own_answer(model: torch.nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """The model's outputs, in order."""
    with torch.no_grad():
        results = torch.utils._pytree.tree_leaves(model(*inputs))
    return [result for result in results if isinstance(result, torch.Tensor)]


def by_name(spec: ModelSpec, inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """The model's arguments as its gateway takes them."""
    arrays = [to_numpy(leaf) for leaf in torch.utils._pytree.tree_leaves(inputs)]
    return dict(zip([tensor.name for tensor in spec.inputs], arrays, strict=True))


def record(model: torch.nn.Module, make: Any, spec: ModelSpec, folder: Path) -> None:
    """Write random queries, and what the model itself answers to each of them.

    `queries.safetensors` is a file of queries; `answers.safetensors` has the outputs by name, those
    of all samples one after the other.
    """
    asked = [make(SAMPLES) for _ in range(QUERIES)]
    answers = [[to_numpy(each) for each in own_answer(model, inputs)] for inputs in asked]
    queries = [by_name(spec, inputs) for inputs in asked]
    joined = {name: np.concatenate([query[name] for query in queries]) for name in queries[0]}
    write_graph_queries(folder / "queries.safetensors", joined, SAMPLES)
    outputs = [np.concatenate(parts) for parts in zip(*answers, strict=True)]
    names = [tensor.name for tensor in spec.outputs]
    write_tensors(folder / "answers.safetensors", dict(zip(names, outputs, strict=True)))


def main() -> int:
    """Sweep the zoos that are asked for; 1 where a model came in wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoos", nargs="+", choices=list(zoos.ZOOS))
    parser.add_argument("--fuxictr", type=Path, help="checkout of reczoo/FuxiCTR")
    parser.add_argument("--dlrm", type=Path, help="checkout of facebookresearch/dlrm")
    parser.add_argument("--only", nargs="+", default=[], help="these models alone")
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--record", type=Path, help="keep bundles, queries and answers there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {}
    for zoo in options.zoos:
        cases = zoos.ZOOS[zoo](vars(options).get(zoo))
        counts = sweep(zoo, cases, options.only, options.record)
        results[zoo] = dict(counts)
        print(
            f"{zoo}: {counts['exact']} of {counts.total()} exact, {counts['refused']} refused, "
            f"{counts['wrong']} wrong, {counts['broken']} broken",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results))
    return int(any(counts.get("wrong") for counts in results.values()))


if __name__ == "__main__":
    sys.exit(main())
