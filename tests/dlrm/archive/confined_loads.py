"""Load archives one by one, each in a process with 2 s of CPU and 200 MB beyond torch itself.

`python -m tests.dlrm.archive.confined_loads PATH…` prints a JSON list: "refused: …" where
`load_exported` raises an ArtifactError, "loaded", or what else became of the process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import psutil
import torch

from erless.dlrm.archive import load_exported
from erless.errors import ArtifactError

CPU_S = 2
MEMORY_BYTES = 200 << 20


def limited_load(path: Path, pipe: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime) + CPU_S + 1  # whole seconds, rounded up
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    memory = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        load_exported(path)
        outcome = "loaded"
    except ArtifactError as error:
        outcome = f"refused: {error}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    os.write(pipe, outcome.encode()[:4000])


def load(path: Path) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        limited_load(path, write)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        outcome = pipe.read().decode()
    return outcome or f"ended by signal {os.waitstatus_to_exitcode(status)}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.ops.aten.relu.default._schema  # noqa: B018 - registers what a load looks up
    json.dump([load(Path(path)) for path in sys.argv[1:]], sys.stdout)
