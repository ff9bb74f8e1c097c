"""A profile counted by one process and on Spark's local[2], in turn: CPU and wall seconds of each.

Beside them Spark's start: the same job over 10,240 accesses.

python -m benchmarks.spark_profile [--accesses 100000000] [--rounds 3] [--master 'local[2]']

CPU is that of all processes that a run starts, the JVM and its Python workers too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.measured import measured
from benchmarks.planning import write_bundle, write_log


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accesses", type=int, default=10**8)
    parser.add_argument("--tables", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--master", default="local[2]")
    options = parser.parse_args()
    on_spark = ["--engine", "spark", "--master", options.master]
    runs: dict[str, list[dict[str, Any]]] = {"one machine": [], "spark": [], "start": []}
    digests = set()
    with tempfile.TemporaryDirectory(prefix="erless-spark-") as scratch:
        folder = Path(scratch)
        write_bundle(folder / "model", options.tables, options.rows)
        log = folder / "log.parquet"
        written = write_log(log, options.accesses, options.tables, options.rows)
        few = folder / "few.parquet"
        pq.write_table(pq.ParquetFile(log).read_row_group(0).slice(0, 80 // options.tables), few)
        for number in range(options.rounds):
            for engine, counted, more in (
                ("one machine", log, []),
                ("spark", log, on_spark),
                ("start", few, on_spark),
            ):
                out = folder / f"{engine.split()[0]}-{number}"
                command = [sys.executable, "-m", "erless", "profile", "--out", str(out)]
                command += [
                    "--model",
                    str(folder / "model"),
                    "--log",
                    str(counted),
                    "-o",
                    "json",
                    *more,
                ]
                spent, _ = measured(command)
                runs[engine].append(spent | {"load_average": os.getloadavg()[0]})
                if counted is log:
                    digests.add(json.loads((out / "profile.json").read_text())["digest"])
    medians = {
        engine: {key: statistics.median(run[key] for run in each) for key in ("wall_s", "cpu_s")}
        for engine, each in runs.items()
    }
    ratios = {
        key: [
            spark[key] / alone[key]
            for alone, spark in zip(runs["one machine"], runs["spark"], strict=True)
        ]
        for key in ("wall_s", "cpu_s")
    }
    found = {
        "accesses": written,
        "digests": len(digests),
        "medians": medians,
        "spark_to_one_machine": {key: statistics.median(each) for key, each in ratios.items()},
        "ratios": ratios,
        "runs": runs,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
