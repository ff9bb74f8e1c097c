"""The monolith behind the same wire: the whole model in one process, the serving baseline.

    python -m erless.serve.process.monolith --model m --port 0

Same server, same kernels, same tower as the gateway; what differs is that every row is here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from erless.serve.metrics import Metrics
    from erless.serve.protocol.served import Served
    from erless.serve.settings import Settings

__all__ = ["main"]


def _load(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    from erless.serve.functions.monolith import load_monolith

    served = load_monolith(settings, metrics)
    return lambda: served


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, help="the bundle's folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free, see the log")
    parser.add_argument("--max-in-flight", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="of the tower")
    parser.add_argument("--grpc", action="store_true", help="speak gRPC on the same port too")
    parser.add_argument("--log", choices=["debug", "info", "warning"], default="info")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    from erless.errors import ArtifactError
    from erless.serve.process.process import run_function
    from erless.serve.settings import Settings
    from erless.specs.bundle import BundleManifest

    try:
        digest = BundleManifest.open(Path(options.model)).digest
    except ArtifactError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_DATAERR
    settings = Settings(
        kind="monolith",
        store=options.model,
        digest=digest,
        host=options.host,
        port=options.port,
        max_in_flight=options.max_in_flight,
        threads=options.threads,
        grpc=options.grpc,
        log=options.log,
    )
    return run_function(settings, _load)


if __name__ == "__main__":
    sys.exit(main())
