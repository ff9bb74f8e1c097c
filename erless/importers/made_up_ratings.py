"""Made-up ratings in MovieLens 100k's files, for where the real ones are not at hand.

The real ones, as RecBole distributes them (GroupLens' terms apply): `SOURCE`, whose `ml-100k.inter`
has the sha256 `SHA256`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from erless.storage.atomic import os_errors

__all__ = ["SHA256", "SOURCE", "write_ratings"]

SOURCE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/MovieLens/ml-100k.zip"
SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
USERS, FILMS, RATINGS = 943, 1682, 100_000  # as many as the real ones
GENRES = ("Action", "Comedy", "Drama", "Horror", "War")


def write_ratings(
    folder: Path, users: int = USERS, films: int = FILMS, ratings: int = RATINGS, seed: int = 0
) -> Path:
    """Write the three files; a film's number says whether it is liked. Returns `folder`.

    Raises:
        StorageError: the disk refused.
    """
    generator = np.random.default_rng(seed)
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for second in range(ratings):
        film = int(generator.integers(films))
        stars = 5 - film % 5 if generator.random() < 0.8 else int(generator.integers(1, 6))
        inter.append(f"{generator.integers(users)}\t{film}\t{stars}\t{second // 3}")
    user = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    user += [f"{number}\t30\tF\twriter\t1" for number in range(users)]
    item = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for film in range(films):
        words = generator.choice(GENRES, generator.integers(1, 4), replace=False)
        item.append(f"{film}\tFilm {film}\t1990\t{' '.join(words)}")
    for suffix, lines in (("inter", inter), ("user", user), ("item", item)):
        file = folder / f"ml-100k.{suffix}"
        with os_errors(file):
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
