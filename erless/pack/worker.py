"""Make portions of a pack: `python -m erless.pack.worker`, told what on its standard input.

The first line is the job, each other line a portion, such as `cut 3`, and is answered by a line.
In a pod of an Indexed Job there is one portion, its number is the index, and the job is in the
store: `python -m erless.pack.worker cut --store s3://bucket/prefix --job DIGEST`.

Exit codes: 0 made; 1 failed, may be tried again; 2 cannot be made, however often it is tried.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from erless.errors import ErlessError, StorageError, StoreError
from erless.pack.job import PackJob, job_name
from erless.pack.portions import PackStep, make_portion
from erless.progress import Silent
from erless.specs.stored import load_by_digest
from erless.storage.stores import open_store

__all__ = ["FINAL", "main"]

INDEX = "JOB_COMPLETION_INDEX"  # set by Kubernetes in the pods of an Indexed Job
AGAIN, FINAL = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the portions, and return the exit code."""
    parser = argparse.ArgumentParser(prog="erless.pack.worker", description=__doc__)
    parser.add_argument("step", type=PackStep, nargs="?")
    parser.add_argument("--number", type=int, help=f"of the portion; otherwise {INDEX}")
    parser.add_argument("--store")
    parser.add_argument("--endpoint-url")
    parser.add_argument("--job", help="its digest, in the store")
    options = parser.parse_args(arguments)
    try:
        if options.job:
            store = open_store(options.store, endpoint_url=options.endpoint_url)
            job = load_by_digest(store, job_name(options.job), PackJob, options.job)
        else:
            job = PackJob.parse(sys.stdin.buffer.readline(), "the job on standard input")
            store = open_store(job.store, endpoint_url=job.endpoint_url)
        with job.inputs(store) as inputs:
            for step, number in _portions(options.step, options.number):
                made = make_portion(inputs, store, job.sizes, step, number, Silent())
                print(f"portion {number}: {made} slices and pieces made", flush=True)
    except ErlessError as error:
        print(error, file=sys.stderr, flush=True)
        return AGAIN if isinstance(error, StorageError | StoreError) else FINAL
    return 0


def _portions(step: PackStep | None, number: int | None) -> Iterator[tuple[PackStep, int]]:
    """The one of the options, or those on standard input as they come."""
    if step is not None:
        yield step, int(os.environ[INDEX]) if number is None else number
        return
    for line in sys.stdin.buffer:
        name, place = line.decode().split()
        yield PackStep(name), int(place)


if __name__ == "__main__":
    sys.exit(main())
