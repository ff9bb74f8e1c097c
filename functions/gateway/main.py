"""The gateway function, as `python -m erless.serve gateway`. See docs/functions.md."""

import sys

from erless.serve.process.start import start

if __name__ == "__main__":
    sys.exit(start("gateway"))
