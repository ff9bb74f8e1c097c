"""Traffic: shapes keep their rates, arrivals are Poisson, a bad trace is told by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.errors import ArtifactError, TrafficError
from erless.specs.traffic import Traffic, parse_traffic, read_trace


@pytest.mark.parametrize(
    ("text", "queries", "peak"),
    [
        ("constant:100", 6000, 100),
        ("step:50,150,100", 6000, 150),
        ("ramp:0,200", 6000, 200),
        ("spike:50,550", 6000, 550),
        ("diurnal:50,150", 6000, 150),
        ("sawtooth:50,150", 6000, 150),
    ],
)
def test_shapes(text: str, queries: float, peak: float) -> None:
    traffic = parse_traffic(text, 60)
    assert traffic.queries == pytest.approx(queries, rel=1e-3)
    assert traffic.peak == pytest.approx(peak, rel=1e-3)
    arrivals = traffic.arrivals(np.random.default_rng(0))
    assert len(arrivals) == pytest.approx(queries, rel=0.06)
    assert (np.diff(arrivals) >= 0).all() and arrivals[0] >= 0 and arrivals[-1] < 60


@given(st.lists(st.floats(0, 50), min_size=1, max_size=6), st.integers(0, 99))
def test_arrivals_fall_where_the_rate_is(rates: list[float], seed: int) -> None:
    begins = np.arange(len(rates), dtype=np.float64) * 10.0
    traffic = Traffic("x", begins, np.array(rates), len(rates) * 10.0)
    arrivals = traffic.arrivals(np.random.default_rng(seed))
    counts = np.histogram(arrivals, np.arange(len(rates) + 1) * 10.0)[0]
    expected = np.array(rates) * 10
    assert (np.abs(counts - expected) <= 6 * np.sqrt(expected) + 6).all()
    assert (counts[expected == 0] == 0).all()


def test_interarrival_times_are_exponential() -> None:
    arrivals = parse_traffic("constant:200", 100).arrivals(np.random.default_rng(1))
    gaps = np.diff(arrivals)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wave:1", "neither a trace"),
        ("step", "neither a trace"),
        ("constant:fast", "are not rates"),
        ("constant:-1", "not 0 or more"),
        ("constant:nan", "not 0 or more"),
        ("constant:1,2", "takes 1 rates, found 2"),
        ("ramp:1", "takes 2 rates, found 1"),
    ],
)
def test_wrong_shapes(text: str, said: str) -> None:
    with pytest.raises(TrafficError, match=said):
        parse_traffic(text)
    with pytest.raises(TrafficError, match="not above 0"):
        parse_traffic("constant:1", -5)


def trace(folder: Path, *rows: str) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join(["t_s,qps", *rows]) + "\n")
    return path


def test_a_trace_is_replayed_from_its_first_row(tmp_path: Path) -> None:
    traffic = parse_traffic(str(trace(tmp_path, "100,10", "160,30", "220,0")))
    assert traffic.at(np.array([0.0, 59.0, 60.0, 120.0, 181.0])).tolist() == [10, 10, 30, 0, 0]
    assert traffic.duration_s == 180
    assert traffic.notes == ()


def test_a_gap_is_noted(tmp_path: Path) -> None:
    rows = [f"{t},5" for t in (0, 10, 20, 30, 500, 510)]
    traffic = read_trace(trace(tmp_path, *rows))
    assert traffic.notes == ("trace.csv: no rows from 30 s to 500 s: 5 queries/s hold",)
    assert traffic.at(250.0) == 5


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows"),
        (["-1,5"], "row 1: t_s is -1"),
        (["0,5", "10,"], "row 2: qps is nan"),
        (["0,5", "10,-2"], "row 2: qps is -2"),
        (["0,5", "0,6"], "row 2: t_s is 0, not after 0"),
        (["0,5", "x,6"], "row 2: t_s is 'x', not a number"),
        (["0,5", "10,5,7"], "row 2 has more values than the table has columns"),
    ],
)
def test_a_bad_trace(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(TrafficError, match=said):
        read_trace(trace(tmp_path, *rows))


def test_a_trace_in_another_encoding_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("\ufefft_s,qps\n0,5\n10,\u00b5\n".encode("utf-8"))
    with pytest.raises(TrafficError, match="row 2: qps is '\u00b5', not a number"):
        read_trace(path)
    path.write_bytes(b"t_s,qps\n0,5\n10,\xb5\n")
    with pytest.raises(TrafficError, match="line 3 is not UTF-8"):
        read_trace(path)


def test_other_columns_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time,rate\n1,2\n")
    with pytest.raises(TrafficError, match="no column 't_s'"):
        read_trace(tmp_path / "x.csv")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_trace(tmp_path / "y.csv")
    (tmp_path / "z.parquet").write_bytes(b"nothing")
    with pytest.raises(TrafficError, match="not a trace"):
        read_trace(tmp_path / "z.parquet")
