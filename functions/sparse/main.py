"""The sparse function, as `python -m erless.serve sparse`. See docs/functions.md."""

import sys

from erless.serve.process.start import start

if __name__ == "__main__":
    sys.exit(start("sparse"))
