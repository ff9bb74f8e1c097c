"""Live heat becomes a profile like any other; what is damaged, foreign or old does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from erless.errors import ArtifactError, ExistsError, LogError
from erless.plan.source import profile_tables
from erless.profile.live import live_release, profile_live, read_live
from erless.serve.files import Source, open_gateway
from erless.serve.gateway.live_heat import LiveHeat, SampledQuery
from erless.specs.bundle import BundleManifest
from erless.specs.counts import open_counts
from erless.specs.heat import heat_prefix
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.profile import Profile
from erless.storage.store import Store
from erless.storage.stores import open_store
from tests.dlrm.test_heat_sketch import exact, power_law
from tests.releases import Made, make_release

ROWS = 200_000


def one_table(rows: int = ROWS) -> ModelSpec:
    return ModelSpec(
        name="one",
        dense_features=1,
        tables=(TableSpec(name="item", rows=rows, dim=4),),
        tower=DlrmTower(bottom_mlp=(4,), top_mlp=(1,)),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("live"), model=one_table())


@pytest.fixture
def store(made: Made) -> Store:
    store = open_store(made.store)
    for stored in store.list("heat/"):
        store.delete(stored.name)
    return store


def live_heat(
    made: Made, *, half_life_s: float = 1800.0, memory_bytes: int = 1 << 20, replica: str = ""
) -> LiveHeat:
    with open_gateway(Source(made.store), made.release.digest) as opened:
        return LiveHeat(
            opened,
            sample=0.01,
            half_life_s=half_life_s,
            memory_bytes=memory_bytes,
            replica=replica,
        )


def queries(ids: NDArray[np.int64], made: Made, size: int = 2_000) -> list[SampledQuery]:
    """Sampled queries of one table, `size` ids each, sorted by shard as the release routes them."""
    with open_gateway(Source(made.store), made.release.digest) as opened:
        routes = opened.routes[0].all_shards()
    shards = len(made.release.shards)
    return [
        SampledQuery(
            part,
            np.array([len(part)]),
            np.bincount(routes[part], minlength=shards)[:, None],
            samples=10,
        )
        for part in np.array_split(ids, max(1, len(ids) // size))
    ]


def share_of_hottest(profile: Path, fraction: float) -> float:
    access = Profile.load(profile / "profile.json").tables[0]
    _, tables, _ = profile_tables(BundleManifest.open(profile.parent / "model"), profile, batch=10)
    assert tables[0].gathers > 0
    return float(tables[0].curve.cdf(fraction * access.rows))


@pytest.mark.parametrize("memory_bytes", [8 << 20, 1 << 19])
def test_one_percent_tells_how_hot_the_hottest_tenth_is(
    made: Made, store: Store, tmp_path: Path, memory_bytes: int
) -> None:
    everything = power_law(ROWS, 20_000_000, seed=3)
    whole = np.sort(exact(everything, ROWS))[::-1]
    expected = whole[: ROWS // 10].sum() / whole.sum()
    heat = live_heat(made, memory_bytes=memory_bytes)
    heat.add(queries(everything[::100], made))
    heat.pass_time(30.0)
    heat.spill(store)
    out = tmp_path / "profile"
    (tmp_path / "model").symlink_to(made.bundle)
    report = profile_live(store, made.release, out, before=made.profile)
    assert report.profile.model_digest == made.release.bundle_digest
    assert "live heat of release" in report.profile.sources[0]
    assert share_of_hottest(out, 0.1) == pytest.approx(expected, abs=0.02)
    assert report.tables[0].access.locality == pytest.approx(expected, abs=0.02)
    assert share_of_hottest(out, 0.01) == pytest.approx(
        whole[: ROWS // 100].sum() / whole.sum(), abs=0.02
    )
    with pytest.raises(ExistsError):
        profile_live(store, made.release, out)


def test_one_percent_of_movielens_traffic_tells_how_hot_its_films_are(
    tmp_path: Path, shared_data: Path
) -> None:
    films = np.loadtxt(shared_data / "ml-100k.inter", np.int64, skiprows=1, usecols=1)
    rows = int(films.max()) + 1
    made = make_release(tmp_path, model=one_table(rows))
    counts = np.sort(exact(films, rows))[::-1]
    expected = counts[: rows // 10].sum() / counts.sum()
    random = np.random.default_rng(1)
    everything = random.choice(films, 2_000_000)  # twenty times as many requests as ratings
    sampled = everything[random.random(len(everything)) < 0.01]
    heat = live_heat(made)
    heat.add(queries(sampled, made))
    heat.spill(open_store(made.store))
    profile_live(open_store(made.store), made.release, tmp_path / "p", before=made.profile)
    assert share_of_hottest(tmp_path / "p", 0.1) == pytest.approx(expected, abs=0.02)


def test_replicas_add_up_and_the_clocks_of_gateways_do_not_matter(
    made: Made, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = live_heat(made, replica="0" * 12), live_heat(made, replica="1" * 12)
    monkeypatch.setattr("time.time", lambda: 1.0)  # in 1970
    first.add(queries(np.repeat([5, 7], [400, 100]), made))
    first.spill(store)
    monkeypatch.setattr("time.time", lambda: 4e9)  # in 2096
    second.add(queries(np.repeat([7, 9], [100, 40]), made))
    second.spill(store)
    monkeypatch.undo()
    manifests = sorted(store.list(heat_prefix(made.release.digest)))
    assert [entry.name.rpartition("/")[2] for entry in manifests] == [
        "000000000000-1.safetensors",
        "000000000000.json",
        "111111111111-1.safetensors",
        "111111111111.json",
    ]
    at = manifests[3].modified_s
    folder = Path(made.store)
    os.utime(folder / manifests[1].name, (at, at))
    heat = read_live(store, made.release)
    assert dict(zip(heat.tables[0].ids, heat.tables[0].counts, strict=True)) == {
        5: 400,
        7: 200,
        9: 40,
    }
    os.utime(folder / manifests[1].name, (at - 1800, at - 1800))  # of a replica that is gone
    heat = read_live(store, made.release)
    assert dict(zip(heat.tables[0].ids, heat.tables[0].counts, strict=True)) == {
        5: 200,
        7: 150,
        9: 40,
    }
    os.utime(folder / manifests[1].name, (at - 1e6, at - 1e6))
    assert len(read_live(store, made.release).spills) == 1


def test_each_spill_takes_the_place_of_the_one_before(made: Made, store: Store) -> None:
    heat = live_heat(made)
    for row in (3, 4):
        heat.add(queries(np.full(50, row), made))
        heat.pass_time(1800.0)
        heat.spill(store)
    assert len(store.list(heat_prefix(made.release.digest))) == 2
    read = read_live(store, made.release)
    assert read.spills[0].number == 2
    assert dict(zip(read.tables[0].ids, read.tables[0].counts, strict=True)) == {3: 12.5, 4: 25.0}
    assert read.recent[0]["recent.queries"].tolist() == [1, 1]
    assert read.recent[0]["recent.gathers"].sum() == 100
    assert live_release(store).digest == made.release.digest


def test_torn_and_foreign_heat_is_refused(made: Made, store: Store) -> None:
    with pytest.raises(LogError, match="no gateway has sampled a query"):
        read_live(store, made.release)
    good, torn = live_heat(made, replica="a" * 12), live_heat(made, replica="b" * 12)
    good.pass_time(30.0)
    good.spill(store)
    with pytest.raises(LogError, match="no query was sampled"):
        read_live(store, made.release)  # an empty window
    for each in (good, torn):
        each.add(queries(np.full(50, 3), made))
        each.spill(store)
    folder = Path(made.store) / heat_prefix(made.release.digest)
    file = folder / f"{'b' * 12}-1.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-3] + b"\0\0\1")
    heat = read_live(store, made.release)
    assert [spill.replica for spill in heat.spills] == ["a" * 12]
    assert "sha256" in heat.warnings[0]
    file.unlink()
    assert "does not exist" in read_live(store, made.release).warnings[0]
    good_manifest = folder / f"{'a' * 12}.json"
    good_manifest.write_text(good_manifest.read_text().replace('"number":2', '"number":3'))
    with pytest.raises(ArtifactError):
        read_live(store, made.release)  # nothing whole is left


def test_heat_of_another_release_or_model_is_refused(
    made: Made, store: Store, tmp_path: Path
) -> None:
    other = make_release(tmp_path, model=one_table(500), store=made.store)
    heat = live_heat(other, replica="c" * 12)
    heat.add(queries(np.full(50, 3), other))
    heat.spill(store)
    theirs = Path(made.store) / heat_prefix(other.release.digest) / f"{'c' * 12}.json"
    mine = Path(made.store) / heat_prefix(made.release.digest)
    mine.mkdir(parents=True, exist_ok=True)
    (mine / theirs.name).write_bytes(theirs.read_bytes())
    with pytest.raises(ArtifactError, match=f"is of release {other.release.digest[:12]}"):
        read_live(store, made.release)
    assert json.loads(theirs.read_text())["model"] == other.release.bundle_digest


def test_rows_that_were_not_seen_keep_their_order(made: Made, store: Store, tmp_path: Path) -> None:
    heat = live_heat(made)
    heat.add(queries(np.repeat([11, 12], [300, 200]), made))
    heat.spill(store)
    old = Profile.load(made.profile / "profile.json")
    before = open_counts(made.profile, old.tables[0])
    assert before is not None
    profile_live(store, made.release, tmp_path / "p", before=made.profile)
    new = Profile.load(tmp_path / "p" / "profile.json")
    after = open_counts(tmp_path / "p", new.tables[0])
    assert after is not None
    ids = after.read("ids")
    assert ids[:2].tolist() == [11, 12]
    expected = [row for row in before.read("ids").tolist() if row not in (11, 12)]
    assert ids[2:].tolist() == expected[: len(ids) - 2]
    report = profile_live(store, made.release, tmp_path / "q", before=tmp_path / "p")
    assert "ranked by id" in report.warnings[0]
