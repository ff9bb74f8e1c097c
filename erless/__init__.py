"""erless: serve deep learning recommendation models elastically."""

from erless.version import __version__

__all__ = ["__version__"]
