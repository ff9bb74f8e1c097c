"""Run a function: `python -m erless.serve gateway`, `sparse` or `dense` (docs/functions.md)."""

import sys

from erless.serve.process.start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
