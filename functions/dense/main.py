"""The dense function, as `python -m erless.serve dense`. See docs/functions.md."""

import sys

from erless.serve.process.start import start

if __name__ == "__main__":
    sys.exit(start("dense"))
