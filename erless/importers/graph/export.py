"""`erless.export`: from a model in a training script to a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import nn
from torch.fx import Node

from erless.dlrm.whole_graph import WholeGraph
from erless.importers.bundle import new_bundle
from erless.importers.graph.check import smallest_batch
from erless.importers.graph.cut import cut_program
from erless.importers.graph.fused import fused_as_plain
from erless.importers.graph.jagged import keys_as_inputs
from erless.importers.graph.lookups import find_lookups
from erless.importers.graph.once import check_single, repeat_request
from erless.importers.graph.program import Dynamic, Example, Program, export_program
from erless.importers.graph.simplify import simplify
from erless.importers.graph.weights import Weights, with_weights
from erless.importers.graph.write import describe, with_batch_min, write_parts
from erless.progress import Progress
from erless.specs.bundle import BundleManifest

__all__ = ["SMALL_ROWS", "ExportOptions", "export", "write_bundle"]

SMALL_ROWS = 1_000


class ExportOptions(TypedDict, total=False):
    """What `export` may be told.

    Args:
        dynamic: input → its dimensions whose size differs from call to call; without, the first
            of every input.
        request: names of inputs that are the same for all samples of a request, as a user's are
            for its candidates: they come once, and what only depends on them is looked up once.
            The example may hold them once, or as often as the model takes them.
        weights: where the model's weights are, if not in it, as on the meta device: a checkpoint's
            path, or tensors by the names of `state_dict()`. They are mapped, never loaded.
        small_rows: tables with fewer rows stay in the tower, but for those of an `EmbeddingBag`;
            1,000 if not given.
        name: the model's name in URLs; `model` if not given.
        overwrite: replace an existing bundle.
    """

    dynamic: Dynamic | None
    request: Collection[str]
    weights: Weights | None
    small_rows: int
    name: str
    overwrite: bool


def export(
    model: nn.Module,
    example_inputs: Any,
    out: str | os.PathLike[str],
    **options: Unpack[ExportOptions],
) -> BundleManifest:
    """Write `model` as a bundle that erless profiles, plans and serves.

    Args:
        model: any recommender that `torch.export` takes.
        example_inputs: what `model.forward` takes: a tensor, a tuple of arguments, or a dictionary
            of named arguments. torchrec's `KeyedJaggedTensor` is one of the arguments.
        out: the bundle's folder.
        options: see `ExportOptions`.

    Raises:
        ModelError: the model cannot be exported, cut, or predicts otherwise once it is.
        ArtifactError: `out` exists and may not be replaced.
        StorageError: the disk refused.
    """
    request = options.get("request", ())
    given = Example.of(example_inputs)
    weights = with_weights(model, options.get("weights"))
    with weights, fused_as_plain(model), keys_as_inputs(model, given) as named:
        example = repeat_request(model, named, request)
        program = export_program(model, example, options.get("dynamic"))

        def compare(folder: Path, _: Mapping[str, Node]) -> int:
            return smallest_batch(WholeGraph(folder, verify=False), model, example)

        return write_bundle(
            replace(program, request=frozenset(request)),
            Path(out),
            compare,
            small_rows=options.get("small_rows", SMALL_ROWS),
            name=options.get("name", "model"),
            overwrite=options.get("overwrite", False),
        )


def write_bundle(
    program: Program,
    out: Path,
    compare: Callable[[Path, Mapping[str, Node]], int],
    *,
    small_rows: int,
    name: str,
    overwrite: bool,
    progress: Progress | None = None,
) -> BundleManifest:
    """Cut `program` and write it.

    Args:
        compare: compares what the bundle in a folder, whose tables are those weights, predicts
            with the model, and returns the smallest batch that it takes: see `smallest_batch`.

    Raises as `export`.
    """
    simplify(program)
    cut = cut_program(program, find_lookups(program, small_rows))
    spec = describe(program, cut, name)
    with new_bundle(out, spec, overwrite=overwrite, progress=progress) as bundle:
        write_parts(bundle, program, cut)
        manifest = bundle.finish()
        batch_min = compare(bundle.folder, cut.tables)
        check_single(program, batch_min)
        if batch_min != 1:
            bundle.model = with_batch_min(spec, batch_min)
            manifest = bundle.finish()
    return manifest
