"""erless: serve deep learning recommendation models elastically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erless.version import __version__

if TYPE_CHECKING:
    from erless.importers.graph.export import export
    from erless.pack.generations.publish import update

__all__ = ["__version__", "export", "update"]


def __getattr__(name: str) -> Any:
    """Import what a name stands for, and torch with it, when it is first used."""
    if name == "export":
        from erless.importers.graph.export import export

        return export
    if name == "update":
        from erless.pack.generations.publish import update

        return update
    raise AttributeError(f"module 'erless' has no attribute {name!r}")
