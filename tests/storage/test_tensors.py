from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from erless.errors import ArtifactError, StorageError
from erless.storage.digests import digest_file
from erless.storage.tensors import TensorFile, TensorWriter, write_tensors

ARRAYS = st.dictionaries(
    st.text("abcxyz_.", min_size=1, max_size=6),
    st.sampled_from(["<f4", "<f2", "<i8", "<i4", "|u1"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=4,
)


@given(ARRAYS)
def test_the_safetensors_package_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.safetensors"
    digest = write_tensors(path, arrays, {"who": "erless"})
    assert digest == digest_file(path)
    read = safetensors.numpy.load_file(path)
    file = TensorFile(path)
    assert set(read) == set(arrays) == set(file.tensors)
    assert file.metadata == {"who": "erless"}
    for name, array in arrays.items():
        for other in (read[name], file.map(name), file.read(name)):
            assert other.dtype == array.dtype
            assert other.shape == array.shape
            assert other.tobytes() == array.tobytes()


@given(ARRAYS)
def test_we_read_what_the_safetensors_package_writes(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.safetensors"
    safetensors.numpy.save_file(arrays, path)
    file = TensorFile(path)
    for name, array in arrays.items():
        assert file.read(name).tobytes() == array.tobytes()


def test_streaming_equals_writing_at_once(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    whole = write_tensors(tmp_path / "a", {"rows": rows, "n": np.arange(3)})
    declared = {"rows": (np.float32, (100, 8)), "n": (np.int64, (3,))}
    with TensorWriter(tmp_path / "b", declared) as writer:
        for begin in range(0, 100, 7):
            writer.write("rows", rows[begin : begin + 7])
        writer.write("n", np.arange(3))
        assert writer.close() == whole


def test_a_writer_refuses_what_was_not_declared(tmp_path: Path) -> None:
    declared = {"a": (np.float32, (2,)), "b": (np.float32, (2,))}
    with TensorWriter(tmp_path / "x", declared) as writer:
        with pytest.raises(ValueError, match="out of turn"):
            writer.write("b", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="wrong dtype or size"):
            writer.write("a", np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="wrong dtype or size"):
            writer.write("a", np.zeros(2, np.float64))
        writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="is incomplete"):
            writer.close()


@pytest.mark.parametrize("cut", [0, 5, 8, 40, 130, -1])
def test_a_truncated_file_says_where(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"rows": np.ones((16, 4), np.float32)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=r"t\.safetensors: .*(offset|header)"):
        TensorFile(path)


def test_trailing_bytes_and_damaged_headers(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"rows": np.ones((16, 4), np.float32)})
    good = path.read_bytes()
    path.write_bytes(good + b"x")
    with pytest.raises(ArtifactError, match="1 unexpected bytes at offset"):
        TensorFile(path)
    path.write_bytes(good.replace(b"[16,4]", b"[16,5]"))
    with pytest.raises(ArtifactError, match="does not match"):
        TensorFile(path)
    path.write_bytes(good.replace(b"F32", b"F99"))
    with pytest.raises(ArtifactError, match="unknown dtype F99"):
        TensorFile(path)
    path.write_bytes(good.replace(b"[0,256]", b"[1,257]"))
    with pytest.raises(ArtifactError, match="begins at offset"):
        TensorFile(path)
    path.write_bytes(b"PK\x03\x04" + bytes(400))
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        TensorFile(path)
    path.write_bytes(good)
    with pytest.raises(ArtifactError, match="no tensor cols; the file has rows"):
        TensorFile(path).map("cols")


def test_a_mapped_array_keeps_writes_private(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"rows": np.ones((4, 4), np.float32)})
    mapped = TensorFile(path).map("rows")
    mapped[:] = 7
    assert (TensorFile(path).read("rows") == 1).all()


def test_a_view_that_repeats_its_bytes_does_not_fill_the_disk(tmp_path: Path) -> None:
    row = np.ones((1, 32), np.float32)
    endless = np.broadcast_to(row, (1 << 20, 32))
    with pytest.raises(ValueError, match="rows repeats the same bytes"):
        write_tensors(tmp_path / "x", {"rows": endless})
    assert (tmp_path / "x").stat().st_size < 1000


def test_a_file_larger_than_the_disk_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"it needs 4,\d+,\d+,\d+,\d+,\d+ bytes, .* are free"):
        TensorWriter(tmp_path / "x", {"rows": (np.float32, (1 << 40, 1 << 10))})
    assert not (tmp_path / "x").exists()


def test_arrays_in_any_order_are_written_right_a_piece_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erless.storage.tensors.PIECE_BYTES", 1 << 10)
    array = np.arange(6000, dtype=np.float32).reshape(100, 60)
    arrays = {
        "fortran": np.asfortranarray(array),
        "reversed": array[::-1],
        "strided": array[:, ::2],
    }
    write_tensors(tmp_path / "x", arrays)
    file = TensorFile(tmp_path / "x")
    for name, expected in arrays.items():
        assert np.array_equal(file.read(name), expected)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "whole numbers from 0 on"),
        ('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', "whole numbers from 0 on"),
        ('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "whole numbers from 0 on"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', "x is not known"),
        ('{"a":{"dtype":"F8","shape":[1],"data_offsets":[0,4]}}', "unknown dtype F8"),
        ('{"a":{},"a":{}}', "'a' is given twice"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}', "beyond what a number"),
        ("[" * 50_000, "nested too deep"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: str, words: str) -> None:
    text = header.encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(ArtifactError, match=words):
        TensorFile(tmp_path / "x")
