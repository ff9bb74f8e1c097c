"""What the control groups of a process allow it."""

from __future__ import annotations

from pathlib import Path

import pytest

from erless.serve.memory import container_limit, flight_bytes, rewritten_bytes


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {"memory.max": "1000"}, 1000),  # as a container sees its own group
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "max"}, 1000),
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "700"}, 700),
        ("0::/../x\n", {"memory.max": "5000"}, 5000),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "900"}, 900),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("4:cpu,cpuacct:/a\n", {"memory/memory.limit_in_bytes": "900"}, None),
    ],
)
def test_the_least_limit_of_all_groups_counts(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert container_limit(groups, tmp_path) == limit


def test_workers_share_the_budget() -> None:
    assert flight_bytes(1000, 4) == 250
    assert 0 < flight_bytes(None, 2) <= flight_bytes(None, 1)
    assert rewritten_bytes(1000, 4) == 250
    assert rewritten_bytes(0, 1, least=1 << 60) == 0, "what is configured holds"
    assert rewritten_bytes(None, 2, least=1 << 60) == 1 << 59
