"""Bring the models of public zoos in by `erless.export`, and compare what they predict.

    python tests/outside/zoo_sweep.py deepctr recbole own
    python tests/outside/zoo_sweep.py fuxictr --fuxictr CHECKOUT

Runs in an environment of its own, see CONTRIBUTING.md. Every table of a model is cut out, however
small; inputs are random, weights are as the zoo makes them, at a scale at which predictions differ.
A model is *exact* where a bundle predicts as it does, within 1e-5, on batches of 1, 5 and 64.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

import erless
from erless.dlrm.graph_archives import from_numpy, to_numpy
from erless.dlrm.whole_graph import WholeGraph
from erless.errors import ErlessError
from tests.outside import zoos

BATCHES = (1, 5, 64)


def sweep(zoo: str, cases: Any, only: list[str]) -> collections.Counter[str]:
    """Export each case's model and tell what became of it."""
    counts: collections.Counter[str] = collections.Counter()
    for name, case in cases:
        if only and name not in only:
            continue
        outcome, reason = try_case(case)
        counts[outcome] += 1
        print(f"{zoo:8} {name:16} {outcome:8} {reason}", flush=True)
    return counts


def try_case(case: zoos.Case) -> tuple[str, str]:
    """`exact`, `refused` (by erless, naming the reason), `wrong`, or `broken` (by itself)."""
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
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = erless.export(model, example, Path(folder) / "m", small_rows=0)
        except ErlessError as error:
            return "refused", str(error).replace("\n", " | ")
        bundle = WholeGraph(Path(folder) / "m")
        try:
            differences = [difference(model, bundle, make(batch)) for batch in BATCHES]
        except Exception as error:
            return "wrong", f"{type(error).__name__}: {error} at {place_of(error)}"
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
        with torch.no_grad():
            results = torch.utils._pytree.tree_leaves(model(*inputs))
    except RuntimeError:
        return None
    expected = [result for result in results if isinstance(result, torch.Tensor)]
    leaves = torch.utils._pytree.tree_leaves(inputs)
    names = [tensor.name for tensor in bundle.model.inputs]
    arrays = [to_numpy(leaf) for leaf in leaves]
    found = bundle.predict(dict(zip(names, arrays, strict=True)))
    return max(
        float(
            (from_numpy(got).double() - wanted.double()).abs().max()
            / wanted.double().abs().max().clamp(min=1e-30)
        )
        for got, wanted in zip(found.values(), expected, strict=True)
    )


def main() -> int:
    """Sweep the zoos that are asked for; 1 where a model came in wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoos", nargs="+", choices=list(zoos.ZOOS))
    parser.add_argument("--fuxictr", type=Path, help="checkout of reczoo/FuxiCTR")
    parser.add_argument("--only", nargs="+", default=[], help="these models alone")
    parser.add_argument("--json", type=Path, help="write the counts there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {}
    for zoo in options.zoos:
        counts = sweep(zoo, zoos.ZOOS[zoo](options.fuxictr), options.only)
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
