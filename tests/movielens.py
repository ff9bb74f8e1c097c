"""A small MovieLens of made-up ratings, in RecBole's files."""

from __future__ import annotations

from pathlib import Path

from erless.importers.made_up_ratings import write_ratings

__all__ = ["write_movielens"]


def write_movielens(
    folder: Path, users: int = 30, films: int = 120, ratings: int = 1500, seed: int = 0
) -> Path:
    """Write the three files. Returns `folder`."""
    return write_ratings(folder, users, films, ratings, seed)
