"""Valid logs in which one thing was changed: read as they say, or refused by name.

What a log says is read a second time by Arrow or plain Python, and counted by a Counter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erless.errors import ErlessError, LogError
from erless.profile.access import profile_access
from erless.profile.counted import AccessReport
from erless.profile.criteo import CRITEO
from erless.profile.formats import LogFormat, LogSource
from erless.storage.tensors import TensorFile

from .conftest import MakeBundle

ROWS = {"user": 50, "item": 9}
CHANGES = ["nothing", "rename", "add", "retype", "reorder", "number", "null"]
slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def counted(out: Path, table: str) -> Counter[int]:
    path = out / "counts" / f"{table}.safetensors"
    if not path.exists():
        return Counter()
    file = TensorFile(path)
    return Counter(dict(zip(file.read("ids").tolist(), file.read("counts").tolist(), strict=True)))


def check(
    bundle: Path, path: Path, out: Path, wanted: dict[str, Counter[int]], table: str = ""
) -> AccessReport | None:
    """The report, if the log is read: it has what is wanted, and tells of tables that it lacks."""
    source = LogSource(str(path), path, table or None)
    try:
        report = profile_access(bundle, [source], out)
    except ErlessError as error:
        assert str(path) in str(error)
        return None
    for name in ROWS:
        assert counted(out, name) == +wanted.get(name, Counter())
        assert name in wanted or any(name in line for line in report.warnings)
    return report


bags = st.lists(st.lists(st.integers(0, 8), max_size=3), min_size=1, max_size=5)


@slow
@given(data=st.data(), samples=bags, what=st.sampled_from(CHANGES))
def test_lists_in_parquet(
    tmp_path_factory: pytest.TempPathFactory,
    make_once: Path,
    data: st.DataObject,
    samples: list[list[int]],
    what: str,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    columns: dict[str, Any] = {
        "user": pa.array([bag[0] if bag else None for bag in samples], pa.int64()),
        "item": pa.array(samples, pa.list_(pa.int32())),
        "label": pa.array([0.5] * len(samples)),
    }
    name = data.draw(st.sampled_from(["user", "item"]))
    if what == "rename":
        columns[data.draw(st.sampled_from(["User", "items", "x"]))] = columns.pop(name)
    elif what == "add":
        columns[data.draw(st.sampled_from(["extra", "User"]))] = columns[name]
    elif what == "retype":
        kind = data.draw(
            st.sampled_from(
                [
                    pa.float32(),
                    pa.int8(),
                    pa.uint64(),
                    pa.string(),
                    pa.list_(pa.uint8()),
                    pa.large_list(pa.int64()),
                    pa.list_(pa.float64()),
                ]
            )
        )
        try:
            columns[name] = columns[name].cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return
    elif what == "reorder":
        columns = dict(reversed(columns.items()))
    elif what == "number":
        bad = data.draw(st.sampled_from([-1, 9, 50, 2**31, 2**62]))
        columns["item"] = pa.array([[bad], *samples[1:]], pa.list_(pa.int64()))
    elif what == "null":
        kind = data.draw(st.sampled_from([pa.null(), pa.list_(pa.null())]))
        columns[name] = pa.nulls(len(samples), kind)
    pq.write_table(pa.table(columns), folder / "log.parquet")
    plain = pq.read_table(folder / "log.parquet").to_pydict()
    wanted = {}
    for table in ROWS.keys() & plain.keys():
        bagged = [bag if isinstance(bag, list) else [bag] for bag in plain[table]]
        wanted[table] = Counter(one for bag in bagged for one in bag if one is not None)
    report = check(make_once, folder / "log.parquet", folder / "p", wanted)
    if report is not None:
        assert {access.table: access.samples for access in report.profile.tables} == {
            table: len(samples) if table in wanted else 0 for table in ROWS
        }
    if what == "nothing" and any(samples):
        assert report is not None


@slow
@given(data=st.data(), what=st.sampled_from(CHANGES))
def test_counts_in_parquet(
    tmp_path_factory: pytest.TempPathFactory, make_once: Path, data: st.DataObject, what: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    size = data.draw(st.integers(1, 5))

    def draw(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))

    columns: dict[str, Any] = {
        "table": pa.array(
            data.draw(st.lists(st.sampled_from(sorted(ROWS)), min_size=size, max_size=size))
        ),
        "id": pa.array(draw(0, 8)),
        "count": pa.array(draw(0, 4)),
    }
    name = data.draw(st.sampled_from(sorted(columns)))
    if what == "rename":
        columns[name + "s"] = columns.pop(name)
    elif what == "add":
        columns["weight"] = columns["count"]
    elif what == "retype":
        kind = data.draw(st.sampled_from([pa.float64(), pa.string(), pa.uint64(), pa.int8()]))
        try:
            columns[name] = columns[name].cast(kind)
        except pa.ArrowInvalid:
            return
    elif what == "reorder":
        columns = dict(reversed(columns.items()))
    elif what == "number":
        column = data.draw(st.sampled_from(["id", "count"]))
        columns[column] = pa.array([data.draw(st.sampled_from([-1, 2**31, 2**62]))] * size)
    elif what == "null":
        columns[name] = pa.nulls(size, columns[name].type)
    pq.write_table(pa.table(columns), folder / "log.parquet")
    plain = pq.read_table(folder / "log.parquet").to_pydict()
    wanted: dict[str, Counter[int]] = {}
    numbers = [*plain.get("id", []), *plain.get("count", [])]
    if {"table", "id", "count"} == plain.keys() and all(isinstance(one, int) for one in numbers):
        for table, one, count in zip(plain["table"], plain["id"], plain["count"], strict=True):
            wanted.setdefault(table, Counter())[one] += count
    report = check(make_once, folder / "log.parquet", folder / "p", wanted)
    assert report is None or {"table", "id", "count"} == plain.keys()


@slow
@given(data=st.data(), samples=bags, what=st.sampled_from(["nothing", "add", "number", "bytes"]))
def test_interactions(
    tmp_path_factory: pytest.TempPathFactory,
    make_once: Path,
    data: st.DataObject,
    samples: list[list[int]],
    what: str,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    lines = [" ".join(["ann", *map(str, bag)]) for bag in samples]
    place = data.draw(st.integers(0, len(lines) - 1))
    if what == "add":
        lines.insert(place, data.draw(st.sampled_from(["", "\t", "  "])))
    elif what == "number":
        lines[place] += data.draw(st.sampled_from([" 1.0", " x", " -1", " 9", f" {2**63}", " 1,2"]))
    text = "\n".join(lines).encode()
    if what == "bytes":
        text = data.draw(
            st.sampled_from([b"\xef\xbb\xbf" + text, text + b" \xff 1", text + b"\r\n"])
        )
    (folder / "log.txt").write_bytes(text)
    wanted: Counter[int] = Counter()
    try:
        for line in text.decode("utf-8-sig").splitlines():
            wanted.update(int(one) for one in line.split()[1:])
    except ValueError:
        wanted = Counter({-1: 1})  # has to be refused
    check(make_once, folder / "log.txt", folder / "p", {"item": wanted}, "item")


@slow
@given(data=st.data(), what=st.sampled_from(CHANGES))
def test_criteo(
    tmp_path_factory: pytest.TempPathFactory, make_criteo: Path, data: st.DataObject, what: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    header = data.draw(st.booleans())
    names = list(CRITEO)
    draw = data.draw(st.randoms(use_true_random=False))
    rows = [[f"{draw.randrange(2**32):08x}" for _ in names] for _ in range(3)]
    place = data.draw(st.integers(14, 39))
    if what == "rename" and header:
        names[place] = data.draw(st.sampled_from(["c1", "C27", "label"]))
    elif what == "add":
        names.append("extra")
        rows = [[*row, "7"] for row in rows]
    elif what == "retype":
        rows[1][place] = data.draw(st.sampled_from(["1.5", "-3", "xyz", "0" * 17, " 1"]))
    elif what == "reorder" and header:
        order = data.draw(st.permutations(range(40)))
        names, rows = [names[k] for k in order], [[row[k] for k in order] for row in rows]
    elif what == "number":
        rows[2] = rows[2][: data.draw(st.integers(0, 39))]
    elif what == "null":
        rows[1][place] = ""
    lines = [",".join(row) for row in ([names, *rows] if header else rows)]
    text = "\n".join(lines).encode()
    if data.draw(st.booleans()):
        text = b"\xef\xbb\xbf" + text
    (folder / "log.csv").write_bytes(text)
    try:
        report = profile_access(
            make_criteo, [LogSource.parse(str(folder / "log.csv"))], folder / "p"
        )
    except ErlessError as error:
        assert str(folder / "log.csv") in str(error)
        assert what in ("rename", "add", "retype", "number")
        if what == "retype":
            assert f"line {2 + header}: C" in str(error)
        if what == "number" and rows[2]:
            assert f"line {3 + header} has {len(rows[2])} columns, expected 40" in str(error)
        return
    for column in (f"C{k}" for k in range(1, 27)):
        if column not in names:
            assert any(column in line for line in report.warnings)
            continue
        cells = [row[names.index(column)] for row in rows if row]
        wanted = Counter(int(cell, 16) % 1000 for cell in cells if cell)
        assert counted(folder / "p", column) == wanted
    assert report.profile.tables[0].samples in (0, sum(bool(row) for row in rows))


@pytest.fixture(scope="module")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("small"), ROWS)


@pytest.fixture(scope="module")
def make_criteo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("criteo")
    return bundle_of(folder, {f"C{k}": 1000 for k in range(1, 27)})


def bundle_of(folder: Path, rows: dict[str, int]) -> Path:
    from erless.specs.model import DlrmTower, Interaction, ModelSpec, TableSpec
    from tests.bundles import write_bundle

    model = ModelSpec(
        dense_features=1,
        tables=tuple(TableSpec(name=name, rows=count, dim=1) for name, count in rows.items()),
        tower=DlrmTower(bottom_mlp=(1,), top_mlp=(1,), interaction=Interaction.CAT),
    )
    write_bundle(folder / "model", model, 0)
    return folder / "model"


# ---- folders ----


def part(path: Path, bags: list[list[int] | None] | None = None, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"t": pa.array(bags, pa.list_(pa.int32()))} if bags is not None else {}
    pq.write_table(pa.table(columns | more), path)


def test_a_spark_folder_is_read_as_spark_reads_it(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Parts of all names, in partitions, some without a row or a bag; nothing that is not data."""
    folder = tmp_path / "log"
    part(folder / "part-0.snappy.parquet", [[1, 2], []])
    part(folder / "part-1.PARQUET", [[3]])
    part(folder / "part-2.parq", [[4]])
    part(folder / "day=1/000000_0", [[5]])
    part(folder / "_hour=2/part-0.parquet", [[6]])
    part(folder / "part-3.parquet", [])
    part(folder / "part-4.parquet", [None, None])
    part(folder / "part-5.parquet", t=pa.nulls(2))
    for hidden in ("_temporary/0", ".hidden", "_delta_log", "day=1/_temporary"):
        part(folder / hidden / "part-9.parquet", [[9]])
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    bundle = make_bundle({"t": 10})
    report = profile_access(bundle, [LogSource.parse(str(folder))], tmp_path / "p")
    assert counted(tmp_path / "p", "t") == Counter({1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1})
    assert report.profile.tables[0].samples == 2 + 1 + 1 + 1 + 1 + 0 + 2 + 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("part-1.parquet", b"", "part-1.parquet: the log is empty: the file has 0 bytes"),
        ("part-1.csv", b"1,2\n", "part-1.csv: not a parquet file"),
        ("day=1/part-1.parquet", b"PAR1", "part-1.parquet: cannot be read"),
    ],
)
def test_what_a_folder_has_beside_parts_is_refused(
    make_bundle: MakeBundle, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = tmp_path / "log"
    part(folder / "part-0.parquet", [[1]])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(LogError, match=message):
        profile_access(make_bundle({"t": 10}), [LogSource.parse(str(folder))], tmp_path / "p")


def test_a_folder_without_an_access_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    part(tmp_path / "log/part-0.parquet", [None])
    part(tmp_path / "log/part-1.parquet", [])
    with pytest.raises(LogError, match="log: the log is empty: no accesses in it"):
        profile_access(
            make_bundle({"t": 10}), [LogSource.parse(str(tmp_path / "log"))], tmp_path / "p"
        )


def test_parts_of_a_table_are_of_that_table(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    for table, one in (("t", 1), ("u", 2)):
        part(folder / f"table={table}/0.parquet", id=pa.array([one]), count=pa.array([3]))
    bundle = make_bundle({"t": 10, "u": 10})
    profile_access(bundle, [LogSource.parse(str(folder))], tmp_path / "p")
    assert counted(tmp_path / "p", "t") == Counter({1: 3})
    assert counted(tmp_path / "p", "u") == Counter({2: 3})
    profile_access(bundle, [LogSource.parse(f"t:{folder}")], tmp_path / "one")
    assert not counted(tmp_path / "one", "u")
    part(folder / "table=v/0.parquet", id=pa.array([1]), count=pa.array([3]))
    with pytest.raises(LogError, match="the model has no table 'v'"):
        profile_access(bundle, [LogSource.parse(str(folder))], tmp_path / "q")


def test_two_columns_of_one_name_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    column = pa.array([[1]], pa.list_(pa.int32()))
    pq.write_table(pa.Table.from_arrays([column, column], ["t", "t"]), tmp_path / "a.parquet")
    with pytest.raises(LogError, match="2 columns are named 't'"):
        profile_access(
            make_bundle({"t": 10}), [LogSource.parse(str(tmp_path / "a.parquet"))], tmp_path / "p"
        )


# ---- what is said of text ----


def test_lines_are_counted_over_the_whole_file(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small blocks, with blank lines: absolute, from 1."""
    monkeypatch.setattr("erless.profile.criteo.BLOCK_BYTES", 512)
    monkeypatch.setattr("erless.profile.interactions.BLOCK_BYTES", 8)
    bundle = make_bundle({f"C{k}": 50 for k in range(1, 27)})
    lines = [",".join(["1"] * 40) for _ in range(40)]
    lines[20] = ""
    for header in (False, True):
        text = [",".join(CRITEO), *lines] if header else list(lines)
        text[33] = ",".join(["1"] * 39 + ["no"])
        (tmp_path / "a.csv").write_text("\n".join(text))
        with pytest.raises(LogError, match="line 34: C26 is 'no', not a hexadecimal value"):
            profile_access(bundle, [LogSource.parse(str(tmp_path / "a.csv"))], tmp_path / "p")
        text[33] = "1,2"
        (tmp_path / "a.csv").write_text("\n".join(text))
        with pytest.raises(LogError, match="line 34 has 2 columns, expected 40"):
            profile_access(bundle, [LogSource.parse(str(tmp_path / "a.csv"))], tmp_path / "p")
    (tmp_path / "b.txt").write_text("\n".join(["a 1", ""] * 20 + ["b 1 zwei"]))
    with pytest.raises(LogError, match="line 41: 'zwei' is not an integer row id"):
        profile_access(bundle, [LogSource.parse(f"C1:{tmp_path}/b.txt")], tmp_path / "p")


def test_bytes_that_are_not_utf8_are_named_by_line(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erless.profile.interactions.BLOCK_BYTES", 8)
    bundle = make_bundle({"t": 10})
    (tmp_path / "a.txt").write_bytes("ann 1\nbob 2\njosé 3\n".encode("latin-1"))
    with pytest.raises(LogError, match="a.txt: line 3, byte 4: 0xe9 is not UTF-8"):
        profile_access(bundle, [LogSource.parse(f"t:{tmp_path}/a.txt")], tmp_path / "p")


def test_a_line_without_end_is_no_log(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erless.profile.blocks.MOST_LINE_BYTES", 1 << 20)
    monkeypatch.setattr("erless.profile.interactions.BLOCK_BYTES", 1 << 19)
    (tmp_path / "a.txt").write_bytes(b"a 1\n" + b"1 " * (1 << 20))
    with pytest.raises(LogError, match="line 2 is longer than 1 MiB: not a log"):
        profile_access(
            make_bundle({"t": 10}), [LogSource.parse(f"t:{tmp_path}/a.txt")], tmp_path / "p"
        )


READ = """
import sys
from pathlib import Path
from erless.profile.access import profile_access
from erless.profile.formats import LogSource
for number, path in enumerate(sys.argv[3:]):
    source = LogSource(path, Path(path), "t")
    profile_access(Path(sys.argv[1]), [source], Path(sys.argv[2]) / str(number))
"""


def test_names_outside_ascii_are_read_in_the_c_locale(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle({"t": 10})
    part(tmp_path / "größe.parquet", [[1]])
    (tmp_path / "größe.txt").write_text("josé 1\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", READ, str(bundle), str(tmp_path / "out")]
    paths = [str(tmp_path / "größe.parquet"), str(tmp_path / "größe.txt")]
    run = subprocess.run(
        [*command, *paths], check=False, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert counted(tmp_path / "out/0", "t") == counted(tmp_path / "out/1", "t") == Counter({1: 1})


def test_a_count_log_without_its_columns_is_refused(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    part(tmp_path / "a.parquet", [[1]])
    source = LogSource.parse(f"t:{tmp_path}/a.parquet")
    with pytest.raises(LogError, match="no column count; it has t"):
        profile_access(
            make_bundle({"t": 10}), [source], tmp_path / "p", log_format=LogFormat.COUNTS
        )


def test_counts_beyond_what_is_counted_exactly_are_refused(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    part(tmp_path / "a.parquet", id=pa.array([1, 1, 2]), count=pa.array([2**62, 2**62, 2**62]))
    with pytest.raises(LogError, match="row 0: .* more than 2\\^53 accesses"):
        profile_access(
            make_bundle({"t": 10}), [LogSource.parse(f"t:{tmp_path}/a.parquet")], tmp_path / "p"
        )


def test_counts_of_many_parts_add_up(make_bundle: MakeBundle, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    wanted: Counter[int] = Counter()
    for number in range(5):
        ids, counts = generator.integers(0, 10, 20), generator.integers(0, 9, 20)
        part(tmp_path / f"log/{number}.parquet", id=pa.array(ids), count=pa.array(counts))
        for one, count in zip(ids.tolist(), counts.tolist(), strict=True):
            wanted[one] += count
    source = LogSource.parse(f"t:{tmp_path}/log")
    profile_access(make_bundle({"t": 10}), [source], tmp_path / "p")
    assert counted(tmp_path / "p", "t") == +wanted
