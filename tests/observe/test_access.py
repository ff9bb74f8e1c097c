"""Access curves for the report, and the command line that Locust gets."""

from __future__ import annotations

from pathlib import Path

from erless.observe.access import access_plots
from erless.observe.loadtest.locust.process import Load
from erless.specs.plan import Plan
from tests.releases import Made


def test_curves_and_cuts(packed_release: Made) -> None:
    plots = access_plots(packed_release.profile, Plan.load(packed_release.plan))
    assert {each.table for each in plots} <= {each.name for each in packed_release.model.tables}
    for each in plots:
        assert each.share[-1] == 1 and each.ranks[0] == 1
        assert list(each.share) == sorted(each.share)
        shards = [name for _, name in each.cuts]
        assert shards == ["resident (in the gateway)", "hot", "cold"]
    assert access_plots(packed_release.profile)[0].cuts == ()


def test_locust_takes_whole_seconds(tmp_path: Path) -> None:
    closed = Load("http://h", 2.5, users=3).command(tmp_path)
    assert closed[closed.index("--run-time") + 1] == "3s"
    opened = Load("http://h", 2.5, "constant:5", processes=2, options=("--batch", "8"))
    command = opened.command(tmp_path)
    assert command[command.index("--duration") + 1] == "2.5"
    assert "--run-time" not in command and command[-2:] == ["--batch", "8"]
    assert command[command.index("--processes") + 1] == "2"
