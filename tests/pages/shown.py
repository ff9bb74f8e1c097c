"""One of each page that erless writes, of little data: name → HTML."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from erless.deploy.diff_page import write_diff
from erless.deploy.history_page import DeployedRelease, write_history
from erless.deploy.target import Change, Deployment
from erless.observe.report.comparison import write_comparison
from erless.observe.report.result import write_report
from erless.pages.live import live_page
from erless.plan.planner import POLICIES, Planner
from erless.plan.report.break_even import break_even
from erless.plan.report.document import plan_document
from erless.plan.report.plot import plot_page
from erless.plan.report.variations import AskedPlan
from erless.plan.request import PlanRequest
from erless.plan.source import workload_source
from erless.profile.hotness_page import write_hotness
from erless.specs.artifact import FileEntry
from erless.specs.generations import GenerationManifest
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.specs.result import MANIFEST as RESULT
from erless.specs.result import DrillResult, FaultResult, RunResult
from erless.storage.tensors import write_tensors
from tests.deploy.desired import desired
from tests.observe.conftest import write_small
from tests.observe.test_live import status

__all__ = ["all_pages", "diff", "history", "hotness", "plan"]


def all_pages(folder: Path) -> dict[str, str]:
    """Every page, as it is written to a file or served."""
    return {
        "plan": plan(),
        "report": report(folder),
        "drill": drill(folder),
        "comparison": comparison(folder),
        "live": live(),
        "hotness": hotness(folder),
        "diff": diff(folder),
        "history": history(folder),
    }


def plan() -> str:
    source = workload_source("rm3", 0.9, 32, 100_000)
    planner = Planner(source.model, source.tables, PlanRequest(qps=2000.0, shards=3))
    outcome = planner.outcome(POLICIES)
    asked = AskedPlan(
        source.model, source.tables, outcome.request, outcome.demand.qps, outcome.prices
    )
    document = plan_document(outcome, source.model_digest, source.profile_digest)
    return plot_page(document, outcome.demand, break_even(asked, outcome), ["it <pays>"])


def report(folder: Path) -> str:
    write_report(write_small(folder / "small"), folder / "report.html")
    return (folder / "report.html").read_text()


def drill(folder: Path) -> str:
    small = write_small(folder / "drilled")
    faults = (
        FaultResult(t_s=20, kind="kill", function="hot-0", replica="a", found_s=0.1, healed_s=0.4),
        FaultResult(t_s=40, kind="hang", function="hot-0", replica="b", found_s=0.6, healed_s=1.0),
    )
    numbers = {"calm_s": 10, "good_ms": 20, "calm_goodput": 0.99, "goodput": 0.98, "queries": 2500}
    broken = DrillResult(churn="kill,hang", faults=faults, **numbers)
    stamped = {"kind", "schema_version", "digest", "drill"}
    fields = {name: value for name, value in RunResult.load(small / RESULT) if name not in stamped}
    RunResult.create(**fields, drill=broken).save(small / RESULT)
    write_report(small, folder / "drill.html")
    return (folder / "drill.html").read_text()


def comparison(folder: Path) -> str:
    one, two = (write_small(folder / title, title) for title in ("one", "two"))
    write_comparison(one, two, folder / "comparison.html")
    return (folder / "comparison.html").read_text()


def live() -> str:
    """The live page with what it asks for beside it, since no server answers here."""
    told = json.dumps(status(0) | {"drift": "12 %"})
    stub = f"<script>window.fetch = async () => ({{json: async () => ({told})}});</script>"
    return live_page("erless: local", {"lines": ["it pays"]}).replace("</head>", stub + "</head>")


def hotness(folder: Path) -> str:
    profile = folder / "profile"
    (profile / "counts").mkdir(parents=True)
    tables = []
    for name, rows, counts in (
        ("user", 1000, np.arange(400, 0, -1)),
        ("item", 50, np.full(50, 7)),
    ):
        path = f"counts/{name}.safetensors"
        arrays = {"ids": np.arange(len(counts)), "counts": counts.astype(np.int64)}
        digest = write_tensors(profile / path, arrays)
        tables.append(
            TableAccess(
                table=name,
                rows=rows,
                samples=1000,
                accesses=int(counts.sum()),
                touched=len(counts),
                locality=0.5,
                counts=FileEntry(path=path, size_bytes=digest.size_bytes, sha256=digest.sha256),
            )
        )
    tables.append(TableAccess(table="never", rows=10, samples=1000, accesses=0, touched=0))
    document = Profile.create(model_digest="m", sources=("log.parquet",), tables=tuple(tables))
    document.save(profile / MANIFEST)
    write_hotness(profile, folder / "hotness.html", ["the log is <old>"])
    return (folder / "hotness.html").read_text()


def diff(folder: Path) -> str:
    changes = (
        Change("create", "dense", "dense 1a"),
        Change("update", "hot-0", "digest 1 → 2"),
        Change("keep", "cold-0"),
    )
    served, wanted = desired("1"), desired("2", dense=True)
    write_diff(folder / "diff.html", "local", served.plan, wanted, changes)
    return (folder / "diff.html").read_text()


def history(folder: Path) -> str:
    releases = []
    for number, version in enumerate(("2", "1")):
        wanted = desired(version)
        deployment = Deployment(
            wanted.release.digest, "http://x", f"2026-11-0{2 - number}T10:00:00Z", number == 0
        )
        made = [
            GenerationManifest.create(
                release=wanted.release.digest, number=each, made_at_s=1.7e9, changed=each * 100
            )
            for each in range(10, 0, -1)
        ]
        releases.append(DeployedRelease(deployment, wanted.plan, [] if number else made))
    write_history(folder / "history.html", "local", releases)
    return (folder / "history.html").read_text()
