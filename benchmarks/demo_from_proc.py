"""The demo's numbers once more, from /proc alone: nothing of erless is imported here.

    python benchmarks/demo_from_proc.py [options of erless demo]

Runs `erless demo -o json` and adds up meanwhile what the kernel says of its processes
(`smaps_rollup`: PSS): of whole models, and of the supervisor with the functions. What the demo says
on stderr tells which part of it is under way. Exit 1 where a number differs by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

EVERY_S = 0.25
WITHIN = 0.1
MB = 1e6

Sample = tuple[float, dict[int, int]]  # when, and PSS by process


def main(options: list[str]) -> int:
    """Run the demo beside the sampling; print both numbers of each kind."""
    with tempfile.TemporaryDirectory(prefix="demo-from-proc-") as folder:
        command = [sys.executable, "-m", "erless", "demo", "-o", "json", *options]
        report = ["--report", str(Path(folder) / "page.html")]
        demo = subprocess.Popen(
            [*command, *report],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": folder},
        )
        told: list[tuple[float, str]] = []
        reader = threading.Thread(target=_listen, args=(demo, told))
        reader.start()
        samples: list[Sample] = []
        output: list[str] = []
        waiter = threading.Thread(target=lambda: output.append(demo.stdout.read()))  # type: ignore[union-attr]
        waiter.start()
        while demo.poll() is None:
            memory = _memory(demo.pid, folder)
            samples.append((time.time(), memory))
            time.sleep(EVERY_S)
        reader.join()
        waiter.join()
    if demo.returncode:
        print("\n".join(line for _, line in told), file=sys.stderr)
        return demo.returncode
    return _compare(json.loads(output[0]), told, samples)


def _listen(demo: subprocess.Popen[str], told: list[tuple[float, str]]) -> None:
    assert demo.stderr is not None
    for line in demo.stderr:
        told.append((time.time(), line.strip()))


def _memory(demo: int, folder: str) -> dict[int, int]:
    """PSS of each process of the demo but itself: its children, and what has `folder` in its words.

    Functions are forked by the supervisor, which leaves the demo's session.
    """
    parents = {}
    roots = {demo}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:  # it ended, or is not ours
            continue
        pid = int(entry.name)
        parents[pid] = int(stat[1])
        if folder.encode() in words:
            roots.add(pid)
    found = {pid for pid in parents if pid in roots or _below(pid, parents, roots)} - {demo}
    return {pid: pss for pid in found if (pss := _pss(pid))}


def _below(pid: int, parents: dict[int, int], roots: set[int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid in roots:
            return True
    return False


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def _compare(
    document: dict[str, float], told: list[tuple[float, str]], samples: list[Sample]
) -> int:
    """Print what the demo says beside what /proc said; 1 where they differ."""

    def when(words: str) -> float:
        return next(at for at, line in told if words in line)

    def mean(begin: float, end: float) -> float:
        sums = [sum(each.values()) for at, each in samples if begin <= at <= end]
        return sum(sums) / max(1, len(sums))

    def last(moment: float) -> dict[int, int]:
        return [each for at, each in samples if at <= moment][-1]

    begin, end = when("  traffic: "), when("at the end of the spike")
    idle, woken = when("  idle: "), when("a query woke")
    whole = max(
        (each for at, each in samples if at <= when("whole model: ")),
        key=lambda each: sum(each.values()),
    )
    spike_s = (end - begin) / 2
    rows = [
        ("whole model, at the spike", "spike_model_wise_memory_bytes", sum(whole.values())),
        ("by shards, at the spike", "spike_memory_bytes", mean(end - spike_s, end)),
        ("by shards, idle", "idle_memory_bytes", sum(last(idle).values())),
        ("by shards, over the run", "memory_bytes", mean(begin, woken)),
    ]
    wrong = 0
    for name, key, found in rows:
        ratio = found / document[key]
        wrong += abs(ratio - 1) > WITHIN
        both = f"told {document[key] / MB:7.0f} MB, /proc {found / MB:7.0f} MB"
        print(f"{name:28} {both} ({ratio:.3f})")
    told_processes, processes = document["model_wise_processes"], len(whole)
    wrong += processes != told_processes
    print(f"whole models' processes: told {told_processes}, /proc {processes}")
    before = len(last(idle))
    after = max(len(each) for at, each in samples if idle <= at <= woken)
    print(f"processes by shards: {before} when idle, {after} once a query woke them")
    wrong += after - before < document["functions_woken"]
    return int(wrong > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, epilog="Options go to `erless demo`.")
    sys.exit(main(parser.parse_known_args()[1]))
