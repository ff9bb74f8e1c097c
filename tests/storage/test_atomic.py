import signal
import subprocess
import sys
from pathlib import Path

import pytest

from erless.errors import ArtifactError, StorageError
from erless.storage.atomic import os_errors, staged_directory, staged_file

MARKER = "model.json"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(target: Path, text: str = "x", **options: bool) -> None:
    with staged_directory(target, marker=MARKER, **options) as stage:
        (stage / MARKER).write_text(text)


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "a" / "out", marker=MARKER) as stage:
        (stage / MARKER).write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / MARKER).read_text() == "x"
    assert names(tmp_path / "a") == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_directory(tmp_path / "out", marker=MARKER) as stage:
        (stage / MARKER).write_text("x")
        raise RuntimeError("half-way")
    assert names(tmp_path) == []


def test_existing_is_replaced_only_when_asked_and_ours(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "out", "new")
    assert (tmp_path / "out" / MARKER).read_text() == "old"
    make(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / MARKER).read_text() == "new"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="not erless's to replace"):
        make(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letters.txt").exists()
    assert names(tmp_path) == ["home", "out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert (tmp_path / "out" / MARKER).exists()


def test_the_remains_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from erless.storage.atomic import staged_directory\n"
        "with staged_directory(Path(sys.argv[1]), marker='model.json') as stage:\n"
        "    (stage / 'part').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "out"
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    staged = [name for name in names(tmp_path) if ".tmp-" in name]
    make(out)  # beside a living writer: its stage stays
    assert set(staged) < set(names(tmp_path))
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    make(out, overwrite=True)
    assert names(tmp_path) == ["out"]


def test_a_swap_cut_in_half_is_undone(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.old-00000000")
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "out", "new")
    assert (tmp_path / "out" / MARKER).read_text() == "old"


def test_staged_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with staged_file(target) as stage:
        stage.write_text("1")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), staged_file(target) as stage:
        stage.write_text("2")
        raise KeyboardInterrupt
    assert target.read_text() == "1"
    assert names(tmp_path) == ["a.json"]


def test_os_errors_are_facts(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*full: no space left"):
        with os_errors(tmp_path / "full"), Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
    with pytest.raises(ArtifactError, match=r"absent does not exist"):
        with os_errors(tmp_path), (tmp_path / "absent").open("rb"):
            pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write .*file"):
        make(tmp_path / "file" / "out")
