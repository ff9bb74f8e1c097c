"""Compare imports with the real torchrec, which lives in an environment of its own.

    python3 -m venv torchrec
    torchrec/bin/pip install numpy torch torchrec fbgemm-gpu-cpu    # releases that fit together
    torchrec/bin/pip uninstall -y fbgemm-gpu    # the build for CUDA, which torchrec brings along
    torchrec/bin/pip install --force-reinstall --no-deps fbgemm-gpu-cpu    # they share files
    python -m tests.outside.torchrec_imports torchrec/bin/python

The models of `torchrec_models.py` are made and saved by torchrec and imported by erless. A bundle
must predict as torchrec did, to 1e-5 relative; what it cannot repeat must be refused by name, and
so must what a checkpoint does not record and no option states. Each bundle is then served by a
gateway and four remote shards, which are asked one query for each of torchrec's samples. The exit
code is 1 where one is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from erless.dlrm.queries import Query
from erless.errors import ErlessError
from erless.importers.options import ImportOptions, Quantization, parse_features
from erless.importers.poolings import Poolings
from erless.importers.torchrec import import_torchrec
from tests.outside.serving import SHARDS, TOLERANCE, serve

MODELS = Path(__file__).with_name("torchrec_models.py")
ORDER = ("zebra", "ant", "mole")
SORTED = tuple(sorted(ORDER))


@dataclass(frozen=True, slots=True)
class Case:
    """One import.

    Args:
        checkpoint: what is imported; a name that ends in `.safetensors` is made of the `.pt`.
        model: whose predictions must come out.
        poolings: as on the command line.
        tables: their order; None leaves it to the checkpoint.
        refusal: words of the error; None where the bundle must predict as torchrec does.
        features: of tables that do not have one of their name.
        quantized: what bytes are.
        checked: whether the predictions are given to the importer (`--check`).
    """

    checkpoint: str
    model: str
    poolings: tuple[str, ...] = ("sum",)
    tables: Sequence[str] | None = None
    refusal: str | None = None
    features: tuple[str, ...] = ()
    quantized: Quantization | None = None
    checked: bool = True


SHARED = ("ant=first,second", "zebra=z", "mole=m")
SWAPPED = ("ant=second,first", "zebra=z", "mole=m")
NO_ORDER = "does not record the order"
OTHER_MODEL = "The bundle is not the same model"
CASES = (
    Case("sum.pt", "sum"),
    Case("train.pt", "sum"),
    Case("script.pt", "sum"),
    Case("mean.pt", "mean", ("mean",)),
    Case("mixed.pt", "mixed", ("sum", "ant=mean")),
    Case("weighted.pt", "weighted", ("weighted_sum",)),
    Case("sum.safetensors", "sum", tables=ORDER),
    Case("merged.pt", "sum", tables=ORDER),
    Case("sum.safetensors", "sum", refusal=NO_ORDER, checked=False),
    Case("merged.pt", "sum", refusal=NO_ORDER, checked=False),
    Case("sum.pt", "sum", (), refusal="pooling of table zebra is not given", checked=False),
    Case("shared.pt", "shared", refusal="shared by several features", checked=False),
    Case("unused.pt", "sum", refusal="feature_processor.of_ant.weight", checked=False),
    Case("projection.pt", "projection", refusal="inter_arch.interaction_branch1", checked=False),
    Case("shared.pt", "shared", features=SHARED),
    Case("shared.pt", "shared", features=SWAPPED, refusal=OTHER_MODEL),
    Case("crossing.pt", "crossing", ("sum", "mole=mean"), features=SHARED),
    Case("crossing.pt", "crossing", refusal="top MLP takes 40 inputs", checked=False),
    *(
        Case(f"{kind}.pt", kind.value, features=SHARED, quantized=kind)
        for kind in (Quantization.INT8, Quantization.INT4, Quantization.FP16)
    ),
    Case("int8.pt", "int8", features=SHARED, refusal="not of which precision"),
    Case("int4.pt", "int4", features=SHARED, quantized=Quantization.INT8, refusal=OTHER_MODEL),
    Case(
        "int8.pt", "int8", features=SHARED, quantized=Quantization.FP16, refusal="is not a finite"
    ),
    Case("distributed", "sum", tables=ORDER),
    Case("distributed", "sum", refusal=NO_ORDER, checked=False),
    Case("parallel_folder", "parallel", tables=ORDER, features=SHARED),
    Case("mean.pt", "mean", ("sum",), refusal=OTHER_MODEL),
    Case("sum.safetensors", "sum", tables=SORTED, refusal=OTHER_MODEL),
)


def write_samples(folder: Path, model: str) -> Path:
    """The query file of a model, with torchrec's predictions beside it."""
    with np.load(folder / f"{model}.npz", allow_pickle=False) as arrays:
        tensors = {name: arrays[name] for name in arrays.files if name != "tables"}
        tables = [str(name) for name in arrays["tables"]]
    path = folder / f"{model}.queries"
    batch = str(len(tensors["dense"]))
    metadata = {"tables": json.dumps(tables), "batch": batch}
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


def fault(folder: Path, number: int, case: Case) -> str:
    """What is wrong with one import; empty where nothing is."""
    checkpoint = folder / case.checkpoint
    if checkpoint.suffix == ".safetensors":
        state = torch.load(checkpoint.with_suffix(".pt"), weights_only=True)
        safetensors.torch.save_file(dict(state), checkpoint)
    (folder / f"served{number}").mkdir()
    options = ImportOptions(
        Poolings.parse(case.poolings),
        tables=case.tables,
        features=parse_features(case.features),
        quantized=case.quantized,
        samples=write_samples(folder, case.model) if case.checked else None,
    )
    try:
        import_torchrec(checkpoint, folder / f"served{number}" / "model", options)
    except ErlessError as error:
        expected = case.refusal is not None and case.refusal in str(error)
        return "" if expected else f"refused: {error}"
    if case.refusal is not None:
        return f"imported, though {case.refusal!r} was expected"
    return served_fault(folder / f"served{number}", folder / f"{case.model}.npz")


def served_fault(folder: Path, recorded: Path) -> str:
    """What is wrong with the answers of four remote shards for the bundle `folder/model`."""
    with np.load(recorded, allow_pickle=False) as arrays:
        saved = {name: arrays[name] for name in arrays.files}
    with serve(folder) as client:
        found = [client.predict(query).predictions for query in single_samples(saved)]
    wanted = saved["predictions"]
    worst = float(np.max(np.abs(np.concatenate(found) - wanted) / np.abs(wanted)))
    print(f"    {len(found):,} queries over {SHARDS} shards: {worst:.1e} relative")
    return "" if worst <= TOLERANCE else f"served with a relative difference of {worst:.1e}"


def single_samples(saved: dict[str, np.ndarray]) -> Iterator[Query]:
    """Each sample of a query, alone."""
    lengths = saved["lengths"]
    begins = np.concatenate([[0], np.cumsum(lengths.reshape(-1), dtype=np.int64)])
    rows = np.arange(len(lengths)) * lengths.shape[1]
    for sample in range(lengths.shape[1]):
        bags = [slice(begins[bag], begins[bag + 1]) for bag in rows + sample]
        weights = saved.get("weights")
        yield Query(
            dense=saved["dense"][sample : sample + 1],
            values=np.concatenate([saved["values"][bag] for bag in bags]),
            lengths=np.ascontiguousarray(lengths[:, sample : sample + 1]),
            weights=None if weights is None else np.concatenate([weights[bag] for bag in bags]),
        )


def main() -> int:
    """Make the models, import each, print a line for each."""
    parser = argparse.ArgumentParser(description="Compare imports with the real torchrec.")
    parser.add_argument("python", type=Path, help="an interpreter that imports torchrec")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="erless-torchrec-") as name:
        folder = Path(name)
        subprocess.run([options.python, "-W", "ignore", MODELS, folder], check=True)
        for number, case in enumerate(CASES):
            found = fault(folder, number, case)
            failed = failed or bool(found)
            asked = f"{case.checkpoint} {' '.join(case.poolings)} {','.join(case.tables or ())}"
            outcome = found or ("refused as it must be" if case.refusal else "predicts the same")
            print(f"{asked:36} {outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
