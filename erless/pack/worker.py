"""Make one portion of a pack: `python -m erless.pack.worker cut --number 3 < job.json`.

In a pod of an Indexed Job the number is the index, and the job is in the store:
`python -m erless.pack.worker cut --store s3://bucket/prefix --job DIGEST`.

Exit codes: 0 made; 1 failed, may be tried again; 2 cannot be made, however often it is tried.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

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
    """Make the portion, and return the exit code."""
    parser = argparse.ArgumentParser(prog="erless.pack.worker", description=__doc__)
    parser.add_argument("step", type=PackStep)
    parser.add_argument("--number", type=int, help=f"of the portion; otherwise {INDEX}")
    parser.add_argument("--store")
    parser.add_argument("--endpoint-url")
    parser.add_argument("--job", help="its digest, in the store")
    options = parser.parse_args(arguments)
    number = int(os.environ[INDEX]) if options.number is None else options.number
    try:
        if options.job:
            store = open_store(options.store, endpoint_url=options.endpoint_url)
            job = load_by_digest(store, job_name(options.job), PackJob, options.job)
        else:
            job = PackJob.parse(sys.stdin.buffer.read(), "the job on standard input")
            store = open_store(job.store, endpoint_url=job.endpoint_url)
        with job.inputs(store) as inputs:
            made = make_portion(inputs, store, job.sizes, options.step, number, Silent())
    except ErlessError as error:
        print(error, file=sys.stderr, flush=True)
        return AGAIN if isinstance(error, StorageError | StoreError) else FINAL
    print(f"portion {number}: {made} slices and pieces made", flush=True)  # a pod's log
    return 0


if __name__ == "__main__":
    sys.exit(main())
