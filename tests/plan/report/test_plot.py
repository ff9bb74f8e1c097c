"""The page of `erless plan --plot`."""

from __future__ import annotations

import json
import re
from pathlib import Path

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
    remote = [shard["name"] for shard in document["shards"] if shard["tier"] != "resident"]
    for name in [*remote, "gateway"]:
        assert text.count(f"<span>{name}</span>") == 2  # a bar of memory, and one of replicas
