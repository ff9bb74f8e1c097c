import shutil
from pathlib import Path

import numpy as np
import pytest

from erless.errors import ArtifactError, CheckpointError
from erless.importers.movielens import read_movielens


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "2\t10\t5\t100\n1\t10\t4\t50\n1\t11\t1\t100\n2\t11\t4\t200\n"
    )
    (tmp_path / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t24\tM\twriter\t1\n2\t53\tF\tother\t2\n"
    )
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '10\tToy Story\t1995\tAnimation Comedy\n11\tGolden "Eye\t1994\tAction\n'
    )
    return tmp_path


def test_samples_are_in_the_order_of_time(tiny: Path) -> None:
    ratings = read_movielens(tiny)
    assert ratings.samples.labels is not None
    assert ratings.samples.labels.tolist() == [1, 1, 0, 1]  # times 50, 100, 100, 200
    assert ratings.sizes == {
        "user": 2,
        "item": 2,
        "age": 2,
        "gender": 2,
        "occupation": 2,
        "year": 2,
        "genres": 3,
    }
    assert ratings.samples.lengths[-1].tolist() == [2, 2, 1, 1]
    assert ratings.samples.values[:4].tolist() == [0, 1, 0, 1]
    assert ratings.samples.values[4:8].tolist() == [0, 0, 1, 1]


def test_dense_features_see_only_the_past(tiny: Path) -> None:
    dense = read_movielens(tiny).samples.dense
    assert dense[0, 0] == 0  # nothing before
    assert dense[0, 2] == 0
    assert dense[1, 0] == 0  # user 2 is new at 100, its item 10 was rated at 50
    assert dense[1, 2] == pytest.approx(np.log1p(1) / 5)
    assert dense[2, 2] == 0  # item 11 is new at 100: the same second does not count
    assert dense[3, 2] == pytest.approx(np.log1p(1) / 5)
    assert dense[3, 3] < 0  # item 11 was disliked


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        (
            "inter",
            "2\t10\t5\t100\n",
            "2\t10\t5\n",
            r"ml-100k\.inter, line 2: 3 columns, expected 4",
        ),
        ("inter", "rating:float", "stars:float", r"ml-100k\.inter: no column rating"),
        ("inter", "2\t11\t4", "3\t11\t4", "user 3 or item 11 is rated but unknown"),
        ("user", "age", "years", r"ml-100k\.user: no column age"),
        ("inter", "\t4\t50", "\tgood\t50", "rating 'good'"),
    ],
)
def test_malformed_files(tiny: Path, file: str, before: str, after: str, message: str) -> None:
    path = tiny / f"ml-100k.{file}"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(CheckpointError, match=message):
        read_movielens(tiny)


def test_absent_and_empty_files(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "ml-100k.user", tmp_path / "keep")
    (tiny / "ml-100k.user").unlink()
    with pytest.raises(ArtifactError, match=r"ml-100k\.user does not exist"):
        read_movielens(tiny)
    header = (tmp_path / "keep").read_text().splitlines()[0]
    (tiny / "ml-100k.user").write_text(header + "\n")
    with pytest.raises(CheckpointError, match="has no rows"):
        read_movielens(tiny)


def test_the_real_data(shared_data: Path) -> None:
    ratings = read_movielens(shared_data)
    assert ratings.samples.batch == 100_000
    assert ratings.train == 80_000
    assert ratings.sizes["user"] == 943
    assert ratings.sizes["item"] == 1682
    assert np.isfinite(ratings.samples.dense).all()
