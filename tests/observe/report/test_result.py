"""The report in a real browser: no console errors, every plot there, nothing from the network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from erless.observe.report.comparison import write_comparison
from erless.observe.report.result import write_report
from erless.observe.report.timeline import lines_over_time
from erless.pages.charts import Axis, ChartLine, line_chart
from tests.conftest import Browser, Cli
from tests.observe.conftest import write_small

HOVER = """<script>
const svg = [...document.querySelectorAll('svg')].find(each => each.clientWidth > 0);
const box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width / 2}));
</script>"""


@pytest.mark.parametrize("width", [500, 1100])
def test_the_page_in_a_browser(tmp_path: Path, browser: Browser, width: int) -> None:
    out = tmp_path / "report.html"
    write_report(write_small(tmp_path / "r"), out)
    out.write_text(out.read_text() + HOVER)
    document, console = browser(out, width)
    assert console == ""
    assert document.count('class="plot"') == 5
    assert len(re.findall(r'class="line" ', document)) == 2 * 6  # wide, narrow
    titles = re.findall(r'class="tick"[^>]*>([a-z, ]+ \([^)]+\))<', document)
    assert titles.count("time (s)") == 2 * 4
    assert titles.count("rows, hottest first (count)") == 2
    assert {"traffic (queries/s)", "latency (ms)", "memory (bytes)"} < set(titles)
    assert "a &lt;small&gt; run" in document
    tip = re.search(r'<div class="tip"[^>]*>(.*?)</div></div>', document)
    assert tip and "hidden" not in tip[0] and "offered: 5" in tip[0]


def test_the_browser_test_can_fail(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<script>undefinedFunction()</script>")
    assert "undefinedFunction" in browser(page)[1]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(write_small(tmp_path / "r"), out)
    text = out.read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)
    assert "http" not in text
    assert "prefers-color-scheme:dark" in text
    assert out.stat().st_size < 500_000
    assert (
        "SLA 12 ms" in text
        and "4.00\u00d7" in text
        and "2.00\u00d7" in text
        and "woke in 0.4 s" in text
    )


def test_many_functions_are_grouped_by_tier(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(write_small(tmp_path / "r", functions=40), out)
    text = out.read_text()
    assert '"name":"hot"' in text and '"name":"hot-1"' not in text
    assert "33 others" in text


@pytest.mark.parametrize(
    ("seconds", "unit", "ticks"),
    [
        (210, "s", "0 50 100 150 200"),
        (3600, "min", "0 10 20 30 40 50 60"),
        (86400, "h", "0 3 6 9 12 15 18 21 24"),
        (7 * 86400, "d", "0 1 2 3 4 5 6 7"),
    ],
)
def test_time_has_a_unit_that_suits_it(seconds: float, unit: str, ticks: str) -> None:
    x = np.linspace(0, seconds, 50)
    drawn = lines_over_time(
        [ChartLine("a", x, x, 0)], Axis("y (count)"), marks=[(seconds / 2, "half")]
    )
    assert f"time ({unit})" in drawn
    wide = drawn.partition("</svg>")[0]
    shown = re.findall(r'text-anchor="(?:middle|end)" x="[^"]*" y="250">([^<]*)<', wide)
    assert " ".join(shown) == ticks


@pytest.mark.parametrize(
    ("low", "high", "limit", "ticks"),
    [
        (2.3, 48.0, 400.0, "2 5 10 20 50 100 200 500"),
        (0.9, 3e4, 400.0, "1 10 100 1000 10000"),
        (7.0, 9.0, None, "5 10"),
    ],
)
def test_latency_is_read_at_any_scale(
    low: float, high: float, limit: float | None, ticks: str
) -> None:
    y = np.array([0.0, np.nan, low, high])
    drawn = line_chart(
        [ChartLine("p95", np.arange(4.0), y, 0)],
        Axis("x"),
        Axis("y", text=lambda at: f"{at:g}", log=True),
        limit=(limit, "SLA") if limit else None,
    )
    wide = drawn.partition("</svg>")[0]
    assert " ".join(re.findall(r'text-anchor="end" x="52" y="[^"]*">([^<]*)<', wide)) == ticks


def test_comparison(tmp_path: Path, browser: Browser) -> None:
    write_small(tmp_path / "a", "one")
    write_small(tmp_path / "b", "two")
    write_comparison(tmp_path / "a", tmp_path / "b", tmp_path / "c.html")
    document, console = browser(tmp_path / "c.html")
    assert console == ""
    assert document.count('class="plot"') == 4
    assert "1.00\u00d7" in document and "A: one" in document and "B: two" in document


def test_the_verb(tmp_path: Path, cli: Cli) -> None:
    write_small(tmp_path / "r")
    run = cli("report", tmp_path / "r", "--out", tmp_path / "x.html", "-o", "json")
    assert run.returncode == 0, run.stderr
    assert '"answered": 2990' in run.stdout
    assert (tmp_path / "x.html").is_file()
    assert cli("report").returncode == 2
    (tmp_path / "r" / "timeline.parquet").write_bytes(b"PAR1")
    run = cli("report", tmp_path / "r", "--out", tmp_path / "y.html")
    assert (run.returncode, (tmp_path / "y.html").exists()) == (1, False)
    assert "timeline.parquet: cut short or altered" in run.stderr
