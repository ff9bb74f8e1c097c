"""Published traces: each format is read, hostile files are refused, thinning is fair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from erless.errors import ArtifactError, TrafficError
from erless.specs import traces
from erless.specs.traces import FORMATS, read_published
from erless.specs.traffic import Traffic, parse_traffic

# made up in the published formats; no line is of a published file
FILES = {
    "autothrottle": "3\n0\n5\n",
    "azure-2021": (
        "app,func,end_timestamp,duration\na,f,100.5,0.25\nb,f,102.9,2.0\na,g,101.0,0.9\n"
    ),
    "alibaba-2021": (
        ",timestamp,msname,msinstanceid,metric,value\n"
        "0,0,s,i,providerRPC_MCR,2.5\n1,0,t,j,HTTP_MCR,1\n2,0,s,i,providerRPC_RT,90\n"
        "3,120000,s,i,providerRPC_MCR,4\n4,60000,s,i,consumerRPC_MCR,7\n5,60000,t,i,HTTP_MCR,2\n"
    ),
    "twitter": (
        '{"timestamp_ms": "1522540800657", "text": "a"}\n'
        '{"delete": {"timestamp_ms": "1522540800700"}}\n'
        '{"timestamp_ms": "1522540802001"}\n'
    ),
}
EXPECTED = {
    "autothrottle": [3, 0, 5],
    "azure-2021": [3],
    "alibaba-2021": [3.5, 2, 4],
    "twitter": [1, 0, 1],
}


def written(folder: Path, kind: str, text: str | None = None) -> Path:
    path = folder / "trace"
    path.write_text(FILES[kind] if text is None else text)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind: str, tmp_path: Path) -> None:
    trace = read_published(kind, written(tmp_path, kind))
    assert trace.qps.tolist() == EXPECTED[kind]
    assert trace.step_s == (60 if kind == "alibaba-2021" else 1)
    assert trace.counted == (kind in ("azure-2021", "twitter"))


@pytest.mark.parametrize(
    ("kind", "name", "total"), [("azure-2021", "a", 2), ("alibaba-2021", "t", 3)]
)
def test_one_name_of_many(kind: str, name: str, total: float, tmp_path: Path) -> None:
    traffic = parse_traffic(f"{kind}:{written(tmp_path, kind)}#{name}")
    assert traffic.qps.sum() == total and traffic.name == f"{kind}:trace#{name}"


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("autothrottle", "", "no rates"),
        ("autothrottle", "3\n-1\n", "line 2: a rate of -1 is below 0"),
        ("autothrottle", "3\nnan\n", "line 2: the rate is 'nan', not a number"),
        ("azure-2021", "app,func\n", "names no column 'end_timestamp'"),
        (
            "azure-2021",
            "app,end_timestamp,duration\na,1e308,-1e308\n",
            "end_timestamp is '1e308'",
        ),
        ("azure-2021", "app,end_timestamp,duration\na,9\n", "line 2 has only 2 values"),
        ("azure-2021", "app,end_timestamp,duration\na,0,0\na,1e12,0\n", "it spans"),
        ("alibaba-2021", "timestamp,msname,metric,value\n0,s,HTTP_MCR,-2\n", "line 2: .* below 0"),
        ("alibaba-2021", "timestamp,msname,metric,value\n0,s,HTTP_RT,2\n", "no providerRPC_MCR or"),
        ("azure-2021", "app,end_timestamp,duration\n" + "a" * 200_000, "line 2 is not CSV"),
        ("twitter", "{\n", "line 1 is not JSON"),
        ("twitter", "[" * 100_000 + "\n", "line 1 is not JSON"),
        ("twitter", '{"timestamp_ms": []}\n', "timestamp_ms is"),
    ],
)
def test_hostile_files_are_told_by_line(kind: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TrafficError, match=said):
        read_published(kind, written(tmp_path, kind, text))


def test_an_endless_line_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "LINE_BYTES", 100)
    with pytest.raises(TrafficError, match="longer than 100 bytes"):
        read_published("twitter", written(tmp_path, "twitter", '{"a": "' + "x" * 200 + '"}\n'))
    with pytest.raises(ArtifactError):
        parse_traffic(f"twitter:{tmp_path / 'none'}")


def test_thinning_keeps_counts_and_time(tmp_path: Path) -> None:
    rows = "".join("a,0,0\n" if i % 2 else f"a,{i},0\n" for i in range(4))
    counted = written(tmp_path, "azure-2021", "app,end_timestamp,duration\n" + rows)
    assert parse_traffic(f"azure-2021:{counted}").qps.tolist() == [3, 0, 1]
    whole = Traffic("t", np.arange(1000.0), np.tile([400.0, 0.0], 500), 1000.0, (), counted=True)
    thin = whole.thinned(0.25)
    assert thin.duration_s == whole.duration_s == 1000
    assert (thin.qps[1::2] == 0).all() and (thin.qps == np.rint(thin.qps)).all()
    assert thin.qps[::2].mean() == pytest.approx(100, rel=0.03)
    assert thin.qps[::2].var() == pytest.approx(400 * 0.25 * 0.75, rel=0.2)
    arrivals = thin.arrivals(np.random.default_rng(0))
    counts = np.histogram(arrivals, np.arange(1001))[0]
    assert (counts == thin.qps).all() and "0.25 of the queries" in thin.notes[-1]
    assert parse_traffic("0.5*constant:80", 10).qps.tolist() == [40.0]
    rates = written(tmp_path, "autothrottle")
    assert parse_traffic(f"0.5*autothrottle:{rates}").qps.tolist() == [1.5, 0.0, 2.5]
    with pytest.raises(TrafficError, match="cannot be thinned by 2"):
        parse_traffic("2*constant:80")
