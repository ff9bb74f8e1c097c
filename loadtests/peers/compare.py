"""One model, one split, three ways to serve it, side by side on this machine.

    python -m loadtests.peers.compare --ray-python peers/bin/python

erless's functions (target local), the same split as Ray Serve deployments (as Ray comes, and as its
documentation tunes it for throughput), and the monolith in one process, all behind the same wire
and with the same kernels. Each is measured in turn, several rounds over: throughput with
`--connections` closed loops, latency with one query in flight, the CPU of all its processes per
query, its memory, and whether predictions equal the monolith's.

Ray is heavy and pins its own dependencies, so it may live in a virtual environment of its own:

    python -m venv peers && peers/bin/pip install 'ray[serve]' -e .

Without Ray the other two are measured, and the last line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from erless.observe.loadtest.monolith import MonolithServer
from erless.observe.loadtest.served_model import discover
from loadtests.closed_loop import ClosedLoop, run_closed_loop
from loadtests.systems import ROOT, START_S, System, Traffic, erless, local

ALONE_S = 2.0  # at least, with one query in flight


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make(
    folder: Path, rows: int, shards: int, min_replicas: int | None = None
) -> tuple[Path, Path, Path]:
    """RM1 with its profile, cut into `shards` remote shards: bundle, store, expected answers."""
    floor = () if min_replicas is None else ("--min-replicas", min_replicas)
    model, profile, plan, store = (folder / name for name in ("m", "p", "plan.json", "store"))
    erless("example", "rm1", "--rows", rows, "--out", model)
    erless("profile", "--model", model, "--log", model / "access.parquet", "--out", profile)
    erless(
        "plan",
        "--model",
        model,
        "--profile",
        profile,
        "--shards",
        shards,
        "--traffic",
        "4x",
        *floor,
        "--out",
        plan,
    )
    erless("pack", "--model", model, "--profile", profile, "--plan", plan, "--store", store)
    expected = folder / "expected.json"
    expected.write_text(
        erless("predict", "--monolith", model, model / "queries.safetensors", "-o", "json")
    )
    return model, store, expected


@contextmanager
def ray_serve(
    python: str, store: Path, folder: Path, *, tuned: bool, replicas: int = 1
) -> Iterator[System]:
    """The same split in Ray Serve; `tuned`: with its own setting for throughput."""
    folder = folder / ("tuned" if tuned else "plain")
    folder.mkdir()
    port, log = free_port(), folder / "ray.log"
    release = next((store / "releases").iterdir()).stem
    command = [
        python,
        "-m",
        "loadtests.peers.ray_serve",
        "--store",
        str(store),
        "--release",
        release,
        "--port",
        str(port),
        "--replicas",
        str(replicas),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(folder / "ray"),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": str(int(tuned)),
    }
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=sink, stderr=sink, env=environment, start_new_session=True
        )
    try:
        end = time.monotonic() + START_S
        while '"ready"' not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Ray Serve did not start: {log.read_text()[-800:]}")
            time.sleep(0.5)
        name = "Ray Serve, tuned" if tuned else "Ray Serve"
        yield System(name, f"http://127.0.0.1:{port}", lambda: [process.pid])
    finally:
        children = (
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        )
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def measure(system: System, traffic: Traffic, connections: int, seconds: float) -> None:
    """One round: full load, then one query in flight."""
    path = discover(system.url).path

    def drive(connections: int, seconds: float) -> ClosedLoop:
        outcome = run_closed_loop(
            system.url, path, traffic.bodies, connections, seconds, traffic.expected
        )
        system.failed += len(outcome.failures)
        system.largest_error = max(system.largest_error, outcome.largest_error)
        return outcome

    before = system.cpu_s()
    loaded = drive(connections, seconds)
    spent = system.cpu_s() - before
    system.qps.append(loaded.qps)
    system.cpu_ms.append(spent * 1e3 / max(1, len(loaded.latency_ms)))
    alone = drive(1, max(ALONE_S, seconds / 2))
    system.p50_ms.append(float(np.quantile(alone.latency_ms, 0.5)))
    system.p99_ms.append(float(np.quantile(alone.latency_ms, 0.99)))
    system.memory_bytes = system.pss()


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, as the README quotes it."""
    base = next(row for row in rows if row["system"] == "monolith")
    lines = [
        "| served by | queries/s | CPU per query | over the monolith | p50 | p99 | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tax = row["cpu_ms_per_query"] / base["cpu_ms_per_query"]
        lines.append(
            f"| {row['system']} | {row['qps']:.0f} | {row['cpu_ms_per_query']:.2f} ms | {tax:.2f}× "
            f"| {row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms | "
            f"{row['memory_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def rounds(systems: Sequence[System], traffic: Traffic, options: argparse.Namespace) -> None:
    """Measure all in turn, several times, each after as long a time under the same load.

    What scales by itself (erless's gateway does) is then as large as the load wants it.
    """
    for number in range(options.rounds):
        for system in systems:
            path = discover(system.url).path
            run_closed_loop(system.url, path, traffic.bodies, options.connections, options.seconds)
            measure(system, traffic, options.connections, options.seconds)
            print(
                f"round {number + 1}: {system.name} {system.qps[-1]:.0f} queries/s, "
                f"{system.cpu_ms[-1]:.2f} ms of CPU",
                file=sys.stderr,
            )


def over(ours: System, ray: System) -> dict[str, Any]:
    """How we compare with Ray in the rounds that both just had."""
    count = len(ray.qps)
    queries = [a / b for a, b in zip(ours.qps[-count:], ray.qps, strict=True)]
    cpu = [b / a for a, b in zip(ours.cpu_ms[-count:], ray.cpu_ms, strict=True)]
    return {
        "peer": ray.name,
        "qps_over_peer": round(statistics.median(queries), 2),
        "qps_over_peer_rounds": [round(query, 2) for query in queries],
        "cpu_under_peer": round(statistics.median(cpu), 2),
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All systems' rows, and how erless compares with each Ray."""
    probe = subprocess.run(
        [options.ray_python, "-c", "import ray.serve"], capture_output=True, check=False
    )
    compared, peers = [], []
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="erless-peers-")))
        model, store, expected = make(folder, options.rows, options.shards)
        traffic = Traffic.read(model / "queries.safetensors", expected)
        ours = running.enter_context(local(store, folder / "state"))
        server = running.enter_context(MonolithServer(model))
        monolith = System("monolith", server.url, lambda: [server.pid])
        for tuned in (False, True) if probe.returncode == 0 else ():
            with ray_serve(options.ray_python, store, folder, tuned=tuned) as ray:
                rounds([ours, ray, monolith], traffic, options)
            peers.append(ray)
            compared.append(over(ours, ray))
        if not peers:
            rounds([ours, monolith], traffic, options)
        rows = [peer.row() for peer in (ours, *peers, monolith)]
    return {"rows": options.rows, "shards": options.shards, "systems": rows, "compared": compared}


def main() -> None:
    """Measure and print."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--rows", type=int, default=200_000, help="per table of RM1")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--ray-python", default=sys.executable)
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    result = compare(options)
    if options.output == "json":
        print(json.dumps(result, indent=2))
        return
    print(table(result["systems"]))
    for peer in result["compared"]:
        print(
            f"\nerless answers {peer['qps_over_peer']}× the queries of {peer['peer']} "
            f"({peer['cpu_under_peer']}× less CPU per query)"
        )
    if not result["compared"]:
        print(f"\nRay Serve was left out: {options.ray_python} has no ray[serve]")


if __name__ == "__main__":
    main()
