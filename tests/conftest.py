"""What the whole suite shares: real data where it is, small bundles, the CLI as a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.buckets import S3, s3_server
from tests.releases import Made, make_release

ROOT = Path(__file__).parents[1]

settings.register_profile("erless", deadline=None, max_examples=60)
settings.load_profile("erless")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Browser = Callable[..., tuple[str, str]]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("ERLESS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run `erless ARGS` as a process of its own."""

    def run(
        *args: object, cwd: Path | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [sys.executable, "-m", "erless", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=cwd,
            env=env,
            check=False,
            **more,
        )
        return done

    return run


@pytest.fixture(scope="session")
def packed_release(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small release with a shard of each tier in a directory store. Read it only."""
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def _buckets() -> Iterator[Iterator[S3]]:
    with s3_server() as buckets:
        yield buckets


@pytest.fixture
def s3(_buckets: Iterator[S3]) -> S3:
    """A new bucket of a real S3 API server."""
    return next(_buckets)


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Load a page in headless Chromium: (document after scripts ran, console lines)."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no headless browser: chromium is not installed")

    def load(
        page: Path | str, width: int = 1100, *, dark: bool = False, budget_ms: int = 2000
    ) -> tuple[str, str]:
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--window-size={width},900",
            "--enable-logging=stderr",
            "--dump-dom",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--virtual-time-budget={budget_ms}",
            page.as_uri() if isinstance(page, Path) else page,
        ]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
        return run.stdout, "\n".join(console)

    return load
