"""Every reader against a plain Counter, and every kind of bad log."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erless.dlrm.queries import Query, write_queries
from erless.errors import ArtifactError, LogError
from erless.profile import tally
from erless.profile.access import extend_profile, profile_access
from erless.profile.curves import MachineCurves
from erless.profile.formats import LogFormat, LogSource
from erless.profile.ranking import distribution_of, write_ranked
from erless.profile.tally import Tallies
from erless.specs.counts import open_counts, read_histogram
from erless.specs.profile import Profile, ThroughputCurve
from erless.storage.tensors import TensorFile

from .conftest import MakeBundle

BAGS = [[3, 3, 7], [], [0, 9, 3]]
WANTED = [(3, 3), (0, 1), (7, 1), (9, 1)]


def ranked(counter: Counter[int]) -> list[tuple[int, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def counts_of(out: Path, table: str) -> list[tuple[int, int]]:
    file = TensorFile(out / "counts" / f"{table}.safetensors")
    return list(zip(file.read("ids").tolist(), file.read("counts").tolist(), strict=True))


def write_lists(path: Path, **tables: list[list[int]]) -> Path:
    columns = {name: pa.array(bags, pa.list_(pa.int32())) for name, bags in tables.items()}
    pq.write_table(pa.table(columns | {"label": pa.array([0.5] * len(BAGS))}), path)
    return path


def write_log(kind: str, folder: Path) -> str:
    """BAGS as accesses of table `t`, in each format."""
    if kind == "parquet":
        return str(write_lists(folder / "log.parquet", t=BAGS))
    if kind == "queries":
        query = Query(
            dense=np.zeros((3, 1), np.float32),
            values=np.array([3, 3, 7, 0, 9, 3], np.int32),
            lengths=np.array([[3, 0, 3]], np.int32),
        )
        write_queries(folder / "log.safetensors", query, ["t"], 2)
        return str(folder / "log.safetensors")
    if kind == "counts":
        table = {"table": ["t"] * 5, "id": [3, 7, 0, 9, 3], "count": [2, 1, 1, 1, 1]}
        pq.write_table(
            pa.table(table).replace_schema_metadata({"samples": "3"}), folder / "log.parquet"
        )
        return str(folder / "log.parquet")
    text = "ann 3 3 7\nbob\n\ncid 0 9 3"
    path = folder / ("log.txt.gz" if kind == "gzip" else "log.txt")
    path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode())
    return f"t:{path}"


@pytest.mark.parametrize("kind", ["parquet", "queries", "counts", "interactions", "gzip"])
def test_each_format_gives_the_same_profile(
    kind: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle({"t": 10})
    report = profile_access(bundle, [LogSource.parse(write_log(kind, tmp_path))], tmp_path / "p")
    access = report.profile.tables[0]
    assert counts_of(tmp_path / "p", "t") == WANTED
    assert (access.samples, access.accesses, access.touched) == (3, 6, 4)
    assert access.pooling_factor == 2.0
    assert access.locality == 0.5
    assert report.warnings == ()
    assert Profile.load(tmp_path / "p" / "profile.json") == report.profile
    assert sorted(each.name for each in (tmp_path / "p").iterdir()) == ["counts", "profile.json"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
    batches=st.lists(st.integers(0, 60), max_size=8),
    pending=st.integers(1, 100),
    run_bytes=st.sampled_from([0, 200, 10**6]),
    window=st.sampled_from([16, 64, 1024]),
    weighted=st.booleans(),
)
def test_tally_equals_counter(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    seed: int,
    batches: list[int],
    pending: int,
    run_bytes: int,
    window: int,
    weighted: bool,
) -> None:
    monkeypatch.setattr(tally, "WINDOW_ROWS", window)
    scratch = tmp_path_factory.mktemp("scratch")
    generator = np.random.default_rng(seed)
    tallies = Tallies({"t": rows, "u": 5}, scratch, pending, run_bytes)
    wanted: Counter[int] = Counter()
    for size in batches:
        ids = generator.integers(0, rows, size)
        counts = generator.integers(0, 5, size) if weighted else None
        tallies.add("t", ids, counts)
        for index, each in enumerate(ids.tolist()):
            wanted[each] += 1 if counts is None else int(counts[index])
    wanted = +wanted
    distribution = distribution_of(tallies.windows("t"))
    assert distribution.accesses == wanted.total()
    write_ranked(tallies.windows("t"), distribution, scratch / "t.safetensors", scratch)
    file = TensorFile(scratch / "t.safetensors")
    found = list(zip(file.read("ids").tolist(), file.read("counts").tolist(), strict=True))
    assert found == ranked(wanted)
    hottest = [count for _, count in ranked(wanted)]
    if hottest:
        half = len(hottest) // 2
        assert distribution.share(half) == pytest.approx(sum(hottest[:half]) / sum(hottest))


def test_a_window_of_rows_that_were_all_counted_zero_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "WINDOW_ROWS", 4)
    tallies = Tallies({"t": 8}, tmp_path)
    tallies.add("t", np.array([0, 1, 6]), np.array([0, 0, 3]))
    distribution = distribution_of(tallies.windows("t"))
    assert distribution.touched == 1
    write_ranked(tallies.windows("t"), distribution, tmp_path / "t.safetensors", tmp_path)
    assert TensorFile(tmp_path / "t.safetensors").read("ids").tolist() == [6]


def test_criteo_reader_equals_counter(
    make_bundle: MakeBundle, tmp_path: Path, shared_data: Path
) -> None:
    path = shared_data / "criteo-sample.csv"
    bundle = make_bundle({f"C{index}": 1000 + index for index in range(1, 27)})
    report = profile_access(bundle, [LogSource.parse(str(path))], tmp_path / "p")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    for index, access in enumerate(report.profile.tables, 1):
        column = [line[lines[0].index(f"C{index}")] for line in lines[1:]]
        wanted = Counter(int(each, 16) % (1000 + index) for each in column if each)
        assert counts_of(tmp_path / "p", f"C{index}") == ranked(wanted)
        assert access.samples == len(lines) - 1


def test_criteo_tsv_without_header_goes_by_order(
    make_bundle: MakeBundle, tmp_path: Path, shared_data: Path
) -> None:
    text = (shared_data / "criteo-sample.csv").read_text().split("\n", 1)[1].replace(",", "\t")
    (tmp_path / "day_0.tsv").write_text(text)
    bundle = make_bundle({f"table_{index}": 50 for index in range(26)})
    report = profile_access(bundle, [LogSource.parse(str(tmp_path / "day_0.tsv"))], tmp_path / "p")
    wanted = Counter(int(line.split("\t")[14], 16) % 50 for line in text.splitlines())
    assert counts_of(tmp_path / "p", "table_0") == ranked(wanted)
    assert report.warnings == ()


def test_amazon_book(make_bundle: MakeBundle, tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "amazon-book.txt"
    bundle = make_bundle({"amazon-book": 91_599})
    report = profile_access(bundle, [LogSource.parse(f"amazon-book:{path}")], tmp_path / "p")
    access = report.profile.tables[0]
    assert (access.samples, access.accesses, access.touched) == (52_643, 603_378, 82_629)
    assert access.locality == pytest.approx(0.465, abs=5e-4)
    lines = path.read_text().splitlines()
    wanted = Counter(int(each) for line in lines for each in line.split()[1:])
    assert counts_of(tmp_path / "p", "amazon-book") == ranked(wanted)


BAD = [
    ("t:log.txt", b"", "0 bytes"),
    ("t:log.txt", b"1 2\n1 99\n", "line 2: id 99 is outside table t, whose rows are 0 … 9"),
    ("t:log.txt", b"1 2\n\n1 2 -4\n", "line 3: id -4"),
    ("t:log.txt", b"1 2\n1 2 x7\n", "line 2: 'x7' is not an integer"),
    ("t:log.txt", b"1 99999999999999999999\n", "is not an integer"),
    ("t:log.txt", b"1\n2\n", "the log is empty: no accesses in it"),
    ("t:log.txt", b"1 2\xff\xfe 3\n", "line 1, byte 4: 0xff is not UTF-8"),
    ("tt:log.txt", b"1 2\n", "no table 'tt'; the nearest is 't'"),
    ("log.txt", b"1 2\n", "one table and the model has 2"),
    ("log.parquet", b"PAR1 truncated", "cannot be read"),
    ("log.safetensors", b"\x00" * 4, "truncated"),
    ("missing.txt", None, "does not exist"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_logs_say_where(
    name: str,
    content: bytes | None,
    message: str,
    make_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = make_bundle({"t": 10, "users": 5})
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name.rsplit(":", maxsplit=1)[-1]).write_bytes(content)
    with pytest.raises((LogError, ArtifactError), match=message):
        profile_access(bundle, [LogSource.parse(name)], Path("p"))
    assert sorted(each.name for each in tmp_path.iterdir() if "log" not in each.name) == ["model"]


def test_bad_parquet_columns(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle({"items": 10})
    path = write_lists(tmp_path / "a.parquet", itmes=BAGS)
    with pytest.raises(LogError, match="no table 'itmes'; the nearest is 'items'"):
        profile_access(bundle, [LogSource.parse(str(path))], tmp_path / "p")
    path = write_lists(tmp_path / "a.parquet", items=[[1], [2], [3, 10]])
    with pytest.raises(LogError, match="row 2: id 10 is outside table items"):
        profile_access(bundle, [LogSource.parse(str(path))], tmp_path / "p")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LogError, match="cannot be read"):
        profile_access(bundle, [LogSource.parse(str(path))], tmp_path / "p")


def test_warnings_for_cold_tables_old_logs_and_unknown_samples(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle({"t": 10, "unused": 5})
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"id": [1], "count": [4]}), path)
    os.utime(path, (1_500_000_000, 1_500_000_000))
    source = LogSource.parse(f"t:{path}")
    report = profile_access(bundle, [source], tmp_path / "p", log_format=LogFormat.COUNTS)
    old, cold, unknown = report.warnings
    assert "2017-07-14 02:40:00 UTC) is" in old and "days older than the bundle" in old
    assert "2020-09-13 12:26:40 UTC" in old
    assert cold.endswith("unused")
    assert "--samples" in unknown
    again = profile_access(bundle, [source], tmp_path / "p", samples=2, overwrite=True)
    assert again.profile.tables[0].pooling_factor == 2.0


MEMORY = """
import resource, sys
from pathlib import Path
from erless.profile.access import extend_profile, profile_access
from erless.profile.formats import LogSource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
profile_access(Path(sys.argv[1]), [LogSource.parse(sys.argv[2])], Path(sys.argv[3]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_log(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle({"t": 1000})
    generator = np.random.default_rng(0)
    growth = []
    for groups in (3, 12):
        path = tmp_path / f"{groups}.parquet"
        schema = pa.schema({"t": pa.list_(pa.int32())})
        with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
            for _ in range(groups):
                ids = pa.array(generator.integers(0, 1000, 2_500_000, np.int32))
                offsets = pa.array(np.arange(0, 2_500_001, 100, dtype=np.int32))
                writer.write_table(pa.table({"t": pa.ListArray.from_arrays(offsets, ids)}))
        argv = [sys.executable, "-c", MEMORY, str(bundle), str(path), str(tmp_path / f"p{groups}")]
        growth.append(int(subprocess.run(argv, check=True, capture_output=True).stdout))
    assert growth[1] < 400  # MB; the larger log is 120 MB of ids and may hold 64 MB of them


def test_a_log_that_came_with_its_bundle_is_not_called_old(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle({"t": 10})
    path = bundle / "c.parquet"
    pq.write_table(pa.table({"id": [1], "count": [4]}), path)
    os.utime(path, (1_500_000_000, 1_500_000_000))
    source = LogSource.parse(f"t:{path}")
    report = profile_access(bundle, [source], tmp_path / "p", log_format=LogFormat.COUNTS)
    assert not any("older" in each for each in report.warnings)


def test_curves_stay_when_a_log_is_profiled_into_their_profile(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """`--throughput` first, then `--log`, then another log: one measurement serves them all."""
    bundle = make_bundle({"t": 10})
    curve = ThroughputCurve(name="x", overhead_s=1e-6, gather_s=1e-9, row_bytes=128)
    extend_profile(tmp_path / "p", bundle, MachineCurves((curve,)))
    source = LogSource.parse(write_log("parquet", tmp_path))
    first = profile_access(bundle, [source], tmp_path / "p")
    assert first.profile.curves == (curve,)
    with pytest.raises(ArtifactError, match="exists"):
        profile_access(bundle, [source], tmp_path / "p")
    again = profile_access(bundle, [source, source], tmp_path / "p", overwrite=True)
    assert again.profile.curves == (curve,)
    assert again.profile.tables[0].accesses == 2 * first.profile.tables[0].accesses


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (14, "zz\x00", r"line 4: C1 is 'zz\\x00', not a hexadecimal value"),
        (15, "0123456789abcdef0", r"line 4: C2 is '0123456789abcdef0', not a hexadecimal"),
        (39, "\t1", "line 4 has 41 columns, expected 40"),
        (39, None, "line 4 has 39 columns, expected 40"),
    ],
)
def test_damaged_criteo_lines(
    make_bundle: MakeBundle,
    tmp_path: Path,
    shared_data: Path,
    place: int,
    value: str | None,
    message: str,
) -> None:
    text = (shared_data / "criteo-sample.csv").read_text().split("\n", 1)[1].replace(",", "\t")
    lines = [line.split("\t") for line in text.splitlines()]
    lines[3] = lines[3][:place] + ([value] if value else []) + lines[3][place + 1 :]
    (tmp_path / "day_0.tsv").write_text("\n".join("\t".join(line) for line in lines))
    bundle = make_bundle({f"C{index}": 50 for index in range(1, 27)})
    with pytest.raises(LogError, match=message):
        profile_access(bundle, [LogSource.parse(str(tmp_path / "day_0.tsv"))], tmp_path / "p")


def test_criteo_with_crlf_and_gzip(
    make_bundle: MakeBundle, tmp_path: Path, shared_data: Path
) -> None:
    text = (shared_data / "criteo-sample.csv").read_text()
    (tmp_path / "a.csv").write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    bundle = make_bundle({f"C{index}": 1000 for index in range(1, 27)})
    found = [
        profile_access(bundle, [LogSource.parse(str(tmp_path / name))], tmp_path / f"p-{name}")
        for name in ("a.csv", "b.csv.gz")
    ]
    assert counts_of(tmp_path / "p-a.csv", "C26") == counts_of(tmp_path / "p-b.csv.gz", "C26")
    assert all(each.tables[25].access.samples == 324 for each in found)


def test_columns_of_other_names(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """`--column user=user_id`: what else the log has is not looked at."""
    bundle = make_bundle({"user": 10, "item": 10})
    table = pa.table({"user_id": [1, 2, 2], "item": [[3], [3, 4], []], "clicked": [[9], [9], [9]]})
    pq.write_table(table, tmp_path / "log.parquet")
    source = LogSource("log", tmp_path / "log.parquet", columns=(("user", "user_id"),))
    report = profile_access(bundle, [source], tmp_path / "p")
    assert {each.table: each.accesses for each in report.profile.tables} == {"user": 3, "item": 3}
    for wrong, says in (((("user", "uid"),), "no column 'uid'"), ((("age", "item"),), "age")):
        with pytest.raises(LogError, match=says):
            profile_access(bundle, [replace(source, columns=wrong)], tmp_path / "q")


def test_a_large_table_has_a_histogram_beside_its_counts(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning reads that alone: counts of 10^10 rows are 80 GB."""
    model = make_bundle({"t": 50, "few": 50})
    bags = pa.array([[1, 2, 2], [2, 3, 4, 1, 2]], pa.list_(pa.int64()))
    few = pa.array([[7], [7]], pa.list_(pa.int64()))
    pq.write_table(pa.table({"t": bags, "few": few}), tmp_path / "log.parquet")
    sources = [LogSource.parse(str(tmp_path / "log.parquet"))]
    monkeypatch.setattr("erless.profile.counted.MANY_ROWS", 4)
    large, small = profile_access(model, sources, tmp_path / "p").profile.tables
    assert large.counts and large.histogram and small.counts and not small.histogram
    counts = open_counts(tmp_path / "p", large)
    assert counts is not None
    values, rows = np.unique(counts.read("counts"), return_counts=True)
    histogram = read_histogram(tmp_path / "p", large)
    assert histogram is not None
    assert [each.tolist() for each in histogram] == [values[::-1].tolist(), rows[::-1].tolist()]
