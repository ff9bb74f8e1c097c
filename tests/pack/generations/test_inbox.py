"""Batches from a bucket: whole ones only, in their order, each once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erless.errors import BucketError
from erless.pack.generations.compact import compact
from erless.pack.generations.follow import BatchOutcome, follow
from erless.pack.generations.inbox import BucketInbox, open_inbox
from erless.pack.generations.publish import Publisher
from erless.pack.inventory import verify
from erless.specs.generations import generations
from erless.storage.stores import open_store
from erless.storage.tensors import write_tensors
from tests.buckets import S3
from tests.bundles import write_bundle
from tests.releases import Made, make_release

DIM = 8


@pytest.fixture
def made(tmp_path: Path, s3: S3) -> Made:
    return make_release(tmp_path, store=s3.url, endpoint_url=s3.endpoint_url)


@pytest.fixture
def publisher(made: Made, s3: S3) -> Iterator[Publisher]:
    store = open_store(made.store, endpoint_url=s3.endpoint_url)
    opened = Publisher(store, made.release.digest)
    yield opened
    opened.close()


class Trainer:
    """Uploads batches, object by object."""

    def __init__(self, s3: S3, folder: Path) -> None:
        self._s3, self._client, self._folder = s3, s3.client(), folder
        self.url = f"s3://{s3.bucket}/incoming"

    def put(self, key: str, data: bytes = b"") -> None:
        self._client.put_object(Bucket=self._s3.bucket, Key=f"incoming/{key}", Body=data)

    def rows(self, name: str, table: str, ids: list[int]) -> None:
        path = self._folder / "rows.safetensors"
        rows = np.full((len(ids), DIM), ids[0], np.float32)
        write_tensors(path, {"ids": np.array(ids), "rows": rows})
        self.put(f"{name}/{table}.safetensors", path.read_bytes())

    def keys(self) -> list[str]:
        listed = self._client.list_objects_v2(Bucket=self._s3.bucket, Prefix="incoming/")
        return [entry["Key"].removeprefix("incoming/") for entry in listed.get("Contents", ())]


def outcomes(publisher: Publisher, inbox: BucketInbox, looks: int = 1) -> list[BatchOutcome]:
    left = itertools.count()
    return list(follow(lambda: publisher, inbox, every_s=0, go_on=lambda: next(left) < looks))


def test_whole_batches_are_published_in_order_and_put_away(
    publisher: Publisher, made: Made, s3: S3, tmp_path: Path
) -> None:
    trainer = Trainer(s3, tmp_path)
    inbox = BucketInbox(trainer.url, s3.endpoint_url)
    trainer.rows("002", "user", [3, 4])
    trainer.rows("001", "user", [1, 2])
    trainer.rows("001", "item", [9])
    trainer.put("0015/user.csv", b"id\n")
    trainer.put("0016/../user.csv", b"id\n")
    trainer.rows("003", "user", [7])
    write_bundle(tmp_path / "weights", made.model, 3)
    for path in sorted((tmp_path / "weights").rglob("*")):
        if path.is_file():
            trainer.put(f"002/tower/{path.relative_to(tmp_path / 'weights')}", path.read_bytes())
    assert outcomes(publisher, inbox) == [], "none is whole"
    for name in ("002", "001", "0015", "0016"):
        trainer.put(f"{name}/_SUCCESS")
    first, bad, worse, second = outcomes(publisher, inbox)
    assert [o.name for o in (first, bad, worse, second)] == ["001", "0015", "0016", "002"]
    assert first.manifest is not None
    assert second.manifest is not None
    assert (first.manifest.changed, second.manifest.changed) == (3, 2)
    assert second.manifest.tower is not None
    assert "a batch holds" in bad.error
    assert "is no file of a batch" in worse.error
    assert outcomes(publisher, inbox) == [], "each once"
    keys = trainer.keys()
    assert {"published/001/item.safetensors", "published/002/_SUCCESS"} <= set(keys)
    assert {"refused/0015/user.csv", "refused/0015/error.txt"} <= set(keys)
    assert [key for key in keys if key[0] == "0"] == ["003/user.safetensors"]
    folded = compact(publisher.store)
    assert folded.generation == 2
    assert verify(publisher.store, folded.release.digest) == []


def test_a_follower_that_is_stopped_or_refused_goes_on_where_it_was(
    publisher: Publisher, made: Made, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(s3, tmp_path)
    inbox = open_inbox(trainer.url, s3.endpoint_url)
    assert isinstance(inbox, BucketInbox)
    for name in ("001", "002"):
        trainer.rows(name, "user", [int(name)])
        trainer.put(f"{name}/_SUCCESS")

    def stop(name: str, error: str = "") -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(inbox, "put_away", stop)
        with pytest.raises(KeyboardInterrupt):
            outcomes(publisher, inbox)
    original, refusals = inbox.put_away, [BucketError("cannot write: S3 answered 500")]

    def refuse_once(name: str, error: str = "") -> None:
        if refusals:
            raise refusals.pop()
        original(name, error)

    monkeypatch.setattr(inbox, "put_away", refuse_once)
    told = outcomes(publisher, inbox, looks=2)
    assert [(o.name, o.error) for o in told] == [
        (trainer.url, "cannot write: S3 answered 500; it is tried again"),
        ("001", ""),
        ("002", ""),
    ]
    # once more by the one that was stopped, and not twice by the one that was refused
    assert generations(publisher.store, made.release.digest) == (1, 2, 3)
    assert told[2].manifest is not None
    assert told[2].manifest.number == 3, "what came last is answered with"
