from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.errors import (
    ArtifactError,
    CheckpointError,
    ModelError,
    OptionError,
    PlanError,
    QueryError,
)
from erless.importers.options import ImportOptions
from erless.importers.poolings import Poolings
from erless.importers.tables import import_tables
from erless.plan.source import profile_source
from erless.serve.protocol.queries import check_query
from erless.specs.model import Pooling
from tests.buckets import S3
from tests.towers import CrossV2, DeepFm, export

SUM = ImportOptions(Poolings(Pooling.SUM))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    np.save(tmp_path / "users.npy", generator.standard_normal((9, 4)).astype(np.float32))
    items = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    safetensors.torch.save_file({"weight": items}, tmp_path / "items.safetensors")
    export(DeepFm(3, 2, 4), tmp_path / "tower.pt2", 3, 2, 4)
    return tmp_path


def query(rows: tuple[int, ...], batch: int = 5) -> Query:
    generator = np.random.default_rng(1)
    lengths = generator.integers(0, 4, (len(rows), batch)).astype(np.int32)
    ids = [generator.integers(0, n, r.sum()) for n, r in zip(rows, lengths, strict=True)]
    dense = generator.standard_normal((batch, 3)).astype(np.float32)
    return Query(dense, np.concatenate(ids), lengths)


@pytest.mark.parametrize("architecture", [DeepFm, CrossV2])
def test_any_architecture_predicts_as_torch_does(folder: Path, architecture: type) -> None:
    tower = architecture(3, 2, 4)
    export(tower, folder / "tower.pt2", 3, 2, 4)
    sources = [f"people={folder / 'users.npy'}", str(folder / "items.safetensors")]
    manifest = import_tables(sources, folder / "tower.pt2", 3, folder / "m", SUM)
    assert [(t.name, t.rows) for t in manifest.model.tables] == [("people", 9), ("items", 20)]
    monolith = Monolith.load(folder / "m")
    asked = query((9, 20))
    pooled = torch.stack(monolith.pool(asked), dim=1)
    expected = tower(torch.from_numpy(asked.dense), pooled).detach().flatten().numpy()
    np.testing.assert_allclose(monolith.predict(asked), expected, rtol=1e-5, atol=1e-6)
    items = safetensors.torch.load_file(folder / "items.safetensors")["weight"].float()
    assert torch.equal(monolith.tables[1], items)


def test_tables_in_a_bucket_are_those_of_files(folder: Path, s3: S3) -> None:
    users = torch.from_numpy(np.load(folder / "users.npy"))
    safetensors.torch.save_file({"rows": users}, folder / "users.safetensors")
    for path in folder.glob("*.safetensors"):
        s3.client().put_object(Bucket=s3.bucket, Key=path.name, Body=path.read_bytes())
    options = replace(SUM, endpoint_url=s3.endpoint_url)
    remote = [f"people=s3://{s3.bucket}/users.safetensors", f"s3://{s3.bucket}/items.safetensors"]
    local = [f"people={folder / 'users.npy'}", str(folder / "items.safetensors")]
    tower = folder / "tower.pt2"
    made = import_tables(remote, tower, 3, folder / "r", options)
    assert made.digest == import_tables(local, tower, 3, folder / "l", SUM).digest
    for source, told in (
        (f"s3://{s3.bucket}/users.npy", "tables are read from .safetensors files in a bucket"),
        (f"s3://{s3.bucket}/absent.safetensors", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=told):
            import_tables([source, local[1]], tower, 3, folder / "n", options)


def test_tables_of_different_dims_are_padded(folder: Path) -> None:
    np.save(folder / "small.npy", np.ones((6, 2), np.float16))
    tower = DeepFm(3, 2, 4)
    export(tower, folder / "tower.pt2", 3, 2, 4)
    sources = [str(folder / "users.npy"), str(folder / "small.npy")]
    import_tables(sources, folder / "tower.pt2", 3, folder / "m", SUM)
    monolith = Monolith.load(folder / "m")
    asked = query((9, 6))
    first, second = monolith.pool(asked)
    padded = torch.stack([first, torch.nn.functional.pad(second, (0, 2))], dim=1)
    expected = tower(torch.from_numpy(asked.dense), padded).detach().flatten().numpy()
    np.testing.assert_allclose(monolith.predict(asked), expected, rtol=1e-5, atol=1e-6)


def test_a_folder_of_tables(folder: Path) -> None:
    (folder / "t").mkdir()
    both = {"b": torch.ones(3, 4), "a": torch.ones(2, 4)}
    safetensors.torch.save_file(both, folder / "t" / "both.safetensors")
    manifest = import_tables(
        [str(folder / "t")], folder / "tower.pt2", 3, folder / "m", replace(SUM, tables=["b", "a"])
    )
    assert [table.name for table in manifest.model.tables] == ["b", "a"]


def test_a_table_larger_than_a_chunk_streams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erless.importers.bundle.CHUNK_BYTES", 40)
    sources = [str(folder / "users.npy"), str(folder / "items.safetensors")]
    import_tables(sources, folder / "tower.pt2", 3, folder / "m", SUM)
    rows = Monolith.load(folder / "m").tables[0].numpy()
    assert np.array_equal(rows, np.load(folder / "users.npy"))


def test_bad_tables(folder: Path) -> None:
    tower = folder / "tower.pt2"
    np.save(folder / "object.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(folder / "ints.npy", np.ones((3, 4), np.int64))
    np.save(folder / "flat.npy", np.ones(3, np.float32))
    (folder / "cut.npy").write_bytes((folder / "users.npy").read_bytes()[:150])
    (folder / "empty").mkdir()
    two = {"a": torch.ones(2, 4), "b": torch.ones(2, 4)}
    safetensors.torch.save_file(two, folder / "two.safetensors")
    users = str(folder / "users.npy")
    for sources, error, message in (
        ([folder / "object.npy", users], CheckpointError, r"object\.npy: truncated or not"),
        ([folder / "ints.npy", users], CheckpointError, "ints.npy holds int64, not floats"),
        ([folder / "flat.npy", users], CheckpointError, r"table flat has shape \(3,\)"),
        ([folder / "cut.npy", users], CheckpointError, r"cut\.npy: truncated"),
        ([folder / "none.npy", users], ArtifactError, r"none\.npy does not exist"),
        ([folder / "empty", users], CheckpointError, "holds no .npy or .safetensors"),
        ([tower, users], CheckpointError, "read from .npy and .safetensors"),
        ([f"x={folder / 'two.safetensors'}"], CheckpointError, "holds 2 tensors"),
        ([f"a b={users}", users], CheckpointError, "table name 'a b'"),
        ([users, users], CheckpointError, "two tables are called users"),
        (
            [users],
            ModelError,
            r"takes dense \(B, 3\) and pooled \(B, 2, 4\); the model has .* pooled \(B, 1, 4\)",
        ),
        ([], CheckpointError, "no tables given"),
    ):
        with pytest.raises(error, match=message):
            import_tables([str(each) for each in sources], tower, 3, folder / "m", SUM)
        assert not (folder / "m").exists()


def test_a_tower_of_fixed_batch_is_refused(folder: Path) -> None:
    example = (torch.randn(4, 3), torch.randn(4, 2, 4))
    torch.export.save(torch.export.export(DeepFm(3, 2, 4), example), folder / "fixed.pt2")
    sources = [str(folder / "users.npy"), str(folder / "items.safetensors")]
    with pytest.raises(
        ModelError, match=r"fixed\.pt2: the tower was exported for a batch of 4 and no other"
    ):
        import_tables(sources, folder / "fixed.pt2", 3, folder / "m", SUM)


def test_an_order_that_nobody_gave_is_demanded(folder: Path) -> None:
    both = {"b": torch.ones(3, 4), "a": torch.ones(2, 4)}
    safetensors.torch.save_file(both, folder / "both.safetensors")
    sources, tower = [str(folder / "both.safetensors")], folder / "tower.pt2"
    with pytest.raises(OptionError, match="does not record the order of its tables"):
        import_tables(sources, tower, 3, folder / "m", SUM)
    with pytest.raises(OptionError, match=r"the order names tables b, c; .* has a, b"):
        import_tables(sources, tower, 3, folder / "m", replace(SUM, tables=["b", "c"]))


def test_a_pooling_that_nobody_gave_is_demanded(folder: Path) -> None:
    sources = [str(folder / "users.npy"), str(folder / "items.safetensors")]
    with pytest.raises(OptionError, match="the pooling of table users is not given"):
        import_tables(sources, folder / "tower.pt2", 3, folder / "m")


def test_a_file_beside_the_tables_is_not_passed_over(folder: Path) -> None:
    (folder / "t").mkdir()
    np.save(folder / "t" / "users.npy", np.ones((9, 4), np.float32))
    np.savez(folder / "t" / "items.npz", np.ones((9, 4), np.float32))
    with pytest.raises(CheckpointError, match=r"items\.npz may hold a table"):
        import_tables([str(folder / "t")], folder / "tower.pt2", 3, folder / "m", SUM)


def test_tables_are_told_by_their_content(folder: Path) -> None:
    (folder / "users.npy").rename(folder / "users.bin")
    sources = [f"users={folder / 'users.bin'}", str(folder / "items.safetensors")]
    manifest = import_tables(sources, folder / "tower.pt2", 3, folder / "m", SUM)
    assert [table.name for table in manifest.model.tables] == ["users", "items"]


def test_the_batches_of_the_export_bound_queries(folder: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=4)
    example = (torch.randn(3, 3), torch.randn(3, 2, 4))
    tower = DeepFm(3, 2, 4)
    dynamic = {"dense": {0: batch}, "pooled": {0: batch}}
    program = torch.export.export(tower, example, dynamic_shapes=dynamic)
    torch.export.save(program, folder / "tower.pt2")
    sources = [str(folder / "users.npy"), str(folder / "items.safetensors")]
    manifest = import_tables(sources, folder / "tower.pt2", 3, folder / "m", SUM)
    assert manifest.model.largest_batch(4096) == 4
    assert manifest.model.largest_batch(3) == 3
    asked = query((9, 20), 5)
    inputs = {"dense": asked.dense, "lengths": asked.lengths, "values": asked.values}
    with pytest.raises(QueryError, match="5 samples, at most 4"):
        check_query(inputs, manifest.model.largest_batch(4096))
    # queries are batched together beyond that, and the last batch may be smaller
    monolith = Monolith.load(folder / "m")
    for samples in (1, 4, 5, 9):
        asked = query((9, 20), samples)
        pooled = torch.stack(monolith.pool(asked), dim=1)
        expected = tower(torch.from_numpy(asked.dense), pooled).detach().flatten().numpy()
        np.testing.assert_allclose(monolith.predict(asked), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(PlanError, match="a batch of 32 samples, the tower takes at most 4"):
        profile_source(folder / "m", folder / "profile", 32)
