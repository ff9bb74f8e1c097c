"""Pages that stages write of their own artifacts: hotness, deploy diff, release timeline."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from erless.errors import LogError
from erless.pages.access import hotness_curve
from erless.profile.hotness_page import write_hotness
from erless.specs.profile import MANIFEST, Profile
from tests.pages import shown


def cells(page: str, first: str) -> list[str]:
    """The cells of the table's row that begins with `first`."""
    row = re.search(rf"<tr><td[^>]*>{first}</td>(.*?)</tr>", page)
    assert row, first
    return re.findall(r"<td[^>]*>(.*?)</td>", row[1])


def test_the_hotness_page_tells_what_the_counts_say(tmp_path: Path) -> None:
    page = shown.hotness(tmp_path)
    counts = np.arange(400, 0, -1)
    top = [counts[:rows].sum() / counts.sum() for rows in (1, 10, 100)]
    shares = [float(cell.rstrip("%")) / 100 for cell in cells(page, "user")[4:]]
    assert shares == pytest.approx(top, abs=2e-3)
    assert cells(page, "user")[:4] == ["1,000", "80,200", "40.0%", "80.2"]
    assert cells(page, "never")[1] == "0"
    assert "the log is &lt;old&gt;" in page and "log.parquet" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_profile_without_accesses_has_no_page(tmp_path: Path) -> None:
    Profile.create(model_digest="m", sources=(), tables=()).save(tmp_path / MANIFEST)
    with pytest.raises(LogError, match="no accesses"):
        write_hotness(tmp_path, tmp_path / "page.html")


def test_a_curve_of_many_rows_keeps_their_sums() -> None:
    counts = np.sort(np.random.default_rng(0).integers(1, 1000, 5000))[::-1]
    curve = hotness_curve("t", 9000, counts)
    exact = np.cumsum(counts) / counts.sum()
    inside = curve.ranks <= 5000
    np.testing.assert_allclose(
        curve.share[inside], exact[curve.ranks[inside].astype(int) - 1], rtol=1e-12
    )
    assert (curve.ranks[-1], curve.share[-1]) == (9000, 1)
    assert exact[round(curve.rows_for(0.9)) - 1] == pytest.approx(0.9, abs=0.01)


def test_the_diff_page_has_both_plans(tmp_path: Path) -> None:
    page = shown.diff(tmp_path)
    assert "1 to create, 1 to update, 1 to keep" in page
    assert cells(page, "dense")[:2] == ["create", "dense 1a"]
    functions = page[page.index('aria-label="functions"') :]
    assert cells(functions, "dense")[0] == "– → dense"  # new
    assert "→" not in cells(functions, "cold-0")[0]
    assert "<span>now</span>" in page and "<span>then</span>" in page


def test_the_timeline_has_releases_and_generations(tmp_path: Path) -> None:
    page = shown.history(tmp_path)
    assert page.count('<li class="now">') == page.count('<li class="kept">') == 1
    assert page.index("2026-11-02 10:00 UTC") < page.index("2026-11-01 10:00 UTC")
    assert "generation 10, 1,000 rows changed" in page and "and 2 before" in page


def test_a_point_without_neighbours_is_seen(tmp_path: Path) -> None:
    page = shown.drill(tmp_path)
    healed = page[page.index("<h2>Until healed</h2>") :]
    assert healed[: healed.index("</figure>")].count("<circle ") == 2 * 2  # kinds; wide, narrow
