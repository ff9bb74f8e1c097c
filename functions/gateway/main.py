"""The gateway function: environment → settings → app. See docs/functions.md."""

import sys

from erless.serve.process.start import start

if __name__ == "__main__":
    sys.exit(start("gateway"))
