"""Packing: every row once, the same bytes again, only what changed, by many hands."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.errors import ArtifactError, PlanError
from erless.pack import inventory
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packed, Packer
from erless.pack.ranks import Cut as RankCut
from erless.pack.ranks import TableRanks, Window, cuts_of
from erless.serve.files import Source, open_shard
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Plan, Precision, RankRange, ShardPlan, Tier
from erless.specs.stored import list_releases
from erless.storage.stores import open_store
from erless.storage.tensors import TensorFile, write_tensors
from tests.conftest import ROOT
from tests.releases import TIERS, Cut, Made, default_model, make_inputs, make_plan, make_release


def tree(store: str) -> dict[str, bytes]:
    """Every file of a directory store but its locks."""
    root = Path(store)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def pack(made: Made, plan: Path | None = None) -> Packed:
    store = open_store(made.store, create=True)
    return Packer(PackInputs(made.bundle, made.profile, plan or made.plan), store).pack()


def test_the_shards_hold_every_row_once_and_exactly(packed_release: Made) -> None:
    source = Source(packed_release.store)
    seen = {table.name: np.zeros(table.rows, int) for table in packed_release.model.tables}
    for shard in packed_release.release.shards:
        with open_shard(source, shard.digest) as opened:
            for each in opened.shard.slices:
                name = each.table.name
                whole = TensorFile(packed_release.bundle / "tables" / f"{name}.safetensors")
                ids = each.index.ids(0, each.index.stored)
                seen[name][ids] += 1
                np.testing.assert_array_equal(each.rows, whole.read("rows")[ids])
            assert sum(each.index.stored for each in opened.shard.slices) == shard.rows
    assert all((count == 1).all() for count in seen.values())


def test_defaults_are_the_mean_weighted_by_accesses(packed_release: Made) -> None:
    release = packed_release.release
    vectors = TensorFile(Path(packed_release.store) / release.gateway.defaults.path)
    table = packed_release.model.tables[0]
    rows = TensorFile(packed_release.bundle / "tables" / f"{table.name}.safetensors").read("rows")
    counts = TensorFile(packed_release.profile / "counts" / f"{table.name}.safetensors")
    weights = np.ones(table.rows)
    weights[counts.read("ids")] += counts.read("counts")
    for number, shard in enumerate(release.shards):
        with open_shard(Source(packed_release.store), shard.digest) as opened:
            ids = opened.shard.slices[0].index.ids(0, opened.shard.slices[0].index.stored)
        expected = np.average(rows[ids].astype(np.float64), axis=0, weights=weights[ids])
        np.testing.assert_allclose(vectors.read(f"{number}.{table.name}"), expected, atol=1e-5)


def test_the_same_input_gives_the_same_bytes(packed_release: Made, tmp_path: Path) -> None:
    again = make_release(tmp_path)
    assert again.release.digest == packed_release.release.digest
    assert tree(again.store) == tree(packed_release.store)


def test_packing_twice_does_nothing(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(made.store).rglob("blobs/*")}
    packed = pack(made)
    assert (packed.slices_written, packed.bytes_written) == (0, 0)
    assert packed.slices_kept == sum(len(each.tables) for each in made.release.shards)
    assert packed.release == made.release
    assert {path: path.stat().st_mtime_ns for path in Path(made.store).rglob("blobs/*")} == before


def test_each_table_is_routed_once_for_slices_and_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed: list[str] = []
    windows = PackInputs.windows

    def note(self: PackInputs, table: TableSpec, scratch: Path) -> Iterator[Window]:
        routed.append(table.name)
        return windows(self, table, scratch)

    monkeypatch.setattr(PackInputs, "windows", note)
    made = make_release(tmp_path)
    assert routed == [table.name for table in made.release.model.tables]


def test_a_plan_that_changed_one_shard_rewrites_one_shard(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    tiers = [
        each._replace(precision=Precision.INT8) if each.name == "cold" else each for each in TIERS
    ]
    make_plan(made.bundle, made.profile, tiers).save(tmp_path / "other.json")
    packed = pack(made, tmp_path / "other.json")
    assert packed.release is not None
    assert packed.slices_written == len(made.release.shard("cold").tables)
    for old, new in zip(made.release.shards, packed.release.shards, strict=True):
        assert (old.digest == new.digest) == (old.name != "cold")
    assert packed.release.gateway.routing == made.release.gateway.routing
    assert {digest for digest, _ in list_releases(open_store(made.store))} == {
        made.release.digest,
        packed.release.digest,
    }


def test_a_shard_that_only_moved_is_the_same_function(tmp_path: Path) -> None:
    """Name, tier and place in the plan are no part of a shard."""
    made = make_release(tmp_path)
    tiers = [each._replace(name=f"new-{each.name}", tier=Tier.WARM) for each in TIERS]
    make_plan(made.bundle, made.profile, tiers).save(tmp_path / "other.json")
    packed = pack(made, tmp_path / "other.json")
    assert packed.release is not None
    assert packed.slices_written == 0
    assert [each.digest for each in packed.release.shards] == [
        each.digest for each in made.release.shards
    ]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_many_workers_share_the_work(
    tmp_path: Path, packed_release: Made, order: tuple[int, ...]
) -> None:
    folder = tmp_path / "in"
    bundle, profile = make_inputs(folder, default_model())
    make_plan(bundle, profile, TIERS).save(folder / "plan.json")
    store = open_store(str(tmp_path / "store"), create=True)
    for done, shard in enumerate(order):
        packed = Packer(PackInputs(bundle, profile, folder / "plan.json"), store).pack(shard)
        assert (packed.release is None) == (done < 3)
        assert len(packed.missing) == 3 - done
        assert len(list_releases(store)) == (done == 3)
    assert tree(store.url) == tree(packed_release.store)
    with pytest.raises(PlanError, match="there is no shard 4: the plan has 4"):
        Packer(PackInputs(bundle, profile, folder / "plan.json"), store).pack(4)


WORKER = (
    "import sys; from pathlib import Path\n"
    "from erless.pack.inputs import PackInputs; from erless.pack.packer import Packer\n"
    "from erless.storage.stores import open_store\n"
    "store, bundle, profile, plan, shard, endpoint = sys.argv[1:]\n"
    "opened = open_store(store, endpoint_url=endpoint or None, create=True)\n"
    "packer = Packer(PackInputs(Path(bundle), Path(profile), Path(plan)), opened)\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "packer.pack(int(shard) if shard else None)\n"
)


def worker(store: str, folder: Path, shard: str = "", endpoint: str = "") -> subprocess.Popen[str]:
    inputs = [str(folder / each) for each in ("model", "profile", "plan.json")]
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, store, *inputs, shard, endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("where", ["directory", "bucket"])
@pytest.mark.parametrize("shards", [("", "", ""), ("0", "1", "2", "3")])
def test_packers_at_once_make_one_whole_release(
    tmp_path: Path,
    packed_release: Made,
    request: pytest.FixtureRequest,
    where: str,
    shards: tuple[str, ...],
) -> None:
    folder = tmp_path / "in"
    bundle, profile = make_inputs(folder, default_model())
    make_plan(bundle, profile, TIERS).save(folder / "plan.json")
    location, endpoint = str(tmp_path / "store"), ""
    if where == "bucket":
        bucket = request.getfixturevalue("s3")
        location, endpoint = bucket.url, bucket.endpoint_url
    workers = [worker(location, folder, shard, endpoint) for shard in shards]
    for each in workers:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in workers:
        _, errors = each.communicate(timeout=120)
        assert each.returncode == 0, errors
    store = open_store(location, endpoint_url=endpoint or None)
    assert [digest for digest, _ in list_releases(store)] == [packed_release.release.digest]
    assert inventory.verify(store, packed_release.release.digest) == []


def big_inputs(folder: Path) -> None:
    """About 100 MB in four tables: long enough to be stopped half-way."""
    model = ModelSpec(
        dense_features=1,
        tables=tuple(TableSpec(name=f"t{i}", rows=100_000, dim=64) for i in range(4)),
        tower=DlrmTower(bottom_mlp=(64,), top_mlp=(1,)),
    )
    bundle, profile = make_inputs(folder, model)
    make_plan(bundle, profile, TIERS).save(folder / "plan.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pack_that_was_stopped_is_completed_by_the_next(tmp_path: Path, number: int) -> None:
    folder, store = tmp_path / "in", tmp_path / "store"
    big_inputs(folder)
    command = [
        sys.executable,
        "-m",
        "erless",
        "pack",
        "--model",
        str(folder / "model"),
        "--profile",
        str(folder / "profile"),
        "--plan",
        str(folder / "plan.json"),
        "--store",
        str(store),
        "-o",
        "json",
    ]
    stopped = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(store.glob("keys/*")):  # the first slices are there, others are not
        assert time.monotonic() < deadline
        assert stopped.poll() is None
        time.sleep(0.001)
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=120)
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert stopped.returncode == codes[signal.Signals(number)], errors
    assert list(store.glob("releases/*")) == []
    if number != signal.SIGKILL:
        assert list((store / "tmp").iterdir()) == []
    before = {path.name for path in store.glob("blobs/*")}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '"missing_shards": []' in again.stdout
    opened = open_store(str(store))
    (release,) = [digest for digest, _ in list_releases(opened)]
    assert inventory.verify(opened, release) == []
    assert before <= {path.name for path in store.glob("blobs/*")}  # nothing was made twice
    assert list((store / "tmp").iterdir()) == []


@given(
    st.integers(1, 3000),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(0.01, 0.99), max_size=4),
    st.sampled_from([192, 384, 768, 10_000]),
)
def test_ranks_become_rows_window_by_window(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    share: float,
    seed: int,
    fractions: list[float],
    window_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("ranks")
    generator = np.random.default_rng(seed)
    touched = generator.permutation(rows)[: int(share * rows)]
    counts = np.sort(generator.integers(1, 99, len(touched)))[::-1].astype(np.int64)
    path = None
    if len(touched):
        path = folder / "counts.safetensors"
        write_tensors(path, {"ids": touched.astype(np.int64), "counts": counts})
    edges = sorted({0, rows, *(int(f * rows) for f in fractions)})
    cuts = tuple(
        RankCut(start, stop, number)
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
    )
    order = np.concatenate([touched, np.setdiff1d(np.arange(rows), touched)])
    expected, weights = np.empty(rows, np.uint8), np.zeros(rows, np.float32)
    for cut in cuts:
        expected[order[cut.start : cut.stop]] = cut.shard
    weights[touched] = counts
    windows = list(TableRanks(rows, path).windows(cuts, folder, window_rows))
    np.testing.assert_array_equal(np.concatenate([each.routes for each in windows]), expected)
    np.testing.assert_array_equal(np.concatenate([each.counts for each in windows]), weights)
    assert not list(folder.glob("window-*"))


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([3, 3, 1], "lists 3 rows, 2 of them distinct"),
        ([3, 99, 1], "row id 99 is outside 0 … 9"),
        ([3, -1, 1], "row id -1 is outside 0 … 9"),
    ],
)
def test_counts_that_are_wrong_are_told(tmp_path: Path, ids: list[int], says: str) -> None:
    path = tmp_path / "counts.safetensors"
    write_tensors(path, {"ids": np.array(ids), "counts": np.array([5, 4, 3])})
    with pytest.raises(ArtifactError, match=says):
        list(TableRanks(10, path).windows((RankCut(0, 10, 0),), tmp_path))


def plan_of(made: Made, *shards: ShardPlan, **changes: str) -> Path:
    fields = {
        "model_digest": made.release.bundle_digest,
        "profile_digest": made.release.profile_digest,
        **changes,
    }
    path = made.plan.parent / "wrong.json"
    Plan.create(policy="joint", shards=shards or Plan.load(made.plan).shards, **fields).save(path)
    return path


def test_inputs_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    with pytest.raises(PlanError, match="the plan was made for bundle 0000"):
        pack(made, plan_of(made, model_digest="0" * 64))
    with pytest.raises(PlanError, match="the plan was made from profile 0000"):
        pack(made, plan_of(made, profile_digest="0" * 64))
    (tmp_path / "x").mkdir()
    other = make_release(tmp_path / "x", seed=1)
    with pytest.raises(PlanError, match="the plan was made for bundle"):
        pack(made._replace(plan=other.plan))
    with pytest.raises(PlanError, match="the profile was made for bundle"):
        pack(made._replace(profile=other.profile))


def shard(name: str, *ranges: tuple[str, int, int]) -> ShardPlan:
    slices = tuple(RankRange(table=t, start=a, stop=b) for t, a, b in ranges)
    return ShardPlan(name=name, tier=Tier.HOT, slices=slices)


WRONG_PLANS = {
    "a row twice": (
        [shard("a", ("t", 0, 6)), shard("b", ("t", 5, 10))],
        "ranks of shard b begin at 5, expected 6",
    ),
    "a row missing": (
        [shard("a", ("t", 0, 5)), shard("b", ("t", 6, 10))],
        "ranks of shard b begin at 6, expected 5",
    ),
    "too few": ([shard("a", ("t", 0, 9))], "table t has 10 rows, the plan 9"),
    "too many": ([shard("a", ("t", 0, 11))], "table t has 10 rows, the plan 11"),
    "unknown table": ([shard("a", ("t", 0, 10), ("u", 0, 1))], "the model has no table u"),
    "too many shards": (
        [shard(f"s{i}", ("t", i, i + 1)) for i in range(256)],
        "256 shards; routing holds 255",
    ),
}


@pytest.mark.parametrize(("shards", "says"), WRONG_PLANS.values(), ids=WRONG_PLANS)
def test_a_plan_that_does_not_cover_each_row_once_is_told(
    shards: list[ShardPlan], says: str
) -> None:
    model = ModelSpec(
        dense_features=1,
        tables=(TableSpec(name="t", rows=10, dim=4),),
        tower=DlrmTower(bottom_mlp=(4,), top_mlp=(1,)),
    )
    plan = Plan.create(model_digest="", profile_digest="", policy="joint", shards=tuple(shards))
    with pytest.raises(PlanError, match=says):
        cuts_of(plan, model)


def test_a_release_of_the_most_shards(tmp_path: Path) -> None:
    tiers = [Cut(f"s{i}", Tier.HOT, (i + 1) / 255) for i in range(255)]
    model = ModelSpec(
        dense_features=1,
        tables=(TableSpec(name="t", rows=600, dim=4),),
        tower=DlrmTower(bottom_mlp=(4,), top_mlp=(1,)),
    )
    made = make_release(tmp_path, model=model, tiers=tiers)
    assert len(made.release.shards) == 255
    assert inventory.verify(open_store(made.store), made.release.digest) == []


def test_damaged_inputs_make_no_release(tmp_path: Path) -> None:
    made = make_release(tmp_path)
    store = str(tmp_path / "other")
    for path in (
        made.bundle / "tables" / "item.safetensors",
        made.profile / "counts" / "user.safetensors",
        made.bundle / "tower.safetensors",
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=f"{path.name}: altered: sha256"):
            pack(made._replace(store=store))
        assert not list(Path(store).glob("releases/*"))
        path.write_bytes(whole)
    assert pack(made._replace(store=store)).release == made.release
