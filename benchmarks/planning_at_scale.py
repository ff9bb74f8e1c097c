"""Planning from 10^12 accesses to 10^10 rows in 10^4 tables: histograms on disk → plan.json.

A part of `python -m benchmarks.planning`; alone:
python -m benchmarks.planning_at_scale [--tables 10000] [--equal]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from erless.dlrm.workload import PowerLaw
from erless.plan.costs.curves import breakpoints
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document, policy_results
from erless.plan.request import PlanRequest
from erless.plan.source import shape_source
from erless.specs.artifact import FileEntry
from erless.specs.model import DlrmTower, ModelSpec, TableSpec, shape_digest
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.storage.tensors import write_tensors

TABLES, ROWS, ACCESSES, SAMPLES = 10**4, 10**10, 10**12, 2 * 10**7
FINE = 1.005  # steps of the made-up counts, finer than the planner's


def many_tables(tables: int = TABLES, equal: bool = False) -> dict[str, Any]:
    """Plan in one set of terms, from a profile of histograms that is made beforehand."""
    with tempfile.TemporaryDirectory(prefix="erless-planning-") as scratch:
        folder = Path(scratch)
        model, profile = _profile(folder, tables)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        begin, wall = time.process_time(), time.monotonic()
        source = shape_source(model, folder, 32)
        read = time.process_time() - begin
        request = PlanRequest(equal_containers=equal)
        outcome = Planner(source.model, source.tables, request).outcome()
        document = plan_document(outcome, source.model_digest, source.profile_digest, source.notes)
        result = policy_results(outcome)[0]
        document.save(folder / "plan.json")
        return {
            "terms": "equal" if equal else "best",
            "tables": tables,
            "rows": sum(spec.rows for spec in model.tables),
            "accesses": sum(access.accesses for access in profile.tables),
            "cpu_s": time.process_time() - begin,
            "read_cpu_s": read,
            "wall_s": time.monotonic() - wall,
            "load_average": os.getloadavg()[0],
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_before_bytes": before,
            "functions": result.functions,
            "usd_per_month": result.usd_per_month,
            "lower_bound_gap": result.lower_bound_gap,
            "notes": list(source.notes),
        }


def _profile(folder: Path, tables: int) -> tuple[ModelSpec, Profile]:
    """A model of so many tables, 10^3 … 10^9 rows each, and the histograms of its log."""
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0.0, 2.0, tables)
    rows = np.maximum(1000, weight / weight.sum() * ROWS * tables / TABLES).astype(np.int64)
    share = rng.lognormal(0.0, 1.0, tables)
    accesses = share / share.sum() * ACCESSES * tables / TABLES
    specs = [
        TableSpec(name=f"t{number}", rows=int(each), dim=int(dim))
        for number, (each, dim) in enumerate(
            zip(rows, rng.choice([16, 32, 64], tables), strict=True)
        )
    ]
    model = ModelSpec(
        dense_features=64,
        tables=tuple(specs),
        tower=DlrmTower(bottom_mlp=(64, 32), top_mlp=(256, 1), interaction="cat"),
    )
    (folder / "histograms").mkdir()
    places = rng.uniform(0.5, 0.95, tables)
    described = [
        _histogram(folder, spec, float(count), float(place))
        for spec, count, place in zip(specs, accesses, places, strict=True)
    ]
    profile = Profile.create(
        model_digest=shape_digest(model), sources=("made up",), tables=tuple(described)
    )
    profile.save(folder / MANIFEST)
    return model, profile


def _histogram(folder: Path, spec: TableSpec, accesses: float, locality: float) -> TableAccess:
    """How many rows have each count, under a power law; rows expected less than once have none."""
    ranks = breakpoints(spec.rows, FINE)
    share = np.diff(PowerLaw(spec.rows, locality).cdf(ranks.astype(np.float64)))
    counts = np.rint(accesses * share / np.diff(ranks)).astype(np.int64)
    values, alike = np.unique(counts, return_inverse=True)
    having = np.bincount(alike, np.diff(ranks).astype(np.float64)).astype(np.int64)
    seen = values > 0
    values, having = values[seen][::-1].copy(), having[seen][::-1].copy()
    path = f"histograms/{spec.name}.safetensors"
    digest = write_tensors(folder / path, {"values": values, "rows": having})
    return TableAccess(
        table=spec.name,
        rows=spec.rows,
        samples=SAMPLES,
        accesses=int((values * having).sum()),
        touched=int(having.sum()),
        locality=locality,
        histogram=FileEntry(path=path, **digest._asdict()),
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=TABLES)
    parser.add_argument("--equal", action="store_true", help="equal containers of 1 vCPU")
    options = parser.parse_args()
    print(json.dumps(many_tables(options.tables, options.equal), indent=2))


if __name__ == "__main__":
    main()
