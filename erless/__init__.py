"""erless: serve deep learning recommendation models elastically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erless.version import __version__

if TYPE_CHECKING:
    from erless.importers.graph.export import export

__all__ = ["__version__", "export"]


def __getattr__(name: str) -> Any:
    """Import `export`, and torch with it, when it is first used."""
    if name == "export":
        from erless.importers.graph.export import export

        return export
    raise AttributeError(f"module 'erless' has no attribute {name!r}")
