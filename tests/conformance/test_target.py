"""What every target does. `pytest tests/conformance` runs it against each that is at hand."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch

from erless.deploy.target import (
    Deployment,
    Desired,
    FunctionState,
    FunctionStatus,
    served_model,
)
from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.errors import (
    ConflictError,
    DeployError,
    NotDeployedError,
    OtherModelError,
    SeveralModelsError,
)
from erless.pack.generations.changes import TableChanges
from erless.pack.generations.publish import Publisher
from erless.progress import Silent
from erless.serve.protocol.client import Answered, QueryClient
from erless.storage.stores import open_store
from tests.conformance.conftest import TIMEOUT_S, Releases
from tests.conformance.harness import Harness
from tests.releases import default_model, make_release

Wanted = dict[str, list[np.ndarray]]
EXACT = 1e-5


def wrong(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool((np.abs(found - expected) > EXACT * np.abs(expected)).any())


def function(harness: Harness, name: str) -> FunctionStatus:
    return next(each for each in harness.target.status().functions if each.name == name)


def until(harness: Harness, name: str, state: FunctionState) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (found := function(harness, name)).state is not state:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def rest(harness: Harness, name: str) -> None:
    """Wait until a function that may be at zero is there, on a target that has such."""
    if harness.scales_to_zero:
        until(harness, name, FunctionState.AT_ZERO)


def test_nothing_is_there_before_a_deploy_and_a_diff_makes_nothing(
    harness: Harness, releases: Releases
) -> None:
    for call in (harness.target.status, lambda: harness.target.rollback(None, Silent(), 5)):
        with pytest.raises(NotDeployedError):
            call()
    changes = harness.target.diff(harness.desired(releases.first))
    assert {(each.action, each.what) for each in changes} >= {
        ("create", name) for name in ("hot", "cold", "frozen", "gateway")
    }
    assert harness.target.deployments() == ()
    assert harness.leftovers() == []
    harness.target.destroy(Silent(), TIMEOUT_S)  # nothing there: nothing to do


def test_deploys_and_deploying_again_changes_nothing(
    harness: Harness, releases: Releases, deployed: Deployment
) -> None:
    desired = harness.desired(releases.first)
    assert deployed.current
    assert deployed.release == releases.first.release.digest
    assert {each.action for each in harness.target.diff(desired)} == {"keep"}
    before = {each.name: each.ready for each in harness.target.status().functions}
    assert harness.target.deploy(desired, Silent(), TIMEOUT_S) == deployed
    after = {each.name: each.ready for each in harness.target.status().functions}
    assert after.keys() == before.keys()
    assert [each.release for each in harness.target.deployments()] == [deployed.release]


def test_status_tells_every_function(harness: Harness, deployed: Deployment) -> None:
    rest(harness, "frozen")
    status = harness.target.status()
    assert (status.release, status.url) == (deployed.release, deployed.url)
    found = {each.name: each for each in status.functions}
    assert {name: each.tier for name, each in found.items() if each.kind == "sparse"} == {
        "hot": "hot",
        "cold": "cold",
        "frozen": "frozen",
    }
    assert found["gateway"].ready >= 1
    assert found["gateway"].memory_bytes > 0
    replicas = 0 if harness.scales_to_zero else 1
    assert (found["frozen"].ready, found["frozen"].wanted) == (replicas, replicas)
    assert status.memory_bytes >= sum(each.memory_bytes for each in found.values())
    assert status.model_wise_bytes > 0


def test_answers_exactly_and_wakes_what_sleeps(
    harness: Harness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    rest(harness, "frozen")
    expected = wanted[deployed.release]
    with QueryClient(deployed.url, address=deployed.address) as client:
        answers = [client.predict(each) for each in QueryFile(releases.first.queries)]
    for answer, right in zip(answers, expected, strict=True):
        assert not wrong(answer.predictions, right)
    assert {each.release for each in answers} == {deployed.release}
    assert not any(each.degraded for each in answers)
    assert answers[0].cold_start is harness.scales_to_zero  # it waited for the frozen shard
    assert not answers[-1].cold_start
    rest(harness, "frozen")


class Traffic:
    """Clients that query in a loop and compare each answer with what its release must say."""

    def __init__(
        self, gateway: Deployment, queries: Path, wanted: Wanted, clients: int = 3
    ) -> None:
        self.releases: list[str] = []
        self.faults: list[str] = []
        self._arguments = (gateway, QueryFile(queries), wanted)
        self._end = Event()
        self._threads = [Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        gateway, file, wanted = self._arguments
        with QueryClient(gateway.url, address=gateway.address) as client:
            while not self._end.is_set():
                for index in range(len(file)):
                    try:
                        answer = client.predict(file[index])
                    except Exception as error:
                        self.faults.append(f"{type(error).__name__}: {error}")
                        continue
                    if wrong(answer.predictions, wanted[answer.release][index]):
                        self.faults.append(f"mixed: {answer.release[:12]}")
                    self.releases.append(answer.release)

    def __enter__(self) -> Traffic:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for each in self._threads:
            each.join()

    def more(self, count: int) -> None:
        """Wait until `count` more are answered."""
        goal, deadline = len(self.releases) + count, time.monotonic() + TIMEOUT_S
        while len(self.releases) < goal:
            assert time.monotonic() < deadline, self.faults[:3]
            time.sleep(0.02)


def test_upgrades_and_rolls_back_under_load_without_a_failed_or_mixed_answer(
    harness: Harness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    with Traffic(deployed, releases.first.queries, wanted) as traffic:
        traffic.more(20)
        done = harness.target.deploy(harness.desired(releases.second), Silent(), TIMEOUT_S)
        assert done.url == deployed.url
        traffic.more(10)  # what was in flight at the cut-over
        place = len(traffic.releases)
        traffic.more(20)
        assert set(traffic.releases[place:]) == {releases.second.release.digest}
        back = harness.target.rollback(None, Silent(), TIMEOUT_S)
        assert (back.release, back.current) == (deployed.release, True)
        traffic.more(10)
        place = len(traffic.releases)
        traffic.more(20)
        assert set(traffic.releases[place:]) == {deployed.release}
    assert traffic.faults == []
    kept = {each.release: each.current for each in harness.target.deployments()}
    assert kept == {deployed.release: True, releases.second.release.digest: False}


def test_a_generation_is_answered_with_and_wakes_nobody(
    harness: Harness, releases: Releases, wanted: Wanted, deployed: Deployment
) -> None:
    rest(harness, "frozen")
    made = releases.first
    queries = list(QueryFile(made.queries))
    changed = Monolith.load(made.bundle, mapped=False)
    changes = []
    for table, rows in zip(made.model.tables, changed.tables, strict=True):
        ids = np.arange(0, table.rows, 2)
        vectors = np.random.default_rng(8).normal(size=(len(ids), table.dim)).astype(np.float32)
        rows[ids] = torch.from_numpy(vectors)
        changes.append(TableChanges(table.name, ids, vectors))
    publisher = Publisher(open_store(made.store), made.release.digest)

    def answered_with(number: int) -> list[Answered]:
        harness.desired(made)  # the functions' own store has it too
        with QueryClient(deployed.url, address=deployed.address) as client:
            deadline = time.monotonic() + TIMEOUT_S
            while client.metadata["parameters"]["generation"] != number:
                assert time.monotonic() < deadline, client.metadata
                time.sleep(0.2)
            assert function(harness, "frozen").ready == (0 if harness.scales_to_zero else 1)
            return [client.predict(query) for query in queries]

    try:
        answers = answered_with(publisher.publish(changes).number)
        for answer, query in zip(answers, queries, strict=True):
            assert answer.generation > 0
            assert not wrong(answer.predictions, changed.predict(query))
    finally:
        number = publisher.go_back(0).number
        publisher.close()
    rest(harness, "frozen")
    for answer, expected in zip(answered_with(number), wanted[deployed.release], strict=True):
        assert not wrong(answer.predictions, expected)


def test_a_shard_that_did_not_change_stays(
    harness: Harness, releases: Releases, deployed: Deployment
) -> None:
    desired = harness.desired(releases.recut)
    changes = {each.what: each.action for each in harness.target.diff(desired)}
    assert changes["hot"] == "keep"
    assert changes["cold"] == "update"
    assert changes["gateway"] == "update"
    harness.target.deploy(desired, Silent(), TIMEOUT_S)
    assert function(harness, "hot").digest == releases.first.release.shard("hot").digest


def test_a_damaged_release_fails_early_and_the_old_one_serves_on(
    harness: Harness, releases: Releases, wanted: Wanted, deployed: Deployment, tmp_path: Path
) -> None:
    broken = make_release(tmp_path, seed=7)
    blobs = sorted(Path(broken.store, "blobs").iterdir(), key=lambda each: each.stat().st_size)
    damaged = blobs[-1]
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.seek(-20, 2)
        file.write(b"damage")
    with pytest.raises(DeployError, match="does not start: .*differs|altered|damaged"):
        harness.target.deploy(harness.desired(broken), Silent(), TIMEOUT_S)
    status = harness.target.status()
    assert status.release == deployed.release
    query = QueryFile(releases.first.queries)[0]
    with QueryClient(deployed.url, address=deployed.address) as client:
        assert not wrong(client.predict(query).predictions, wanted[deployed.release][0])


def test_another_model_is_refused_unless_it_is_told_to_replace(
    harness: Harness, releases: Releases, deployed: Deployment, tmp_path: Path
) -> None:
    model = default_model().model_copy(update={"name": "other"})
    other = harness.desired(make_release(tmp_path, model=model))
    with pytest.raises(OtherModelError, match="model 'small' answers queries here, not 'other'"):
        harness.target.deploy(other, Silent(), TIMEOUT_S)
    assert harness.target.status().release == deployed.release
    done = harness.target.deploy(replace(other, replace_model=True), Silent(), TIMEOUT_S)
    assert done.release == other.release.digest
    assert served_model(harness.target.deployments()) == "other"
    back = replace(harness.desired(releases.first), replace_model=True)
    assert harness.target.deploy(back, Silent(), TIMEOUT_S).release == deployed.release


def test_two_models_side_by_side_know_nothing_of_each_other(
    harness: Harness, releases: Releases, wanted: Wanted, deployed: Deployment, tmp_path: Path
) -> None:
    model = default_model().model_copy(update={"name": "beside"})
    made = make_release(tmp_path, model=model, seed=3)
    beside = harness.of_model("beside")
    second = beside.deploy(harness.desired(made), Silent(), TIMEOUT_S)
    for gateway, owner, right in (
        (deployed, releases.first, wanted[deployed.release]),
        (second, made, [Monolith.load(made.bundle).predict(q) for q in QueryFile(made.queries)]),
    ):
        with QueryClient(gateway.url, address=gateway.address) as client:
            answers = [client.predict(query) for query in QueryFile(owner.queries)]
        assert {each.release for each in answers} == {owner.release.digest}
        assert not any(wrong(a.predictions, r) for a, r in zip(answers, right, strict=True))
    with pytest.raises(SeveralModelsError):
        harness.target.status()
    parts = {served_model(each.deployments()): each.status() for each in harness.target.by_model()}
    assert {name: each.release for name, each in parts.items()} == {
        "small": deployed.release,
        "beside": second.release,
    }
    with Traffic(deployed, releases.first.queries, wanted) as traffic:
        traffic.more(5)
        beside.destroy(Silent(), TIMEOUT_S)
        traffic.more(5)
    assert traffic.faults == []
    assert harness.target.status().release == deployed.release
    assert beside.deployments() == ()


def test_two_deploys_at_once_do_not_mix(
    harness: Harness, releases: Releases, deployed: Deployment
) -> None:
    outcomes: list[str] = []

    def deploy(desired: Desired) -> None:
        try:
            done = harness.target.deploy(desired, Silent(), TIMEOUT_S)
        except ConflictError:
            outcomes.append("conflict")
        else:
            outcomes.append(done.release)

    both = [harness.desired(made) for made in (releases.recut, releases.second)]
    threads = [Thread(target=deploy, args=(each,)) for each in both]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(each == "conflict" for each in outcomes) in ([False, True], [False, False])
    done = [each for each in outcomes if each != "conflict"]
    assert harness.target.status().release in done


def test_logs_have_what_functions_say(harness: Harness, deployed: Deployment) -> None:
    lines = list(harness.target.logs("gateway", 200, follow=False))
    assert any('"ready"' in line for line in lines)
    assert len(list(harness.target.logs(None, 3, follow=False))) == 3
    with pytest.raises(DeployError, match="there is no function 'lost'"):
        list(harness.target.logs("lost", 3, follow=False))


def test_destroy_leaves_nothing(harness: Harness, deployed: Deployment) -> None:
    harness.target.destroy(Silent(), TIMEOUT_S)
    assert harness.leftovers() == []
    with pytest.raises(NotDeployedError):
        harness.target.status()
    assert harness.target.deployments() == ()
