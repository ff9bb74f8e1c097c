"""Thirty per cent of the hot rows change: it is said in two minutes, and mended with few bytes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from erless.cli.release.live_inputs import LiveOptions, live_plan
from erless.dlrm.reference import Monolith
from erless.errors import PlanError
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.compact import compact
from erless.pack.generations.publish import Publisher
from erless.pack.inventory import prune, verify
from erless.plan.live.drift import Drift
from erless.plan.live.replan import Tolerance
from erless.plan.source import profile_tables
from erless.serve.protocol.client import QueryClient
from erless.specs.bundle import BundleManifest
from erless.specs.placement import HeldRows
from erless.specs.plan import Plan
from erless.storage.stores import open_store
from tests.plan.live.traffic import Gateway, Planned, Traffic, drifting_model, pack, plan_and_pack
from tests.releases import Made
from tests.serve.functions import Fleet

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SHAPE = ("--shards", 2, "--resident-share", 0.7)


def look(planned: Planned) -> Drift:
    """What `erless drift` says, without its words."""
    options = LiveOptions(store=planned.store, profile=planned.profile)
    with live_plan(options, {"shards": 2, "resident_share": 0.7}) as live:
        return live.drift()


def erless(cli: Cli, planned: Planned, *arguments: object, code: int = 0) -> dict[str, object]:
    """Run a verb on the release and read its document."""
    done = cli(
        *arguments, "--store", planned.store, "--profile", planned.profile, *SHAPE, "-o", "json"
    )
    assert done.returncode == code, done.stderr + done.stdout
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_drift_is_seen_and_replanned(tmp_path: Path, cli: Cli) -> None:
    traffic = Traffic(drifting_model())
    before = plan_and_pack(tmp_path, traffic)
    gateway = Gateway(before)
    gateway.serve(traffic, 600.0)
    calm = look(before)
    assert not calm.drifted
    assert calm.qps == pytest.approx(200.0)

    traffic.rotate(0.3)
    gateway.serve(traffic, 120.0)
    found = erless(cli, before, "drift", code=3)
    assert found["drifted"]
    planned, seen = found["planned_resident"], found["seen_resident"]
    assert planned == pytest.approx(0.7, abs=0.01)
    assert seen == pytest.approx(gateway.resident_share(traffic), abs=0.02)
    assert found["vcpu"] > found["planned_vcpu"]  # type: ignore[operator]

    gateway.serve(traffic, 600.0)
    out = tmp_path / "replan"
    told = erless(cli, before, "replan", "--out", out)
    after = pack(before.bundle, out / "profile", out / "plan.json", before.store)
    kept = {shard.digest for shard in after.release.remote} & {
        shard.digest for shard in before.release.remote
    }
    assert kept
    check_bytes_moved(told, before, after)

    # as good as a plan from the whole log of now
    whole = plan_and_pack(tmp_path / "whole", traffic)
    expected = Gateway(whole).resident_share(traffic)
    assert Gateway(after).resident_share(traffic) == pytest.approx(expected, abs=0.02)
    check_answers(after, traffic, tmp_path)
    check_kept_through_prune(before, after)
    check_planned_again(cli, after, traffic, tmp_path)


def check_bytes_moved(told: dict[str, object], before: Planned, after: Planned) -> None:
    """What is told is what was packed: the files of shards that the release before had not."""
    known = {shard.digest for shard in before.release.shards}
    new = sum(s.row_bytes for s in after.release.shards if s.digest not in known)
    taken, choices = told["taken"], told["choices"]
    assert isinstance(taken, dict)
    assert isinstance(choices, list)
    assert taken["moved_bytes"] == new
    fresh = next(choice for choice in choices if choice["what"] == "a plan of its own")
    assert new < fresh["moved_bytes"] / 2


def check_answers(planned: Planned, traffic: Traffic, folder: Path) -> None:
    """Queries over the shards that were kept and those that are new equal the monolith."""
    monolith = Monolith.load(planned.bundle)
    made = Made(
        planned.store,
        planned.release,
        planned.bundle,
        planned.profile,
        planned.plan_path,
        planned.plan_path,
        traffic.model,
    )
    with Fleet(made, folder) as fleet, QueryClient(fleet.gateway.url) as client:
        for _ in range(20):
            query = traffic.query()
            answer = client.predict(query)
            np.testing.assert_allclose(
                answer.predictions, monolith.predict(query), rtol=1e-4, atol=1e-5
            )


def check_kept_through_prune(before: Planned, after: Planned) -> None:
    """The release that tells what a kept shard holds stays as long as the shard is kept."""
    store = open_store(after.store)
    assert verify(store, after.release.digest) == []
    assert prune(store, keep={after.release.digest}, grace_s=-10, dry_run=True).releases == ()
    held = HeldRows(store, after.release)
    for number, shard in enumerate(after.release.shards):
        rows = sum(int(held.of(number, table).sum()) for table in shard.tables)
        assert rows == shard.rows
    assert any(shard.spare_rows for shard in after.release.remote)


def check_planned_again(cli: Cli, planned: Planned, traffic: Traffic, folder: Path) -> None:
    """A release that keeps shards drifts and is planned anew like any other."""
    gateway = Gateway(planned)
    gateway.serve(traffic, 120.0)
    with pytest.raises(PlanError, match="its ranks are those of a replan"):
        profile_tables(BundleManifest.open(planned.bundle), planned.profile, 16)
    assert not look(planned).drifted
    traffic.rotate(0.5)
    gateway.serve(traffic, 900.0)
    assert look(planned).drifted
    again = folder / "again"
    erless(cli, planned, "replan", "--out", again)
    third = pack(planned.bundle, again / "profile", again / "plan.json", planned.store)
    share = Gateway(third).resident_share(traffic)
    assert share == pytest.approx(0.7, abs=0.03)
    origins = {shard.kept_from for shard in third.release.remote if shard.kept_from}
    assert planned.release.digest not in origins  # told of where its rows were packed


def test_a_plan_that_keeps_what_is_not_there_is_refused(tmp_path: Path) -> None:
    planned = plan_and_pack(tmp_path, Traffic(drifting_model(3_000)))
    remote = planned.release.remote[0]
    other = {"release": "0" * 64, "digest": remote.digest}
    strange = {"release": planned.release.digest, "digest": "0" * 64}
    swapped = {"release": planned.release.digest, "digest": planned.release.remote[1].digest}
    for kept, reason in (
        (other, "does not exist"),
        (strange, "has no shard"),
        (swapped, "is kept, and"),
    ):
        fields = planned.plan.model_dump(mode="json")
        fields["shards"][1]["kept"] = kept
        for stamped in ("kind", "schema_version", "digest"):
            del fields[stamped]
        plan = Plan.create(**fields)
        plan.save(tmp_path / "kept.json")
        with pytest.raises(PlanError, match=reason):
            pack(planned.bundle, planned.profile, tmp_path / "kept.json", planned.store)


def test_rows_that_the_bundle_does_not_have_are_not_planned_anew(tmp_path: Path) -> None:
    traffic = Traffic(drifting_model(3_000))
    planned = plan_and_pack(tmp_path, traffic)
    store = open_store(planned.store)
    with closing(Publisher(store, planned.release.digest)) as publisher:
        publisher.publish([TableChanges("item", np.array([1]), np.ones((1, 8), np.float32))])
    folded = compact(store, planned.release.digest).release
    heat = Gateway(replace(planned, release=folded))
    heat.serve(traffic, 60.0)
    options = LiveOptions(store=planned.store, release=folded.digest, profile=planned.profile)
    with (
        live_plan(options, {"shards": 2, "resident_share": 0.7}) as live,
        pytest.raises(PlanError, match="generations were folded into release"),
    ):
        live.replan(Tolerance())
    fields = planned.plan.model_dump(mode="json")
    fields["shards"][1]["kept"] = {"release": folded.digest, "digest": folded.shards[1].digest}
    for stamped in ("kind", "schema_version", "digest"):
        del fields[stamped]
    Plan.create(**fields).save(tmp_path / "kept.json")
    with pytest.raises(PlanError, match="folded"):
        pack(planned.bundle, planned.profile, tmp_path / "kept.json", planned.store)
