"""Packing in portions: whatever is cut, and whoever does it, the bytes are those of one packer."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from erless.errors import ArtifactError, StoreError, WorkerError
from erless.pack.bundle_files import bundle_files
from erless.pack.inputs import PackInputs
from erless.pack.job import PackJob
from erless.pack.packer import Packed, Packer
from erless.pack.parallel import pack_in_portions
from erless.pack.portions import PackStep, Portions, PortionSizes, make_portion
from erless.pack.processes import Processes
from erless.progress import Silent
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Precision
from erless.storage.store import Store
from erless.storage.stores import open_store
from tests.buckets import S3
from tests.pack.test_packer import tree
from tests.releases import TIERS, default_model, make_inputs, make_plan

WINDOW = 768  # rows: the largest table has four windows
SMALL = PortionSizes(usual_bytes=1, split_bytes=1)  # every window is a portion


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of a plan with each precision, and on a disk."""
    folder = tmp_path_factory.mktemp("inputs")
    bundle, profile = make_inputs(folder, default_model())
    tiers = [
        tier._replace(precision=precision) for tier, precision in zip(TIERS, Precision, strict=True)
    ]
    make_plan(bundle, profile, tiers).save(folder / "plan.json")
    return folder


def inputs_of(folder: Path, **options: str | int) -> PackInputs:
    return PackInputs(
        folder / "model",
        folder / "profile",
        folder / "plan.json",
        window_rows=WINDOW,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def alone(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What one packer makes of them."""
    store = open_store(str(tmp_path_factory.mktemp("alone") / "store"), create=True)
    assert Packer(inputs_of(made), store).pack().release
    return store


class InThisProcess:
    """Makes portions of this process, last first; stops after `stop_after`."""

    def __init__(self, inputs: PackInputs, store: Store, sizes: PortionSizes) -> None:
        self.inputs, self.store, self.sizes = inputs, store, sizes
        self.made: list[tuple[PackStep, int]] = []
        self.stop_after = 1000

    def run(self, step: PackStep, numbers: Sequence[int], done: Callable[[int], None]) -> None:
        for number in reversed(numbers):
            if len(self.made) == self.stop_after:
                raise WorkerError("stopped")
            make_portion(self.inputs, self.store, self.sizes, step, number, Silent())
            self.made.append((step, number))
            done(number)


def pack(inputs: PackInputs, store: Store, runner: InThisProcess) -> Packed:
    return pack_in_portions(Packer(inputs, store), runner.sizes, runner, Silent())


@pytest.mark.parametrize("sizes", [SMALL, PortionSizes(60_000, 30_000), PortionSizes(10**9, 10**9)])
def test_any_portions_make_the_same_bytes(
    made: Path, alone: Store, tmp_path: Path, sizes: PortionSizes
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    inputs = inputs_of(made)
    runner = InThisProcess(inputs, store, sizes)
    packed = pack(inputs, store, runner)
    assert packed.release is not None
    assert packed.slices_written == len(inputs.slices)
    assert tree(store.url) == tree(alone.url)  # no piece and no job is left
    split = any(step is PackStep.JOIN for step, _ in runner.made)
    assert split == (sizes.split_bytes < inputs.model.tables[0].table_bytes)


def test_a_run_that_stopped_is_completed_by_the_next(
    made: Path, alone: Store, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    inputs = inputs_of(made)
    total = sum(len(Portions(inputs, SMALL).of(step)) for step in PackStep)
    done = 0
    for _ in range(total):
        runner = InThisProcess(inputs, store, SMALL)
        runner.stop_after = 3
        try:
            pack(inputs, store, runner)
        except WorkerError:
            done += len(runner.made)
            assert not store.list("releases/")
        else:
            break
    assert done + len(runner.made) == total  # nothing was made twice
    assert tree(store.url) == tree(alone.url)


def test_a_slice_is_not_joined_of_missing_or_damaged_pieces(made: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    inputs = inputs_of(made)
    with pytest.raises(StoreError, match="4 of 4 pieces of table user in shard 0 are missing"):
        make_portion(inputs, store, SMALL, PackStep.JOIN, 0, Silent())
    for number in range(len(Portions(inputs, SMALL).of(PackStep.CUT))):
        make_portion(inputs, store, SMALL, PackStep.CUT, number, Silent())
    for piece in Path(store.url, "pieces").iterdir():
        piece.chmod(0o644)
        piece.write_bytes(bytes(piece.stat().st_size))
    with pytest.raises(ArtifactError, match="altered: sha256 does not match its record's"):
        make_portion(inputs, store, SMALL, PackStep.JOIN, 0, Silent())


def test_a_damaged_table_that_is_cut_in_ranges_leaves_nothing(made: Path, tmp_path: Path) -> None:
    bundle, profile = make_inputs(tmp_path, default_model())
    make_plan(bundle, profile, TIERS).save(tmp_path / "plan.json")
    table = bundle / "tables" / "user.safetensors"
    data = bytearray(table.read_bytes())
    data[-1] ^= 1
    table.chmod(0o644)
    table.write_bytes(data)
    inputs = inputs_of(tmp_path)
    store = open_store(str(tmp_path / "store"), create=True)
    with pytest.raises(ArtifactError, match=r"user\.safetensors: altered"):
        pack(inputs, store, InThisProcess(inputs, store, SMALL))
    assert not store.list("releases/")
    table.write_bytes(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
    again = InThisProcess(inputs, store, SMALL)
    assert pack(inputs, store, again).release is not None
    assert len([number for step, number in again.made if step is PackStep.CUT]) == 4  # user's


def test_processes_share_a_pack_and_one_that_is_killed_is_run_again(
    made: Path, alone: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    inputs, sizes = inputs_of(made), PortionSizes(60_000, 60_000)
    started: list[int] = []
    popen = subprocess.Popen

    def kill_the_first(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        process = popen(command, **options)  # type: ignore[call-overload]
        started.append(process.pid)
        if len(started) == 1:
            os.kill(process.pid, signal.SIGKILL)
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr("erless.pack.processes.subprocess.Popen", kill_the_first)
    runner = Processes(PackJob.here(inputs, store, sizes), 2)
    packed = pack_in_portions(Packer(inputs, store), sizes, runner, Silent())
    assert packed.release is not None
    assert tree(store.url) == tree(alone.url)
    portions = [len(Portions(inputs, sizes).of(step)) for step in PackStep]
    assert portions[0] > 2
    assert len(started) == 1 + sum(min(2, number) for number in portions)


class Sized:
    """What `PortionSizes.for_workers` looks at: tables of so many GB."""

    def __init__(self, *gigabytes: int) -> None:
        rows = [each * 10**9 // 128 for each in gigabytes]
        tables = tuple(TableSpec(name=f"t{n}", rows=size, dim=32) for n, size in enumerate(rows))
        tower = DlrmTower(bottom_mlp=(32,), top_mlp=(1,))
        self.model = ModelSpec(dense_features=1, tables=tables, tower=tower)


@pytest.mark.parametrize(
    ("workers", "gigabytes", "cut"),
    [
        (2, (8,), False),  # one process keeps both cores busy
        (4, (8,), False),
        (8, (8,), True),
        (8, (2, 2, 2, 2), False),  # four processes keep eight cores busy
        (64, (2, 2, 2, 2), True),
        (64, (1, 1), False),  # too small to be worth it
    ],
)
def test_processes_cut_a_table_that_one_alone_would_be_last_with(
    workers: int, gigabytes: tuple[int, ...], cut: bool
) -> None:
    sizes = PortionSizes.for_workers(Sized(*gigabytes), workers)  # type: ignore[arg-type]
    assert (max(gigabytes) * 10**9 > sizes.split_bytes) == cut


def test_a_portion_that_cannot_be_made_is_tried_once_and_tells_why(
    tmp_path: Path, made: Path
) -> None:
    bundle, profile = make_inputs(tmp_path, default_model())
    tiers = [tier._replace(precision=Precision.INT8) for tier in TIERS]
    make_plan(bundle, profile, tiers).save(tmp_path / "plan.json")
    table = bundle / "tables" / "user.safetensors"
    data = bytearray(table.read_bytes())
    data[-4:] = np.float32("inf").tobytes()
    table.chmod(0o644)
    table.write_bytes(data)
    inputs, sizes = inputs_of(tmp_path), PortionSizes(10**9, 10**9)
    store = open_store(str(tmp_path / "store"), create=True)
    runner = Processes(PackJob.here(inputs, store, sizes), 2)
    with pytest.raises(WorkerError, match=r"portion 0 to cut exited 2: element 7 of a row is inf"):
        pack_in_portions(Packer(inputs, store), sizes, runner, Silent())
    assert not store.list("releases/")


def test_a_bundle_in_a_bucket_is_read_in_ranges(
    made: Path, alone: Store, tmp_path: Path, s3: S3
) -> None:
    for path in (made / "model").rglob("*"):
        if path.is_file():
            name = path.relative_to(made).as_posix()
            s3.client().put_object(Bucket=s3.bucket, Key=name, Body=path.read_bytes())
    store = open_store(str(tmp_path / "store"), create=True)
    with bundle_files(f"s3://{s3.bucket}/model", s3.endpoint_url) as files:
        assert not (files.folder / "tables").exists()
        inputs = PackInputs(
            files.folder,
            made / "profile",
            made / "plan.json",
            tables_at=files.tables_at,
            endpoint_url=s3.endpoint_url,
            window_rows=WINDOW,
        )
        packed = pack(inputs, store, InThisProcess(inputs, store, SMALL))
    assert packed.release is not None
    assert tree(store.url) == tree(alone.url)
