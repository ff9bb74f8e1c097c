"""MovieLens 100k as histories: what a user had rated before, and what they rated then.

Reads RecBole's distribution as `erless.importers.movielens` does. A sample is one rating; its
history is the user's last `LENGTH` ratings of earlier seconds, oldest first, filled up with 0 at
the front. Split by time: the first 80 % of ratings train, the rest are held out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.importers.movielens import TRAIN_SHARE, numbered, read_joined

__all__ = ["GENRES", "LENGTH", "Histories", "read_histories"]

LENGTH = 20  # ratings of a history
GENRES = 6  # of a film, at most
STARS = 5  # the best rating
Inputs = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Histories:
    """All ratings in the order of time.

    Args:
        inputs: `history` and `ratings` (S, LENGTH), `target` (S,), `genres` (S, GENRES): rows and
            ratings, int64; 0 is padding.
        stars: (S,) float32, the rating itself, 1 to 5.
        items: rows of the item table, the padding among them.
        genres: rows of the genre table, likewise.
    """

    inputs: Inputs
    stars: NDArray[np.float32]
    items: int
    genres: int

    @property
    def train(self) -> int:
        """How many ratings, the earliest, are for training."""
        return int(len(self.stars) * TRAIN_SHARE)

    @property
    def labels(self) -> NDArray[np.float32]:
        """(S,) float32: 1 where the rating is 4 or more."""
        return (self.stars >= 4).astype(np.float32)

    def part(self, places: slice | NDArray[np.int64]) -> Inputs:
        """The inputs of some samples."""
        return {name: array[places] for name, array in self.inputs.items()}


def read_histories(folder: Path) -> Histories:
    """Read the three files in `folder`.

    Raises:
        CheckpointError: a file is missing or a line is malformed; names file and line.
    """
    joined = read_joined(folder)
    events, films = joined.events, joined.items
    items = _rows({event[1] for event in events})
    genres = _rows({word for event in events for word in films[event[1]][2].split()})
    inputs = {
        "history": np.zeros((len(events), LENGTH), np.int64),
        "ratings": np.zeros((len(events), LENGTH), np.int64),
        "target": np.array([items[event[1]] for event in events], np.int64),
        "genres": np.zeros((len(events), GENRES), np.int64),
    }
    stars = np.array([float(event[2]) for event in events], np.float32).clip(1, STARS)
    seen: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for sample, (user, item, _, time) in enumerate(events):
        own = seen[user]
        past = [each for each in own if each[0] < float(time)][-LENGTH:]
        if past:
            inputs["history"][sample, -len(past) :] = [row for _, row, _ in past]
            inputs["ratings"][sample, -len(past) :] = [rating for _, _, rating in past]
        words = films[item][2].split()[:GENRES]
        inputs["genres"][sample, : len(words)] = [genres[word] for word in words]
        own.append((float(time), items[item], round(float(stars[sample]))))
    return Histories(inputs, stars, items=len(items) + 1, genres=len(genres) + 1)


def _rows(tokens: set[str]) -> dict[str, int]:
    """Tokens → rows from 1: row 0 is the padding's."""
    return {token: row + 1 for token, row in numbered(tokens).items()}
