"""`erless example movielens`: train a real DLRM on MovieLens 100k and import it.

Reads RecBole's distribution (`ml-100k.inter`, `.user`, `.item`: tab-separated, typed headers).
Label: rating ≥ 4. Split by time: the first 80 % of ratings train, the rest are held out. Tables:
user, item, age, gender, occupation, year, and genres as a multi-hot bag. Dense features count only
what had happened strictly before the rating.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.queries import Query
from erless.errors import CheckpointError
from erless.specs.model import DlrmTower, ModelSpec, Pooling, TableSpec
from erless.storage.atomic import os_errors

__all__ = ["Joined", "Ratings", "movielens_model", "numbered", "read_joined", "read_movielens"]

DIM = 16
TRAIN_SHARE = 0.8
PRIOR = 5.0  # pseudo-ratings that pull a young mean towards the global one
DENSE_FEATURES = 6


@dataclass(frozen=True, slots=True)
class Ratings:
    """All ratings in the order of time.

    `samples` is one query over all of them, with labels; `sizes` rows per table.
    """

    samples: Query
    sizes: dict[str, int]

    @property
    def train(self) -> int:
        """How many ratings, the earliest, are for training."""
        return int(self.samples.batch * TRAIN_SHARE)


@dataclass(frozen=True, slots=True)
class Joined:
    """The three files.

    Args:
        events: user, item, rating and second of each rating, in the order of time.
        users: user → its line: user, age, gender, occupation.
        items: item → its line: item, year, genres.
    """

    events: list[tuple[str, ...]]
    users: dict[str, tuple[str, ...]]
    items: dict[str, tuple[str, ...]]


def movielens_model(sizes: dict[str, int], sigmoid: bool = True) -> ModelSpec:
    """The DLRM that is trained."""
    return ModelSpec(
        name="movielens",
        dense_features=DENSE_FEATURES,
        tables=tuple(
            TableSpec(
                name=name,
                rows=rows,
                dim=DIM,
                pooling=Pooling.MEAN if name == "genres" else Pooling.SUM,
            )
            for name, rows in sizes.items()
        ),
        tower=DlrmTower(bottom_mlp=(32, DIM), top_mlp=(64, 32, 1), sigmoid=sigmoid),
    )


def read_movielens(folder: Path) -> Ratings:
    """Read and join the three files in `folder`.

    Raises:
        CheckpointError: a file is missing or a line is malformed; names file and line.
    """
    joined = read_joined(folder)
    events, by_user, by_item = joined.events, joined.users, joined.items
    columns = {
        "user": [[row[0]] for row in events],
        "item": [[row[1]] for row in events],
        "age": [[by_user[row[0]][1]] for row in events],
        "gender": [[by_user[row[0]][2]] for row in events],
        "occupation": [[by_user[row[0]][3]] for row in events],
        "year": [[by_item[row[1]][1]] for row in events],
        "genres": [by_item[row[1]][2].split() for row in events],
    }
    labels = np.array([float(row[2]) >= 4 for row in events], np.float32)
    lengths, values, sizes = _encode(columns)
    years = {item: float(row[1]) if row[1].isdigit() else 1990.0 for item, row in by_item.items()}
    dense = _history(events, labels, years)
    return Ratings(Query(dense, values, lengths, labels=labels), sizes)


def read_joined(folder: Path) -> Joined:
    """Read the three files in `folder`.

    Raises:
        CheckpointError: a file is missing or a line is malformed; names file and line.
    """
    ratings = _read(folder / "ml-100k.inter", ("user_id", "item_id", "rating", "timestamp"))
    users = _read(folder / "ml-100k.user", ("user_id", "age", "gender", "occupation"))
    items = _read(folder / "ml-100k.item", ("item_id", "release_year", "class"))
    for row in ratings:
        for what, value in (("rating", row[2]), ("timestamp", row[3])):
            if not value.replace(".", "", 1).isdigit():
                raise CheckpointError(f"{folder}: {what} {value!r} of user {row[0]} is no number")
    order = np.argsort(np.array([float(row[3]) for row in ratings]), kind="stable")
    by_user = {row[0]: row for row in users}
    by_item = {row[0]: row for row in items}
    for row in ratings:
        if row[0] not in by_user or row[1] not in by_item:
            raise CheckpointError(f"{folder}: user {row[0]} or item {row[1]} is rated but unknown")
    return Joined([ratings[index] for index in order.tolist()], by_user, by_item)


def _read(path: Path, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The named columns of a RecBole atomic file."""
    with os_errors(path, "read"), path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = [column.partition(":")[0] for column in next(reader, [])]
        missing = [name for name in names if name not in header]
        if missing:
            raise CheckpointError(f"{path}: no column {missing[0]} in its header")
        where = [header.index(name) for name in names]
        rows = []
        for line in reader:
            if len(line) != len(header):
                raise CheckpointError(
                    f"{path}, line {reader.line_num}: {len(line)} columns, expected {len(header)}"
                )
            rows.append(tuple(line[index] for index in where))
    if not rows:
        raise CheckpointError(f"{path}: has no rows")
    return rows


def _encode(
    columns: dict[str, list[list[str]]],
) -> tuple[NDArray[np.int32], NDArray[np.int32], dict[str, int]]:
    """Tokens → row ids in sorted order of the tokens; lengths (T, S) and values, table-major."""
    lengths: list[list[int]] = []
    values: list[int] = []
    sizes: dict[str, int] = {}
    for name, bags in columns.items():
        row_of = numbered({token for bag in bags for token in bag})
        sizes[name] = len(row_of)
        lengths.append([len(bag) for bag in bags])
        values.extend(row_of[token] for bag in bags for token in bag)
    return np.array(lengths, np.int32), np.array(values, np.int32), sizes


def numbered(tokens: set[str]) -> dict[str, int]:
    """Tokens → rows, in sorted order: numbers by value, before words."""
    return {token: row for row, token in enumerate(sorted(tokens, key=_token_key))}


def _token_key(token: str) -> tuple[int, str]:
    """Numbers by value, before words."""
    return (int(token), "") if token.isdigit() else (1 << 60, token)


def _history(
    events: list[tuple[str, ...]], labels: NDArray[np.float32], years: dict[str, float]
) -> NDArray[np.float32]:
    """Dense features (S, 6): activity and share of likes of user and item so far, age, pace.

    Ratings of the same second do not see each other.
    """
    dense = np.zeros((len(events), DENSE_FEATURES), np.float32)
    seen: dict[tuple[str, str], list[float]] = {}  # (kind, id) → [ratings, likes]
    total, likes = PRIOR, PRIOR / 2
    begin = 0
    first_time = float(events[0][3])
    while begin < len(events):
        end = begin
        while end < len(events) and events[end][3] == events[begin][3]:
            end += 1
        mean = likes / total
        for index in range(begin, end):
            user, item, _, time = events[index]
            features = []
            for key in (("user", user), ("item", item)):
                count, liked = seen.get(key, (0.0, 0.0))
                features += [np.log1p(count) / 5, (liked + PRIOR * mean) / (count + PRIOR) - mean]
            dense[index, :4] = features
            dense[index, 4] = (1998 - years[item]) / 20
            dense[index, 5] = (float(time) - first_time) / 2e7
        for index in range(begin, end):
            for key in (("user", events[index][0]), ("item", events[index][1])):
                entry = seen.setdefault(key, [0.0, 0.0])
                entry[0] += 1
                entry[1] += float(labels[index])
        total += end - begin
        likes += float(labels[begin:end].sum())
        begin = end
    return dense
