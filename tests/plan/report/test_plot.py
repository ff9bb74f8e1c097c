"""The page of `erless plan --plot`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from erless.cli.measure.simulate import node_of
from erless.observe.cost import priced
from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.outcome import run_simulation
from erless.specs.dollars import plan_usd
from erless.specs.plan import Plan
from erless.specs.result import FunctionResult, Usage
from erless.specs.traffic import parse_traffic
from tests.conftest import Cli


def test_the_page_draws_curves_functions_and_costs_and_loads_nothing(
    cli: Cli, tmp_path: Path
) -> None:
    path, plan = tmp_path / "plan.html", tmp_path / "plan.json"
    done = cli("plan", "--workload", "rm3", "--shards", 3, "--plot", path, "--out", plan)
    assert done.returncode == 0, done.stderr
    text, document = path.read_text(), json.loads(plan.read_text())
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", text)
    charts = [json.loads(each) for each in re.findall(r'application/json">(.*?)</script>', text)]
    access, cost = charts
    (curve,) = access["series"]  # ten tables of one shape
    assert curve["y"] == sorted(curve["y"])
    assert curve["y"][-1] == 1
    assert [series["name"] for series in cost["series"]] == ["joint", "model-wise"]
    assert all(value > 0 for series in cost["series"] for value in series["y"])
    assert len(cost["series"][0]["y"]) == len(cost["series"][1]["y"]) == 8
    remote = [shard["name"] for shard in document["shards"] if shard["tier"] != "resident"]
    for name in [*remote, "gateway"]:
        assert text.count(f"<span>{name}</span>") == 2  # a bar of memory, and one of replicas


def test_one_plan_has_one_price(cli: Cli, tmp_path: Path) -> None:
    """Table, verdict, plot, simulation and report tell the same dollars of the same plan."""
    path, out = tmp_path / "plan.html", tmp_path / "plan.json"
    request = ("plan", "--workload", "rm3", "--traffic", "64x", "--compare")
    done = cli(*request, "--plot", path, "--out", out)
    assert done.returncode == 0, done.stderr
    plan = Plan.load(out)
    usd = plan_usd(plan)
    assert plan.result is not None and plan.result.usd_per_month == pytest.approx(usd, abs=0.01)
    assert f"${usd:,.0f} a month" in done.stdout
    charts = [
        json.loads(each)
        for each in re.findall(r'application/json">(.*?)</script>', path.read_text())
    ]
    joint, whole = (series["y"] for series in charts[-1]["series"])
    dollars = {policy.policy: policy.usd_per_month for policy in plan.policies}
    assert joint[3] == pytest.approx(dollars["joint"], rel=1e-4)
    assert whole[3] == pytest.approx(dollars["model-wise"], rel=1e-4)

    replicas = {"gateway": plan.gateway.replicas, "dense": plan.dense.replicas if plan.dense else 0}
    replicas |= {shard.name: shard.replicas for shard in plan.shards if shard.tier != "resident"}
    ran = [
        FunctionResult(name=name, replicas=Usage(mean=count, peak=count))
        for name, count in replicas.items()
    ]
    assert sum(each.usd_per_month for each in priced(ran, plan)) == pytest.approx(usd, abs=0.01)
    short = parse_traffic(f"constant:{plan.qps}", 2)  # one step: as planned
    for node in (None, node_of(plan, None)):
        simulated = run_simulation(plan, short, Terms(), node)
        assert simulated.usd_per_month == pytest.approx(usd)
