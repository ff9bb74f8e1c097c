"""erless.yaml from a stranger: refused by line and key, in bounded time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from erless.errors import ConfigError
from erless.specs.cluster import PodPlacement
from erless.specs.config import load_config
from tests.conftest import ROOT

LEVELS = 30
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, LEVELS)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, LEVELS)
)

WRONG = {
    "an alias bomb": (BOMB.encode(), r":\d+: more than 20,000 values"),
    "a bomb of merges": (MERGE_BOMB.encode(), r": a key must be a word"),
    "a reference to itself": (b"model: &m [*m]\n", r":1: model.0: refers to itself"),
    "depth": (b"[" * 100_000, r":1: nested deeper than 32 levels"),
    "depth in blocks": (
        b"\n".join(b" " * n + b"k:" for n in range(400)),
        r":33: nested deeper than 32 levels",
    ),
    "latin-1": ("model: m\nstore: Größe\n".encode("latin-1"), r":2: not UTF-8: byte 0xf6 at o"),
    "a key twice": (
        b"model: m\nprofile: p\nmodel: n\n",
        r":3: model: given twice, first in line 1",
    ),
    "a deep key twice": (
        b"traffic:\n  qps: 1\n  batch: 2\n  qps: 3\n",
        r":4: traffic.qps: given twice, first in line 2",
    ),
    "infinity": (b"traffic: {qps: .inf}\n", r":1: traffic.qps: must be a finite number, found inf"),
    "not a number": (
        b"precision: {max_auc_loss: .nan}\n",
        r":1: precision.max_auc_loss: must",
    ),
    "bytes": (b"model: !!binary aGVsbG8=\n", r":1: model: .*binary is no plain value"),
    "a set": (b"model: !!set {a, b}\n", r":1: model: .*set is no plain value"),
    "a number as text": (b"traffic: {batch: '32'}\n", r":1: traffic.batch: must be a whole number"),
    "a truth as number": (b"traffic: {qps: true}\n", r":1: traffic.qps: must be a number, found"),
    "a number too long": (b"traffic: {batch: " + b"9" * 9000 + b"}\n", r"not YAML: Exceeds"),
    "a key that is no word": (b"? [a, b]\n: 1\n", r":1: .*a key must be a word"),
    "a number as key": (b"1: 2\n", r"key 1 is not a word"),
    "a class": (
        b"model: !!python/object:os.system {}\n",
        r":1: model: .*os.system is no",
    ),
    "a megabyte": (b"model: " + b"x" * (1 << 20), r"more than 262,144 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_a_stranger_is_refused_by_line_and_key(tmp_path: Path, name: str) -> None:
    data, message = WRONG[name]
    path = tmp_path / "erless.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "erless.yaml"
    path.write_text(BOMB)
    program = "import sys; from pathlib import Path; from erless.specs.config import load_config\n"
    program += "load_config(Path(sys.argv[1]))"
    limit = 1 << 30
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert "more than 20,000 values" in done.stderr


def test_references_that_a_person_writes_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "erless.yaml"
    path.write_text(
        "targets:\n  knative:\n    placement:\n"
        "      hot: &fast {node_selector: {disk: nvme}}\n      warm: *fast\n"
    )
    placement = load_config(path).targets.knative.placement
    assert placement["hot"] == placement["warm"] != PodPlacement()


def test_numbers_and_dates_are_read_as_a_person_means_them(tmp_path: Path) -> None:
    path = tmp_path / "erless.yaml"
    path.write_text("model: 2026-11-29\nplanner: {max_shard_bytes: 1e9}\ntraffic: {qps: 100}\n")
    config = load_config(path)
    assert config.model == tmp_path / "2026-11-29"
    assert (config.planner.max_shard_bytes, config.traffic.qps) == (1e9, 100)
