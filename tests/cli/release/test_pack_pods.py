"""`erless pack --engine kubernetes`: Jobs make the release that one machine would make."""

from __future__ import annotations

import copy
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from erless.cli.main import app
from erless.cli.release.pack_pods import PodOptions, pack_by_pods
from erless.deploy.kubernetes.render.jobs import WAVE
from erless.errors import ErlessError, ForbiddenError, OptionError, WorkerError
from erless.pack import worker
from erless.pack.bundle_files import bundle_files
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packed, Packer
from erless.progress import Silent
from erless.specs.plan import Precision
from erless.storage.stores import open_store
from tests.buckets import S3
from tests.deploy.fake_cluster import FakeCluster
from tests.releases import TIERS, default_model, make_inputs, make_plan

JOBS, PODS = "jobs.batch", "pods"
WINDOW = 768
IMAGE = f"sparse=registry.example.com/erless@sha256:{'0' * 64}"


class JobController:
    """Plays Kubernetes: runs the pods of Jobs, one after the other, in this process.

    kill: how often a pod of an index ends before it has done anything; beyond the Job's tries it
    fails. evict: the same, by a disruption, which costs no try.
    """

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.kill: Counter[int] = Counter()
        self.evict: Counter[int] = Counter()
        self.ran: list[tuple[str, int]] = []
        self.jobs: list[dict[str, Any]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            for job in self.cluster.find(JOBS):
                if "status" not in job:
                    self._work(job)

    def _work(self, job: dict[str, Any]) -> None:
        meta, spec = job["metadata"], job["spec"]
        key = (JOBS, meta["namespace"], meta["name"])
        self.jobs.append(copy.deepcopy(job))
        status: dict[str, Any] = {}
        tries = spec["backoffLimitPerIndex"]
        for index in range(spec["completions"]):
            self.ran += [(meta["name"], index)] * (self.evict.pop(index, 0))
            killed = self.kill.pop(index, 0)
            code, said = (137, "") if killed > tries else self._pod(spec, index)
            self.ran += [(meta["name"], index)] * (1 + min(killed, tries))
            if code:
                pod = f"{meta['name']}-{index}"
                labels = {
                    "batch.kubernetes.io/job-name": meta["name"],
                    "batch.kubernetes.io/job-completion-index": str(index),
                }
                self.cluster.logs[pod] = said
                self.cluster.store(
                    (PODS, meta["namespace"], pod), {"metadata": {"name": pod, "labels": labels}}
                )
                why = {"type": "Failed", "status": "True", "message": "Job has failed indexes"}
                status |= {"failedIndexes": str(index), "conditions": [why]}
                break
            status["completedIndexes"] = f"0-{index}" if index else "0"
        else:
            status["conditions"] = [{"type": "Complete", "status": "True"}]
        self.cluster.store(key, {**job, "status": status})

    def _pod(self, spec: dict[str, Any], index: int) -> tuple[int, str]:
        command = spec["template"]["spec"]["containers"][0]["command"]
        assert command[:3] == ["python3", "-m", "erless.pack.worker"]
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
            patch.setenv("JOB_COMPLETION_INDEX", str(index))
            return worker.main(command[3:]), said.getvalue()


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


@pytest.fixture
def controller(cluster: FakeCluster) -> Iterator[JobController]:
    playing = JobController(cluster)
    yield playing
    playing.close()


@pytest.fixture
def kubernetes(
    cluster: FakeCluster, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Packed]:
    """Pack the inputs in `tmp_path`, whose bundle is in the bucket, by pods."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("erless.deploy.kubernetes.indexed_job.LOOK_S", 0.02)
    bundle, profile = make_inputs(tmp_path, default_model())
    tiers = [
        tier._replace(precision=precision) for tier, precision in zip(TIERS, Precision, strict=True)
    ]
    make_plan(bundle, profile, tiers).save(tmp_path / "plan.json")
    for path in bundle.rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path).as_posix()
            s3.client().put_object(Bucket=s3.bucket, Key=name, Body=path.read_bytes())

    def pack(**more: Any) -> Packed:
        options = PodOptions(
            portion_gb=6e-5,
            namespace="default",
            kubeconfig=cluster.kubeconfig(tmp_path),
            image=[IMAGE],
            **more,
        )
        with bundle_files(f"s3://{s3.bucket}/model", s3.endpoint_url) as files:
            inputs = PackInputs(
                files.folder,
                profile,
                tmp_path / "plan.json",
                tables_at=files.tables_at,
                endpoint_url=s3.endpoint_url,
                window_rows=WINDOW,
            )
            store = open_store(s3.url, endpoint_url=s3.endpoint_url, create=True)
            return pack_by_pods(Packer(inputs, store), options, s3.endpoint_url, Silent())

    return pack


def digest_of_one_machine(folder: Path) -> str:
    inputs = PackInputs(
        folder / "model", folder / "profile", folder / "plan.json", window_rows=WINDOW
    )
    release = Packer(inputs, open_store(str(folder / "alone"), create=True)).pack().release
    assert release is not None
    return release.digest


def test_pods_make_the_release_of_one_machine_though_some_are_killed_and_evicted(
    kubernetes: Callable[..., Packed], controller: JobController, tmp_path: Path, s3: S3
) -> None:
    controller.kill[1], controller.evict[0] = 2, 7
    packed = kubernetes()
    assert packed.release is not None
    assert packed.release.digest == digest_of_one_machine(tmp_path)
    for job in controller.jobs:
        ran = {index for name, index in controller.ran if name == job["metadata"]["name"]}
        assert len(ran) == job["spec"]["completions"]
    assert [job["spec"]["completions"] for job in controller.jobs] == [3, 1]
    assert not controller.cluster.find(JOBS)  # done, and removed
    store = open_store(s3.url, endpoint_url=s3.endpoint_url)
    assert not store.list("pieces/")
    again = kubernetes()
    assert again.slices_written == 0
    assert len(controller.jobs) == 2  # nothing was left to do


def test_an_index_that_always_fails_is_told_by_its_own_line_and_the_next_run_goes_on(
    kubernetes: Callable[..., Packed],
    controller: JobController,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> int:
        raise ErlessError("element 7 of a row is inf")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "make_portion", broken)
        told = "Job has failed indexes; index 0 said: element 7 of a row is inf"
        with pytest.raises(WorkerError, match=told):
            kubernetes()
    controller.kill[0] = 9
    with pytest.raises(WorkerError, match="index 0 left no log"):
        kubernetes()
    packed = kubernetes()
    assert packed.release is not None
    assert packed.release.digest == digest_of_one_machine(tmp_path)


def test_without_rights_or_a_bucket_nothing_is_started(
    kubernetes: Callable[..., Packed], cluster: FakeCluster, tmp_path: Path
) -> None:
    cluster.denied.add(("patch", "jobs"))
    with pytest.raises(ForbiddenError, match='cannot patch resource "jobs"'):
        kubernetes()
    local = PackInputs(tmp_path / "model", tmp_path / "profile", tmp_path / "plan.json")
    store = open_store(str(tmp_path / "folder"), create=True)
    with pytest.raises(OptionError, match="pods read the bundle, and write the release, in a buck"):
        pack_by_pods(Packer(local, store), PodOptions(), None, Silent())


def test_render_writes_the_jobs_that_are_applied(
    kubernetes: Callable[..., Packed],
    controller: JobController,
    tmp_path: Path,
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defaults = PackInputs.__init__.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "window_rows", WINDOW)
    command = ["render", "--job", "--bundle", f"s3://{s3.bucket}/model", "--profile", "profile"]
    command += ["--store", s3.url, "--endpoint-url", s3.endpoint_url, "--namespace", "default"]
    command += ["--image", IMAGE, "--portion-gb", "6e-5", "--pods", "3"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    account, cut, join = yaml.safe_load_all(shown.stdout)
    assert not controller.cluster.find(JOBS)  # nothing is applied
    packed = kubernetes(pods=3)
    assert packed.release is not None
    applied: list[dict[str, Any]] = [
        {"apiVersion": "batch/v1", "kind": "Job"}
        | {"metadata": {key: job["metadata"][key] for key in cut["metadata"]}, "spec": job["spec"]}
        for job in controller.jobs
    ]
    assert applied == [cut, join]
    assert [job["metadata"]["annotations"][WAVE] for job in applied] == ["0", "1"]
    rules = cut["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert rules[1]["onExitCodes"]["values"] == [worker.FINAL]
    pod = cut["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["containers"][0]["securityContext"]["runAsNonRoot"]
    written = CliRunner().invoke(app, [*command, "--format", "kustomize", "--out", "base"])
    assert written.exit_code == 0, written.output
    base = yaml.safe_load((tmp_path / "base/kustomization.yaml").read_text())
    assert [
        yaml.safe_load((tmp_path / "base" / name).read_text()) for name in base["resources"]
    ] == [account, cut, join]
    for more, told in (
        (["--format", "helm", "--out", "chart"], "YAML or as a kustomize base"),
        (["--release", "12"], "there is none yet for --release"),
    ):
        refused = CliRunner().invoke(app, [*command, *more])
        assert refused.exit_code == 1
        assert told in " ".join(refused.output.split())
