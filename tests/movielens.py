"""A small MovieLens of made-up ratings, in RecBole's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["write_movielens"]

GENRES = ("Action", "Comedy", "Drama", "Horror", "War")


def write_movielens(
    folder: Path, users: int = 30, films: int = 120, ratings: int = 1500, seed: int = 0
) -> Path:
    """Write the three files; a film's number says whether it is liked. Returns `folder`."""
    generator = np.random.default_rng(seed)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for second in range(ratings):
        film = int(generator.integers(films))
        stars = 5 - film % 5 if generator.random() < 0.8 else int(generator.integers(1, 6))
        lines.append(f"{generator.integers(users)}\t{film}\t{stars}\t{second // 3}")
    (folder / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    lines = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    lines += [f"{user}\t30\tF\twriter\t1" for user in range(users)]
    (folder / "ml-100k.user").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for film in range(films):
        words = generator.choice(GENRES, generator.integers(1, 4), replace=False)
        lines.append(f"{film}\tFilm {film}\t1990\t{' '.join(words)}")
    (folder / "ml-100k.item").write_text("\n".join(lines) + "\n")
    return folder
