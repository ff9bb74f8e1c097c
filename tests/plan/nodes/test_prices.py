"""A user's own price table: every value is used, or its line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from erless.errors import PlanError
from erless.plan.nodes.prices import COLUMNS, read_prices

HEAD = "# mine, 2026-11-29\n" + ",".join(COLUMNS) + "\n"
ROW = "big,16,64,0,0.8\n"


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read_with_its_date(tmp_path: Path, encoding: str) -> None:
    prices = read_prices(write(tmp_path, HEAD + ROW + "\ngpu,8,32,1,2\n", encoding))
    assert prices.date == "2026-11-29"
    assert [kind.name for kind in prices.cpu_types] == ["big"]
    (gpu,) = prices.gpu_types
    assert (gpu.vcpu, gpu.memory_gib, gpu.gpu, gpu.usd_per_hour) == (8, 32, 1, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + ROW + "big,16,64,0,0.7\n", r":4: big is listed already in line 3"),
        (HEAD + "a,nan,64,0,0.8\n", r":3: a: vcpu is nan: it must be above 0"),
        (HEAD + "a,16,1e999,0,0.8\n", r":3: a: memory_gib is 1e999: it must be above 0"),
        (HEAD + "a,16,64,0,-1\n", r":3: a: usd_per_hour is -1: it must be above 0"),
        (HEAD + "a,16,64,0,\n", r":3: a: usd_per_hour is : it must be above 0"),
        (HEAD + "a,16,64,0.5,1\n", r":3: a: gpu is 0.5: it must be a whole number"),
        (HEAD + "a,16,64,-1,1\n", r":3: a: gpu is -1"),
        (HEAD + "a,sixteen,64,0,1\n", r":3: a: vcpu is 'sixteen', no number"),
        (HEAD + "a,16,64,0,1,9\n", r":3: 6 values for 5 columns"),
        (HEAD + "a,16,64,0\n", r":3: 4 values for 5 columns"),
        (HEAD + ",16,64,0,1\n", r":3: the type has no name"),
        (HEAD.replace("gpu", "gpus") + ROW, "column gpu is missing"),
        (HEAD.replace("gpu", "gpu,spot") + "a,16,64,0,1,1\n", "column spot is not known"),
        (HEAD.replace("gpu", "gpu,gpu") + "a,16,64,0,0,1\n", "column gpu is given twice"),
        (HEAD, "no instance type without GPU"),
        ("", "column instance_type is missing"),
    ],
)
def test_a_wrong_table_names_line_and_value(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_prices(write(tmp_path, text))


def test_another_encoding_is_told(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"prices.csv:3: not UTF-8: byte 0xf6"):
        read_prices(write(tmp_path, HEAD + "größe,1,1,0,1\n", "latin-1"))
